"""What goes in and comes out of the operations: options, grants, metadata and results.

Options are strict: an unknown field, a wrong type or a value outside its rule is an error that names the field.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from sandpoint.errors import InvalidBackupConfigError

FORMAT_VERSION = 1

DEFAULT_TTL = 259_200
"""Seconds (3 days), as in Cloudflare's Sandbox SDK."""

MAX_TTL = 3_155_760_000
"""Seconds (100 years of 365.25 days): dates stay within what every reader of `meta.json` can say."""

EXPIRY_BUFFER = 60
"""Seconds before the end of its life in which a backup is no longer restored, so that it lasts to the end of
the restore. The buffer never eats into the first minute: a backup lives at least min(ttl, 60) seconds."""

_FIRST_YEAR, _LAST_YEAR = 1970, 9000
"""Of dates in `meta.json`: with any ttl added they stay within what `datetime` can say."""

MAX_DIR = 4096
"""Characters of a backup's directory: the kernel takes no longer path."""

MAX_NAME = 256
MAX_DESCRIPTION = 4096
MAX_METADATA_ENTRIES = 64
MAX_METADATA_VALUE = 1024
MAX_EXCLUDES = 1000
MAX_LIST = 1000
MAX_FORKS = 1000

MAX_FOLDER = 10_000
DEFAULT_FOLDER = 1000

DEFAULT_PATCH_BYTES = 16 << 20
"""Of all the patches that one comparison returns."""


class Strict(BaseModel):
    """The base of options and results: no unknown fields, no silent conversions, immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


Options = TypeVar("Options", bound=Strict)


def check_options(model: type[Options], values: Mapping[str, object]) -> Options:
    """Build options of a model from keyword arguments.

    Raises:
        InvalidBackupConfigError: A value does not meet its rule; the message names each field and why.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidBackupConfigError(describe_invalid(error)) from None


MAX_PROBLEMS = 8
"""How many invalid fields a message tells of."""

_PLAIN = {
    "extra_forbidden": "no such option",
    "missing": "must be given",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "literal_error": "must be {expected}",
}
"""What is wrong, by pydantic's type of error; of others pydantic's own words are plain enough."""


def describe_invalid(error: ValidationError) -> str:
    """Return one sentence for each invalid field, in plain words."""
    sentences = []
    problems = error.errors(include_url=False)
    for problem in problems[:MAX_PROBLEMS]:
        field = ".".join(_shorten_name(str(part)) for part in problem["loc"]) or "arguments"
        context = problem.get("ctx", {})
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in _PLAIN:
            message = _PLAIN[problem["type"]].format_map(context)
        if problem["type"] == "string_too_short" and context.get("min_length") == 1:
            message = "must not be empty"
        given = "" if problem["type"] == "missing" else f" (got {_shorten(problem['input'])})"
        sentences.append(f"{field}: {message}{given}")
    if len(problems) > MAX_PROBLEMS:
        sentences.append(f"and {len(problems) - MAX_PROBLEMS} more of the kind")
    return "; ".join(sentences)


def _shorten_name(name: str) -> str:
    shown = name if name.isprintable() else repr(name)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _shorten(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits, which Python does not turn into text
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _printable(kind: str, limit: int, *, lines: bool = False) -> Callable[[str], str]:
    def check(value: str) -> str:
        if len(value) > limit:
            raise ValueError(f"a {kind} has at most {limit} characters, this one has {len(value)}")
        for character in value:
            if unicodedata.category(character) in {"Cc", "Cs"} and not (lines and character in "\n\t"):
                raise ValueError(f"a {kind} may not hold control characters; remove {character!r}")
        return value

    return check


def _ttl(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number of seconds")  # noqa: TRY004 - pydantic wants ValueError
    if not 0 < value <= MAX_TTL:  # false for NaN too
        raise ValueError(f"must be a number of seconds above 0 and at most {MAX_TTL}")
    return int(value) if float(value).is_integer() else float(value)


def parse_backup_id(value: str) -> str:
    """Return a backup's id in its one form: a lower-case UUID with hyphens.

    Raises:
        InvalidBackupConfigError: It is no UUID.
    """
    try:
        return _uuid(value)
    except ValueError as error:
        raise InvalidBackupConfigError(f"backup_id: {error}") from None


_ANY_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _uuid(value: str) -> str:
    # UUID() also takes braces, 'urn:' and missing hyphens: names of objects in a store allow one form only.
    if not isinstance(value, str) or not _ANY_UUID.fullmatch(value):
        raise ValueError(
            "no backup id; ids are UUIDs such as 0192f0c1-2a3b-7c4d-8e5f-60718293a4b5, as create and list return them"
        )
    return value.lower()


def _pattern(value: str) -> str:
    if not value.strip() or "\0" in value or "\n" in value:
        raise ValueError("an exclude is one gitignore pattern such as 'node_modules/' or '*.log', not empty")
    if not _is_utf8(value):
        raise ValueError("an exclude is UTF-8; use '?' for other bytes of a name")
    if len(value) > MAX_DESCRIPTION:
        raise ValueError(f"an exclude has at most {MAX_DESCRIPTION} characters")
    return value


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _relative_path(value: str) -> str:
    path = value.rstrip("/")
    if not path or "\0" in path or path.startswith("/") or any(p in {"", ".", ".."} for p in path.split("/")):
        raise ValueError(
            "a path is relative to the directory, as diff prints it (for example 'src/app.py'): "
            "not absolute, without '.' and '..'"
        )
    return _encodable(path)


def _encodable(value: str) -> str:
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("this is no valid Unicode: it holds half of a surrogate pair") from None
    return value


def _folder_path(value: str) -> str:
    return "" if value.rstrip("/") in {"", "."} and not value.startswith("/") else _relative_path(value)


def _quoted_name(value: str) -> str:
    name = unquote_to_bytes(value)
    if not name or b"/" in name or b"\0" in name:
        raise ValueError("this is none; pass the next_cursor of the page before, or leave it out")
    return value


def _moment(value: datetime) -> datetime:
    if not _FIRST_YEAR <= value.year <= _LAST_YEAR:
        raise ValueError(f"a backup's dates lie between {_FIRST_YEAR} and {_LAST_YEAR}")
    return value


BackupId = Annotated[str, AfterValidator(_uuid)]
Name = Annotated[str, Field(min_length=1), AfterValidator(_printable("name", MAX_NAME))]
Description = Annotated[str, AfterValidator(_printable("description", MAX_DESCRIPTION, lines=True))]
Ttl = Annotated[int | float, BeforeValidator(_ttl)]
Moment = Annotated[AwareDatetime, AfterValidator(_moment)]
Pattern = Annotated[str, AfterValidator(_pattern)]
RelativePath = Annotated[str, AfterValidator(_relative_path)]
FolderPath = Annotated[str, AfterValidator(_folder_path)]
NameStart = Annotated[str, AfterValidator(_encodable)]
QuotedName = Annotated[str, AfterValidator(_quoted_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
NamePattern = Annotated[str, Field(min_length=1), AfterValidator(_printable("pattern", MAX_NAME))]
Places = Annotated[int, Field(ge=1)]
MetadataKey = Annotated[str, Field(min_length=1), AfterValidator(_printable("metadata key", MAX_NAME))]
MetadataValue = Annotated[str, AfterValidator(_printable("metadata value", MAX_METADATA_VALUE, lines=True))]
UserMetadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA_ENTRIES)]
Mode = Literal["auto", "overlay", "copy"]
Kind = Literal["full", "delta"]
Compression = Literal["zstd", "lz4"]
FileKind = Literal["file", "directory", "symlink", "pipe", "socket", "device"]
Freeze = Literal["never", "if_little", "always"]
"""Whether all that runs in a sandbox is paused for a capture; `if_little`: only where so little changed since the
parent that the pause is short. Else the capture is without, and can be the parent of the next."""
Attribute = Literal["mode", "owner", "xattrs", "mtime", "links"]
Omission = Literal["binary", "large", "limit", "unreadable"]


class CreateOptions(Strict):
    """What to back up and how to keep it."""

    dir: str
    name: Name | None = None
    description: Description | None = None
    ttl: Ttl = DEFAULT_TTL
    use_gitignore: bool = False
    excludes: Annotated[tuple[Pattern, ...], Field(max_length=MAX_EXCLUDES, strict=False)] = ()
    metadata: UserMetadata = Field(default_factory=dict)
    full: bool = False
    freeze: bool = False
    if_changed: bool = False


class UndoOptions(Strict):
    """Which directory goes a step back."""

    dir: str
    dry_run: bool = False


class TrimOptions(Strict):
    """Which backups are kept down to how many."""

    dir: str
    name: Name
    keep: Places


class BringBackOptions(Strict):
    """Which backup to bring back, and how."""

    backup_id: BackupId
    mode: Mode = "auto"
    paths: Annotated[tuple[RelativePath, ...], Field(strict=False)] = ()
    dry_run: bool = False
    undo: bool = True


class RestoreOptions(BringBackOptions):
    """Where to bring a backup back: by default where it was taken."""

    dir: str | None = None


class ForkOptions(BringBackOptions):
    """Where to bring a backup back, several times."""

    dirs: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_FORKS, strict=False)]


class ForkTargets(Strict):
    """Where to bring a backup back, in several sandboxes: their names, with directories."""

    targets: Annotated[tuple[tuple[str, str], ...], Field(min_length=1, max_length=MAX_FORKS, strict=False)]


class DiffOptions(Strict):
    """What to compare with a backup, which paths of it, and how much text to return."""

    backup_id: BackupId
    other_id: BackupId | None = None
    dir: str | None = None
    paths: Annotated[tuple[RelativePath, ...], Field(strict=False)] = ()
    max_bytes: Annotated[int, Field(ge=0)] = DEFAULT_PATCH_BYTES


class ReadOptions(Strict):
    """Which file of which backup to read."""

    backup_id: BackupId
    path: RelativePath


class FolderOptions(Strict):
    """Which part of a folder of a backup to list."""

    path: FolderPath = ""
    starts_with: NameStart = ""
    kinds: Annotated[tuple[FileKind, ...], Field(strict=False)] = ()
    limit: Annotated[int, Field(ge=0, le=MAX_FOLDER)] = DEFAULT_FOLDER
    cursor: QuotedName | None = None


class TreeOptions(FolderOptions):
    """Which backup's folder to list."""

    backup_id: BackupId


class ListOptions(Strict):
    """Which backups to list."""

    dir: str | None = None
    name: Name | None = None
    sandbox_id: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIST)] = 20
    cursor: str | None = None
    include_expired: bool = False


class KeepRules(Strict):
    """What a prune keeps of each directory; `sandpoint.retention` says how. None, and no names: all that live."""

    keep_last: Places | None = None
    """The newest so many."""
    keep_hourly: Places | None = None
    """The newest of each of the last so many hours that have any."""
    keep_daily: Places | None = None
    """The same for days, in UTC."""
    keep_weekly: Places | None = None
    """The same for weeks from Monday to Sunday, in UTC."""
    keep_names: Annotated[tuple[NamePattern, ...], Field(max_length=MAX_EXCLUDES, strict=False)] = ()
    """Those of a name that one of these shell patterns (`*`, `?`, `[abc]`) matches as a whole."""

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self.keep_last or self.keep_hourly or self.keep_daily or self.keep_weekly or self.keep_names)


class PruneOptions(KeepRules):
    """Which backups to prune, and what to keep of them."""

    dir: str | None = None
    dry_run: bool = False


# -- what travels between the service, a sandbox and a store --


class PathGrant(Strict):
    """Leave to read or write one file of the store by its path. A writer puts it there whole or not at all."""

    kind: Literal["path"] = "path"
    path: str


class _KeyGrant(Strict):
    # A URL or a header with a signature lets whoever has it in: neither is shown.
    key: str
    """The file's key in the store: how messages call it."""


class GetGrant(_KeyGrant):
    """Leave to read one file by a presigned URL, in ranges if so wished, for some time."""

    kind: Literal["get"] = "get"
    url: Annotated[str, Field(repr=False)]


class PutGrant(_KeyGrant):
    """Leave to write one file by a presigned URL, in one request with just these headers, for some time."""

    kind: Literal["put"] = "put"
    url: Annotated[str, Field(repr=False)]
    headers: Annotated[dict[str, str], Field(repr=False)]


class MultipartGrant(_KeyGrant):
    """Leave to write one file in parts of `part_bytes` each, the last one shorter, by a presigned URL for each."""

    kind: Literal["multipart"] = "multipart"
    part_bytes: Annotated[int, Field(gt=0)]
    urls: Annotated[tuple[str, ...], Field(repr=False)]


class RelayGrant(_KeyGrant):
    """Leave to read or write one file through the server, which has the store's credentials."""

    kind: Literal["relay"] = "relay"


class CachedGrant(Strict):
    """Leave to read what lies in the sandbox's cache, and nowhere else."""

    kind: Literal["cached"] = "cached"


ReadGrant = PathGrant | GetGrant | RelayGrant | CachedGrant
WriteGrant = PathGrant | PutGrant | MultipartGrant | RelayGrant


class StoredFile(Strict):
    """A file as it lies in a store: its size in bytes and its digest."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class SentFile(StoredFile):
    """A file that was sent through a grant; `parts` are the ETags of its parts, where it went in parts."""

    parts: tuple[str, ...] = ()


class Source(StoredFile):
    """A stored file with leave to read it."""

    grant: Annotated[ReadGrant, Field(discriminator="kind")]


FileRole = Literal["layer", "manifest"]
AskGrant = Callable[[FileRole, StoredFile], Coroutine[Any, Any, WriteGrant]]
"""Asked for leave to write a file of a new backup, once its size and digest are known."""


class Parent(Strict):
    """A backup that a delta may be built on: its manifests and layers, that of the full one first.

    `dropped` are manifests that were upon these when the directory was last captured, or mounted: the delta takes the
    place of their layers. `file_count` and `total_bytes` are those of then.
    """

    manifests: tuple[Source, ...]
    layers: tuple[Source, ...]
    dropped: tuple[Source, ...] = ()
    file_count: int
    total_bytes: int


class CaptureRequest(Strict):
    """Capture a directory into a layer and a manifest."""

    dir: str
    excludes: tuple[Pattern, ...] = ()
    use_gitignore: bool = False
    compression: Compression = "zstd"
    staging: str | None = None
    """A folder on the store's own filesystem to make the files in; None: the state directory's."""
    parent: Parent | None = None
    """What a delta may be built on; None for a full layer."""
    cover: tuple[Source, ...] = ()
    """The manifests of a backup about to be restored: what it names is captured although ignored."""
    freeze: Freeze = "never"
    look: bool = False
    """Make nothing, and only say whether anything has changed since the parent."""


class Captured(Strict):
    """What a capture made: a full layer, a delta on the request's parent, or nothing where nothing has changed.

    Of a look, which makes nothing, the kind alone counts: `delta` where nothing has changed since the parent.
    """

    kind: Kind
    layer: SentFile | None
    manifest: SentFile | None
    file_count: int
    total_bytes: int
    unstable_paths: tuple[str, ...] = ()
    skipped_mounts: tuple[str, ...] = ()
    frozen_seconds: float | None = None
    """For how long at most all was paused, 0 where it was so before; None where there was no need."""


class OverlayState(Strict):
    """An overlay of ours on a directory."""

    backup_id: BackupId


class LostOverlay(Strict):
    """An overlay of ours that is mounted no more, after a restart for instance; what was written to it is kept."""

    dir: str
    backup_id: BackupId


class LastCapture(Strict):
    """The backups that a delta would best be built on, the best first.

    `on_overlay`: an overlay of ours is on the directory. It shows the last of them, and others were taken of it since.
    """

    backup_ids: tuple[str, ...]
    on_overlay: bool


class AdoptRequest(Strict):
    """Make a backup of ours of an archive that another program wrote, of which only the size is known."""

    size: Annotated[int, Field(ge=0)]
    grant: Annotated[ReadGrant, Field(discriminator="kind")]


class Adopted(Strict):
    """What was made of it: a full layer and its manifest, in the sandbox's cache."""

    layer: StoredFile
    manifest: StoredFile


class StoredBackup(Strict):
    """What a backup consists of, with leave to read it: that of the full one it is built on first.

    `whole_seconds`: its times are no finer, as those of an archive that another program made.
    """

    manifests: tuple[Source, ...]
    layers: tuple[Source, ...]
    whole_seconds: bool = False


class ReadRequest(StoredBackup):
    """Read one file of a backup."""

    path: RelativePath


class FolderRequest(StoredBackup):
    """List a folder of a backup."""

    options: FolderOptions


class CompareRequest(StoredBackup):
    """Compare a directory with a backup."""

    dir: str
    excludes: tuple[Pattern, ...] = ()
    use_gitignore: bool = False
    paths: tuple[RelativePath, ...] = ()
    git_stamps: bool = True
    """Whether the stamps that git notes of files in its index count, if nothing else is different."""


class ApplyRequest(CompareRequest):
    """Make a directory equal to a backup."""

    backup_id: BackupId
    mode: Literal["overlay", "copy"]
    captured_as: tuple[Sha256, ...] = ()
    """The manifests of a backup just taken of the directory: what that found there is what the restore changes."""


class Changes(Strict):
    """What differs between two trees, as paths relative to the directory, sorted.

    Names that are not UTF-8 are shown with backslash escapes. A directory that came or went is listed with
    everything in it; one of which only the mtime moved, as every change of the names in it does, is not listed.
    """

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.added or self.modified or self.removed)

    def fingerprint(self) -> str:
        """Return what two of them have in common only if the same paths differ in the same way."""
        digest = hashlib.sha256()
        for paths in (self.added, self.modified, self.removed):
            digest.update(f"{len(paths)}\n".encode())
            for path in paths:
                digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
        return digest.hexdigest()


class FileState(Strict):
    """What a path was at one time. `mode` is octal; `size_bytes` is 0 for all but regular files."""

    kind: FileKind
    mode: Annotated[str, Field(pattern=r"^[0-7]{4}$")]
    size_bytes: int


class TreeEntry(Strict):
    """What a backup has of a path, with its type, permissions (octal) and times (ns since 1970).

    `name` is the last part of the path, of the directory itself `.`; what is not UTF-8 in it, and control characters,
    are shown with backslash escapes. Where that makes another name of it, `quoted_name` is the exact one,
    percent-encoded. `size_bytes` is 0 for all but regular files; `target` is what a symlink says, shown as `name` is.
    """

    name: str
    kind: FileKind
    mode: Annotated[str, Field(pattern=r"^[0-7]{4}$")]
    size_bytes: int
    mtime_ns: int
    target: str | None = None
    quoted_name: str | None = None

    @property
    def exact_name(self) -> bytes:
        """The name's own bytes."""
        return self.name.encode() if self.quoted_name is None else unquote_to_bytes(self.quoted_name)


class Listing(Strict):
    """What a path of a backup is, and if it is a folder, what lies just below it, in order of the names' bytes.

    `path` is relative to the backed-up directory, shown as names are, and empty for that itself; `quoted_path` is the
    exact one, percent-encoded, where that is another. `entry_count` is of all entries that were asked for, on this
    page and others. `next_cursor` asks for the following page; None where there is none.
    """

    path: str
    quoted_path: str | None = None
    itself: TreeEntry
    entries: tuple[TreeEntry, ...] = ()
    entry_count: int = 0
    next_cursor: str | None = None

    @property
    def exact_path(self) -> bytes:
        """The path's own bytes."""
        return self.path.encode() if self.quoted_path is None else unquote_to_bytes(self.quoted_path)


class FileDiff(Strict):
    """How one path differs between two trees; `old` or `new` is None where it is not there.

    `patch` is what `git apply` takes, with its header: for text, modes of files and links, and empty where there is
    no such thing to say. `omitted` tells why contents that differ are not in it: they are no UTF-8 text, larger than
    1 MiB, beyond what was asked for in all, or cannot be read. `attributes` are those that differ.
    """

    path: str
    change: Literal["added", "modified", "removed"]
    old: FileState | None
    new: FileState | None
    attributes: tuple[Attribute, ...] = ()
    patch: str = ""
    omitted: Omission | None = None


class ContentChanges(Changes):
    """What differs between two trees, path by path in order, with contents."""

    files: tuple[FileDiff, ...] = ()


class Applied(Strict):
    """What a sandbox did to its directory. `changes` is None in overlay mode, whose cost is not the tree's.

    `unmounted`: overlays of ours were taken down, with what was written to them. `restamped`: times of directories
    were put right, which is no news among the changes, but to be undone with them.
    """

    mode: Literal["overlay", "copy"]
    changes: Changes | None
    restamped: bool = False
    unmounted: bool = False
    kept_paths: tuple[str, ...] = ()
    skipped_mounts: tuple[str, ...] = ()


class Capability(Strict):
    """One thing that a machine can or cannot do."""

    name: str
    available: bool
    needed_for: str
    detail: str = ""
    remedy: str = ""
    commands: tuple[tuple[str, ...], ...] = ()
    """What would remedy it too: each a line of arguments of `sandpoint`, on the same store and sandbox."""


class Capabilities(Strict):
    """What a sandbox can do, as `doctor` tells it."""

    sandbox: str
    overlay: Literal["kernel", "fuse"] | None
    items: tuple[Capability, ...]


class Progress(Strict):
    """How far a long operation has come; `total` is None where nobody can know."""

    phase: str
    done: int = 0
    total: int | None = None


Report = Callable[[Progress], Coroutine[Any, Any, None]]
"""Told of progress by long operations; must be quick."""


# -- metadata in the store: `meta.json` --


class _Stored(BaseModel):
    # Unknown fields are let through: another program, or a later version within this format, may add some.
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, defer_build=True
    )


class StoredLayer(_Stored):
    """A file of a backup: its key in the store, size in bytes and digest, None of a foreign backup's."""

    key: Annotated[str, Field(pattern=rf"^backups/{_UUID}/[a-z0-9]{{1,32}}\.[a-z0-9]{{1,32}}$")]
    size: Annotated[int, Field(ge=0, lt=1 << 63)]
    sha256: Sha256 | None


class BackupMetadata(_Stored):
    """`meta.json`, format version 1. Names are camelCase there, as Cloudflare's Sandbox SDK writes them.

    A foreign backup, which that SDK wrote, has one layer without a digest and no manifest.
    """

    format_version: Literal[1]
    id: BackupId
    dir: Annotated[str, Field(max_length=MAX_DIR)]
    name: str | None = None
    description: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    kind: Kind = "full"
    parent_id: BackupId | None = None
    sandbox_id: str
    ttl: Ttl
    created_at: Moment
    expires_at: Moment
    size_bytes: Annotated[int, Field(ge=0)]
    total_bytes: Annotated[int, Field(ge=0)]
    file_count: Annotated[int, Field(ge=0)]
    excludes: tuple[Pattern, ...] = ()
    use_gitignore: bool = False
    manifest: StoredLayer | None
    parent_manifests: tuple[StoredLayer, ...] = ()
    """Of a delta: those that its own is built on, that of the full backup first."""
    layers: Annotated[tuple[StoredLayer, ...], Field(min_length=1)]
    """Bottom first."""

    @property
    def manifests(self) -> tuple[StoredLayer, ...]:
        """All manifests, that of the full backup first."""
        return self.parent_manifests if self.manifest is None else (*self.parent_manifests, self.manifest)

    @property
    def files(self) -> tuple[StoredLayer, ...]:
        """All files that it names, its own and those of others."""
        return (*self.manifests, *self.layers)

    @property
    def is_foreign(self) -> bool:
        """Whether another program wrote it: its digest, its manifest and the size of its tree are not known."""
        return self.manifest is None

    @property
    def restorable_until(self) -> datetime:
        """The end of its life less the buffer."""
        buffer = min(EXPIRY_BUFFER, max(0.0, self.ttl - EXPIRY_BUFFER))
        return self.created_at + timedelta(seconds=self.ttl - buffer)

    def is_expired(self, now: datetime | None = None) -> bool:
        """Whether it may no longer be restored."""
        return (now or datetime.now(UTC)) >= self.restorable_until


# -- results of the service, snake_case everywhere --


class Backup(Strict):
    """A backup, as create and list return it. Sizes are in bytes; `file_count` counts all but directories.

    `frozen_seconds` is for how long at most the sandbox was paused, 0 where it was paused already; only create tells.
    `unchanged`: it was there before, and create made no other, for nothing has changed since.
    """

    id: str
    dir: str
    name: str | None
    kind: Kind
    parent_id: str | None
    size_bytes: int
    total_bytes: int
    file_count: int
    created_at: datetime
    expires_at: datetime
    description: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    excludes: tuple[str, ...] = ()
    use_gitignore: bool = False
    sandbox_id: str = ""
    unstable_paths: tuple[str, ...] = ()
    skipped_mounts: tuple[str, ...] = ()
    frozen_seconds: float | None = None
    unchanged: bool = False

    @classmethod
    def from_metadata(cls, stored: BackupMetadata, captured: Captured | None = None) -> "Backup":
        """Build from `meta.json`; with `captured`, what only the creator can tell is said too."""
        fields: dict[str, Any] = {
            name: getattr(stored, name) for name in cls.model_fields if name in BackupMetadata.model_fields
        }
        if captured is not None:
            names = ("unstable_paths", "skipped_mounts", "frozen_seconds")
            fields |= {name: getattr(captured, name) for name in names}
        return cls(**fields)


class BackupPage(Strict):
    """Backups, newest first. `next_cursor` asks for the following page; None where there is none."""

    backups: tuple[Backup, ...]
    next_cursor: str | None = None


class RestoreResult(Strict):
    """What a restore did, or with `dry_run` would do.

    `undo_id` is a backup of the state before; None where nothing was changed or no undo was wanted.
    `changes` is None in overlay mode; with `unmounted`, they are those of the directory below the overlays that were
    taken down; a dry run tells of those that were written to. `kept_paths` are extra directories that stay because they
    hold excluded paths; `skipped_mounts` are mounts inside the directory, whose contents are never touched. `taken_in`
    is the sandbox that the backup was taken in, where that is another. `sandbox` is told where several were asked for:
    the one that was restored in, as it was named.
    """

    success: bool
    id: str
    dir: str
    mode: Literal["overlay", "copy"]
    dry_run: bool = False
    changes: Changes | None
    unmounted: bool = False
    undo_id: str | None
    kept_paths: tuple[str, ...] = ()
    skipped_mounts: tuple[str, ...] = ()
    taken_in: str | None = None
    sandbox: str | None = None


class UndoResult(RestoreResult):
    """What a step back did, or with `dry_run` would do: a restore of this backup."""

    backup: Backup


class TrimResult(Strict):
    """The backups that were deleted, newest first; `freed_bytes` counts files that no other backup names."""

    removed: tuple[str, ...]
    freed_bytes: int


class ForkResult(Strict):
    """What a fork did, directory by directory."""

    success: bool
    id: str
    restores: tuple[RestoreResult, ...]


class VerifyResult(Strict):
    """Whether all that a backup consists of is as it was written.

    `size_only`: another program wrote it and noted no digest, so that its size alone was compared.
    """

    id: str
    ok: bool
    checked_bytes: int
    problem: str | None = None
    size_only: bool = False


class DeleteResult(Strict):
    """A deleted backup; `freed_bytes` counts files that no other backup names."""

    id: str
    deleted: bool = True
    freed_bytes: int


class UnmountResult(Strict):
    """An overlay taken down. `undo_id` holds what had been written to it, None where nothing was."""

    dir: str
    backup_id: str
    undo_id: str | None


class Decision(Strict):
    """Whether a prune keeps a backup, and why."""

    id: str
    dir: str
    name: str | None
    created_at: datetime
    keep: bool
    reason: str


class PruneResult(Strict):
    """What a prune removed and reclaimed, or with `dry_run` would.

    `removed` are backups that the rules or their time took; `abandoned` are ids of which parts were left over, and
    directories of lost overlays; `leftovers`, in words, what was kept for sandboxes that are no more. `decisions` has
    every backup that was looked at, newest first. `sandbox_problem`: why nothing of the sandbox was pruned.
    """

    removed: tuple[str, ...]
    abandoned: tuple[str, ...]
    freed_bytes: int
    decisions: tuple[Decision, ...] = ()
    dry_run: bool = False
    leftovers: tuple[str, ...] = ()
    sandbox_problem: str | None = None


class LifecycleRule(Strict):
    """One rule: what goes below a prefix of the bucket, and after how many days; `is_ours` if Sandpoint set it."""

    id: str
    prefix: str
    is_enabled: bool
    is_ours: bool
    expire_days: int | None = None
    abort_uploads_days: int | None = None


class Lifecycle(Strict):
    """All rules of a bucket."""

    bucket: str
    rules: tuple[LifecycleRule, ...]
