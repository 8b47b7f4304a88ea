"""Single entries and single folders out of the manifest files of a backup, the others of which stay packed.

A manifest with all its entries takes half a kilobyte of memory for each; what is here takes a third of that, and for
the time of one look only.
"""

import os
import stat
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from heapq import merge
from operator import itemgetter
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from sandpoint.engine.differences import kind_of
from sandpoint.engine.manifest import NO_NAMES, Entry, display, packed_entries
from sandpoint.engine.tools import Check
from sandpoint.errors import BackupIntegrityError, NoSuchPathError
from sandpoint.models import FolderOptions, Listing, TreeEntry


class _Path(msgspec.Struct, array_like=True, gc=False):
    path: bytes


_PATHS = msgspec.msgpack.Decoder(_Path)
_ENTRIES = msgspec.msgpack.Decoder(Entry)

_AFTER_SLASH = b"0"
"""What comes after all that is below a path: the byte that follows '/'."""

_CHECK_EVERY = 1000


def _path_of(packed: msgspec.Raw) -> bytes:
    try:
        return _PATHS.decode(packed).path
    except msgspec.MsgspecError as error:
        raise _damaged(str(error)) from None


class _File:
    """One manifest file: its header, and its entries as they are packed, in order of their paths."""

    def __init__(self, content: bytes) -> None:
        self.header, self._packed = packed_entries(content)
        self.removed = frozenset(self.header.removed)
        self.kept = frozenset(self.header.kept)

    def entry(self, index: int) -> Entry:
        try:
            return _ENTRIES.decode(self._packed[index])
        except msgspec.MsgspecError as error:
            raise _damaged(str(error)) from None

    def _place_of(self, path: bytes, low: int = 0) -> int:
        """Return where a path is, or would be."""
        return bisect_left(self._packed, path, low, key=_path_of)

    def find(self, path: bytes) -> Entry | None:
        index = self._place_of(path)
        return self.entry(index) if index < len(self._packed) and _path_of(self._packed[index]) == path else None

    def children(self, folder: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield the paths just below a folder, in order, with the places of their entries."""
        start = folder + b"/" if folder else b""
        index = self._place_of(start or b"\0")
        while index < len(self._packed) and (path := _path_of(self._packed[index])).startswith(start):
            end = path.find(b"/", len(start))
            if end < 0:
                yield path, index
                index += 1
            else:
                index = self._place_of(path[:end] + _AFTER_SLASH, index + 1)

    def removed_children(self, folder: bytes) -> list[bytes]:
        return sorted(path for path in self.removed if path and path.rpartition(b"/")[0] == folder)


class Lookup:
    """The manifest files of one backup, that of the full one it is built on first."""

    def __init__(self, contents: Sequence[bytes]) -> None:
        """Read their headers.

        Raises:
            BackupIntegrityError: One is no manifest, or out of place.
        """
        self._files = [_File(content) for content in contents]
        if [file.header.is_delta for file in self._files] != [number > 0 for number in range(len(self._files))]:
            raise _damaged("a full one comes first, and only there")

    def find(self, path: bytes) -> Entry | None:
        """Return the entry of a path.

        Raises:
            BackupIntegrityError: A manifest is damaged.
        """
        for file in reversed(self._files):
            entry = file.find(path)
            if entry is not None or path in file.removed:
                return entry
        return None

    def layer_of(self, path: bytes) -> int:
        """Return which layer has the contents of a file, as `Manifest.layers` does."""
        for number in range(len(self._files) - 1, 0, -1):
            file = self._files[number]
            if file.find(path) is not None and path not in file.kept:
                return number
            if path in file.removed:
                break
        return 0

    def named(self, name: str) -> Entry:
        """Return the entry of a path as it is, or as `display` shows it.

        Raises:
            NoSuchPathError: There is none.
            BackupIntegrityError: A manifest is damaged.
        """
        path = os.fsencode(name)
        entry = self.find(path)
        if entry is None and b"\\" in path:
            entry = self._shown_as(name)
        if entry is None:
            raise NoSuchPathError(
                f"path: {display(path)} is not in the backup; paths are relative to the backed-up directory, as diff "
                "and ls print them"
            )
        return entry

    def _shown_as(self, name: str) -> Entry | None:
        found = self.find(b"")
        for part in name.split("/"):
            if found is None:
                return None
            found = self._child_shown_as(found.path, part)
        return found

    def _child_shown_as(self, folder: bytes, part: str) -> Entry | None:
        exact = self.find(folder + b"/" + os.fsencode(part) if folder else os.fsencode(part))
        if exact is not None or "\\" not in part:
            return exact
        return next((child.entry() for child in self.children(folder) if display(child.name) == part), None)

    def children(self, folder: bytes) -> "Iterator[_Child]":
        """Yield what is just below a folder, in order of the names.

        Raises:
            BackupIntegrityError: A manifest is damaged.
        """
        told = [
            listed
            for number, file in enumerate(self._files)
            for listed in (_there(file, -number, folder), _gone(file, -number, folder))
        ]
        last = None
        for path, _, _, child in merge(*told, key=itemgetter(0, 1, 2)):
            # The first that tells of a path is the latest file that does.
            if path != last and child is not None:
                yield child
            last = path


class _Child:
    """An entry just below a folder, still packed."""

    def __init__(self, file: _File, path: bytes, index: int) -> None:
        self.path = path
        self.name = path.rpartition(b"/")[2]
        if self.name in NO_NAMES or b"\0" in self.name:
            raise _damaged(f"{display(path)} is no plain relative path")
        self._file = file
        self._index = index

    def entry(self) -> Entry:
        return self._file.entry(self._index)


_Told = tuple[bytes, int, bool, _Child | None]
"""A path, minus the number of the file, whether it says that the path is gone, and else the path's entry."""


def _there(file: _File, number: int, folder: bytes) -> Iterator[_Told]:
    for path, index in file.children(folder):
        yield path, number, False, _Child(file, path, index)


def _gone(file: _File, number: int, folder: bytes) -> Iterator[_Told]:
    for path in file.removed_children(folder):
        yield path, number, True, None


def list_folder(lookup: Lookup, options: FolderOptions, check: Check) -> Listing:
    """Return what a path of a backup is, and of what lies just below it what was asked for.

    Raises:
        NoSuchPathError: The path is not in the backup.
        BackupIntegrityError: A manifest is damaged.
    """
    itself = lookup.named(options.path)
    after = b"" if options.cursor is None else unquote_to_bytes(options.cursor)
    found: list[Entry] = []
    count = 0
    more = False
    for child in _wanted(lookup, itself, options):
        if count % _CHECK_EVERY == 0:
            check()
        count += 1
        if child.name > after:
            if len(found) < options.limit:
                found.append(child.entry())
            else:
                more = True
    return Listing(
        path=display(itself.path),
        quoted_path=_quoted(itself.path),
        itself=_described(itself),
        entries=tuple(map(_described, found)),
        entry_count=count,
        next_cursor=quote_from_bytes(_name_of(found[-1].path), safe="") if more and found else None,
    )


def _wanted(lookup: Lookup, folder: Entry, options: FolderOptions) -> Iterator[_Child]:
    if not folder.is_dir:
        return
    start, shown_start = os.fsencode(options.starts_with), options.starts_with
    for child in lookup.children(folder.path):
        if not child.name.startswith(start) and not display(child.name).startswith(shown_start):
            continue
        if not options.kinds or kind_of(child.entry()) in options.kinds:
            yield child


def _described(entry: Entry) -> TreeEntry:
    name = _name_of(entry.path)
    return TreeEntry(
        name=display(name) or ".",
        kind=kind_of(entry),
        mode=f"{stat.S_IMODE(entry.mode):04o}",
        size_bytes=entry.size,
        mtime_ns=entry.mtime_ns,
        target=display(entry.target) if entry.is_symlink else None,
        quoted_name=_quoted(name),
    )


def _quoted(path: bytes) -> str | None:
    """Return a path percent-encoded, where it is not as it is shown."""
    return None if path == display(path).encode() else quote_from_bytes(path)


def _name_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _damaged(why: str) -> BackupIntegrityError:
    return BackupIntegrityError(f"the manifests are damaged: {why}")
