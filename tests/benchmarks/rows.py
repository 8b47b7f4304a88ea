"""The rows of the table: what is measured, what it is compared with, and the limits it is held to."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import sub, truediv
from typing import Literal, TypedDict

from benchmarks.rounds import median

Unit = Literal["s", "bytes", "requests"]
Part = Literal["service", "bucket", "docker", "mcp", "plugin"]
Held = Literal["figure", "ratio", "difference"]
"""What a limit is on: the figure itself, or how it compares with that of another row."""

TIMES_LARGER = 10


@dataclass(frozen=True)
class Sizes:
    """How much some rows are measured on, for their names."""

    files: int
    backups: int
    series: int
    plugin_files: int
    tests: int
    bucket_backups: int
    layer_mib: int

    @property
    def large_files(self) -> int:
        """The files of the service's large tree."""
        return self.files * TIMES_LARGER

    @property
    def large_plugin_files(self) -> int:
        """The files of the plugin's larger tree."""
        return self.plugin_files * TIMES_LARGER


@dataclass(frozen=True)
class Row:
    """One figure. Unless `limit_on` says otherwise, the limits are on the ratio where there is an `against`."""

    key: str
    what: str
    group: str
    against: str | None = None
    at_most: float | None = None
    at_least: float | None = None
    limit_on: Held | None = None
    unit: Unit = "s"
    peer: bool = False

    @property
    def held(self) -> Held:
        return self.limit_on or ("figure" if self.against is None else "ratio")

    @property
    def is_target(self) -> bool:
        return self.at_most is not None or self.at_least is not None

    @property
    def part(self) -> Part:
        return _PARTS.get(self.group, "service")


class Measured(TypedDict):
    """A row with its figures, as it goes into the JSON. `met` is None where there is no limit."""

    key: str
    what: str
    group: str
    unit: Unit
    samples: list[float]
    median: float | None
    against: str | None
    ratio: float | None
    difference: float | None
    at_most: float | None
    at_least: float | None
    held: Held
    met: bool | None


_FIRST = "first backup"
_AGAIN = "backup again, nothing changed"
_RESTORE = "restore"
_SERIES = "{sizes.series:,} backups, 20 files changed between each"
_REST = "listing, start-up, memory"
_BUCKET = "store in a bucket, on a real S3 server beside it"
_DOCKER = "in a container without capabilities, {sizes.files:,} files"
_MCP = "MCP server, and the hook on {sizes.files:,} files"
_PLUGIN = "pytest plugin, tests that write 10 files"
_UNUSED = "pytest plugin, installed and unused"
_PARTS: Mapping[str, Part] = {_BUCKET: "bucket", _DOCKER: "docker", _MCP: "mcp", _PLUGIN: "plugin", _UNUSED: "plugin"}
_MEMORY_LIMIT = 250e6
_LARGE_MEMORY_LIMIT = 600e6
CONTAINERS = 20
CLIENTS = 50
"""Of one server over HTTP at once."""
FEW = 1_500
CHAIN = 16
"""Layers of the longest chain that is measured."""
FORKS = 50
"""Directories that one backup is forked to."""
_TRANSFER_MEMORY_LIMIT = 200e6
_TREE = "tree of {sizes.plugin_files:,} files"
_LARGER = "tree of {sizes.large_plugin_files:,} files"
_LARGE = "{sizes.large_files:,} files"

ROWS = (
    Row("mksquashfs", "raw mksquashfs, same options", _FIRST),
    Row("create", "**Sandpoint**, full create", _FIRST, "mksquashfs", at_most=1.25),
    Row("restic_first", "restic", _FIRST, "create", at_least=3, peer=True),
    Row("borg_first", "borg (zstd,1)", _FIRST, "create", at_least=3, peer=True),
    Row("git_first", "shadow git (add -A, commit)", _FIRST, "create", peer=True),
    Row("cp", "cp -a", _FIRST, "create", peer=True),
    Row("git_again", "shadow git (add -A, commit)", _AGAIN, peer=True),
    Row("create_again", "**Sandpoint**", _AGAIN, "git_again", at_most=2),
    Row(
        "create_changed", "**Sandpoint**, 20 files changed", _AGAIN, "create_again", at_most=0.1, limit_on="difference"
    ),
    Row("changed_bytes", "contents of the changed files, zstd 1 in one stream", _AGAIN, unit="bytes"),
    Row(
        "changed_layer",
        "**Sandpoint**, new layer of 20 files changed",
        _AGAIN,
        "changed_bytes",
        at_most=64e3,
        limit_on="difference",
        unit="bytes",
    ),
    Row("create_overlay", "**Sandpoint**, 20 files changed on its overlay", _AGAIN, at_most=0.06),
    Row(
        "create_overlay_large",
        f"the same, tree of {_LARGE}",
        _AGAIN,
        "create_overlay",
        at_most=0.06,
        limit_on="figure",
    ),
    Row("restic_again", "restic", _AGAIN, "create_again", at_least=5, peer=True),
    Row("borg_again", "borg (zstd,1)", _AGAIN, "create_again", at_least=5, peer=True),
    Row("unsquashfs", "unsquashfs of the whole tree", _RESTORE),
    Row("restore_copy", "**Sandpoint**, copy, 20 files changed", _RESTORE, "unsquashfs", at_most=0.25),
    Row("restore_copy_undo", "the same, keeping an undo", _RESTORE, at_most=1.2),
    Row("restore_copy_new", "**Sandpoint**, copy into an empty directory", _RESTORE, "unsquashfs"),
    Row("restic_restore", "restic", _RESTORE, "restore_copy_undo", at_least=5, peer=True),
    Row("restore_overlay", "**Sandpoint**, overlay", _RESTORE, at_most=0.1),
    Row("restore_overlay_small", "**Sandpoint**, overlay, a tenth of the tree", _RESTORE, at_most=0.1),
    Row("restore_overlay_chain", f"**Sandpoint**, overlay of a chain of {CHAIN}", _RESTORE, at_most=0.1),
    Row("restore_overlay_live", "**Sandpoint**, overlay over a live one", _RESTORE),
    Row("series_least", "the first of them, and the bytes changed since, zstd 1", _SERIES, unit="bytes"),
    Row("series_store", "**Sandpoint**, store", _SERIES, "series_least", at_most=1.2, unit="bytes"),
    Row("series_pruned", "the same after prune", _SERIES, "series_least", at_most=1.2, unit="bytes"),
    Row("list", "list of the 20 newest backups of {sizes.backups:,}", _REST, at_most=0.3),
    Row("start_help", "sandpoint --help, whole process", _REST, at_most=0.4),
    Row("start_list", "sandpoint list, whole process", _REST, at_most=0.4),
    Row("memory_create", "peak memory, full create", _REST, at_most=_MEMORY_LIMIT, unit="bytes"),
    Row("memory_restore", "peak memory, copy restore with undo", _REST, at_most=_MEMORY_LIMIT, unit="bytes"),
    Row("memory_restore_new", "peak memory, copy into an empty directory", _REST, unit="bytes"),
    *(
        Row(f"memory_large_{key}", f"peak memory, {what}, {_LARGE}", _REST, at_most=_LARGE_MEMORY_LIMIT, unit="bytes")
        for key, what in (
            ("create", "full create"),
            ("again", "create, nothing changed"),
            ("changed", "create, 20 files changed"),
            ("restore", "copy restore with undo"),
            ("overlay", "overlay restore"),
            ("create_overlay", "create on the overlay"),
        )
    ),
    Row("memory_large_mksquashfs", f"peak memory of mksquashfs in a full create, {_LARGE}", _REST, unit="bytes"),
    Row("boto3_upload", "boto3, upload of {sizes.layer_mib} MiB, its best settings", _BUCKET),
    Row("s3_upload", "**Sandpoint**, the same through grants, compared", _BUCKET, "boto3_upload", at_most=1.2),
    Row("boto3_download", "boto3, download of {sizes.layer_mib} MiB, its best settings", _BUCKET),
    Row("s3_download", "**Sandpoint**, the same through grants, compared", _BUCKET, "boto3_download", at_most=1.2),
    Row(
        "memory_s3_upload",
        "peak memory, upload of {sizes.layer_mib} MiB",
        _BUCKET,
        at_most=_TRANSFER_MEMORY_LIMIT,
        unit="bytes",
    ),
    Row(
        "memory_s3_download",
        "peak memory, download of {sizes.layer_mib} MiB",
        _BUCKET,
        at_most=_TRANSFER_MEMORY_LIMIT,
        unit="bytes",
    ),
    Row("s3_local_changed", "**Sandpoint**, create, 20 files changed, to a folder", _BUCKET),
    Row(
        "s3_create_changed",
        "**Sandpoint**, the same to the bucket",
        _BUCKET,
        "s3_local_changed",
        at_most=0.15,
        limit_on="difference",
    ),
    Row("s3_list", "list of the 20 newest backups of {sizes.bucket_backups:,}", _BUCKET, at_most=1.0),
    Row("s3_list_requests", "requests for it", _BUCKET, at_most=40, unit="requests"),
    Row("s3_fork", f"**Sandpoint**, fork to {FORKS} directories, overlay", _BUCKET, at_most=1.0),
    Row("docker_create_host", "**Sandpoint**, full create, the same tree on this machine", _DOCKER),
    Row("docker_create_direct", "the same in a container, direct way", _DOCKER, "docker_create_host", at_most=1.15),
    Row("docker_create_helper", "the same in a container, helper way", _DOCKER, "docker_create_host", at_most=1.3),
    Row("docker_changed_direct", "create, 20 files changed, direct way", _DOCKER, at_most=0.6),
    Row("docker_changed_helper", "create, 20 files changed, helper way", _DOCKER, at_most=0.6),
    Row("docker_restore_direct", "overlay restore, direct way", _DOCKER, at_most=0.06),
    Row("docker_restore_helper", "overlay restore, helper way, helper there already", _DOCKER, at_most=0.15),
    Row("docker_freeze", "pause of create --freeze, 20 files changed since the walk", _DOCKER, at_most=0.1),
    Row("docker_freeze_few", f"the same of {FEW:,} files, as a database has", _DOCKER, at_most=0.1),
    Row("docker_fork", f"fork into {CONTAINERS} containers not entered before, overlay", _DOCKER, at_most=2.0),
    Row("docker_fork_disk", "disk that these take", _DOCKER, at_most=CONTAINERS * 100e3, unit="bytes"),
    Row("memory_docker_fork", "peak memory of the fork", _DOCKER, at_most=_MEMORY_LIMIT, unit="bytes"),
    Row("mcp_start", "sandpoint serve until tools/list answers", _MCP, at_most=0.8),
    Row("memory_mcp_start", "peak memory until then", _MCP, at_most=90e6, unit="bytes"),
    Row("mcp_service", "list of a few backups by the service", _MCP),
    Row("mcp_call", "the same as a tool call on stdio", _MCP, "mcp_service", at_most=0.005, limit_on="difference"),
    Row("hook_unchanged", "hook of Claude Code, nothing changed, whole process", _MCP, at_most=0.8),
    Row("http_slowest_list", f"{CLIENTS} clients over HTTP, list and create mixed: slowest list", _MCP, at_most=1.0),
    Row("http_lists", "lists answered meanwhile, none with an error", _MCP, unit="requests"),
    Row("http_creates", "backups made meanwhile, one after another", _MCP, unit="requests"),
    Row("memory_http_before", "memory of the server, warm", _MCP, unit="bytes"),
    Row("memory_http", "the same after the load", _MCP, "memory_http_before", at_most=1.2, unit="bytes"),
    Row("copytree", f"copytree + rmtree, {_TREE}", _PLUGIN, "rollback_overlay", at_least=1000),
    Row("rollback_overlay", f"**rollback** by overlay, {_TREE}", _PLUGIN, at_most=0.0005),
    Row("rollback_overlay_larger", f"**rollback** by overlay, {_LARGER}", _PLUGIN, at_most=0.0005),
    Row("rollback_copy", f"**rollback** by copy, {_TREE}", _PLUGIN, "copytree", at_most=0.25),
    Row("checkpoint_overlay", f"checkpoint and rollback by overlay, {_TREE}", _PLUGIN),
    Row("checkpoint_overlay_larger", f"checkpoint and rollback by overlay, {_LARGER}", _PLUGIN),
    Row("checkpoint_copy", f"checkpoint and rollback by copy, {_TREE}", _PLUGIN, "copytree"),
    Row("checkpoint_copy_first", f"first checkpoint of a run by copy, {_TREE}", _PLUGIN),
    Row("pytest_without", "pytest with {sizes.tests:,} empty tests, CPU time", _UNUSED),
    Row("pytest_with", "the same with the plugin installed", _UNUSED, "pytest_without", at_most=1.02),
    Row("plugin_import", "import of the plugin", _UNUSED, at_most=0.03),
)

_PEERS = frozenset(row.key for row in ROWS if row.peer)
_WITHOUT_PEERS = tuple(
    replace(row, against=None, at_most=None, at_least=None) if row.against in _PEERS else row
    for row in ROWS
    if not row.peer
)
"""Where no peers are measured, nothing is held to them."""


def measure(
    samples: Mapping[str, Sequence[float]], *, peers: bool, sizes: Sizes, only: Part | None = None
) -> list[Measured]:
    """Bring the samples into rows, with ratios and verdicts. What could not be measured has no figure."""
    rows = [row for row in (ROWS if peers else _WITHOUT_PEERS) if only in {row.part, None}]
    return list(_measure(samples, rows, sizes))


def _measure(samples: Mapping[str, Sequence[float]], rows: Iterable[Row], sizes: Sizes) -> Iterator[Measured]:
    medians = {key: median(values) for key, values in samples.items() if values}
    for row in rows:
        value = medians.get(row.key)
        compared = samples.get(row.key, ()), samples.get(row.against or "", ())
        figures: dict[Held, float | None] = {
            "figure": value,
            "ratio": _by_round(truediv, *compared),
            "difference": _by_round(sub, *compared),
        }
        fields = asdict(row) | {
            "what": row.what.format(sizes=sizes),
            "group": row.group.format(sizes=sizes),
            "samples": list(samples.get(row.key, ())),
            "median": value,
            "ratio": figures["ratio"],
            "difference": figures["difference"],
            "held": row.held,
            "met": _is_met(row, figures[row.held]),
        }
        yield Measured(**{name: fields[name] for name in Measured.__annotations__})  # type: ignore[typeddict-item]


def _by_round(
    compare: Callable[[float, float], float], values: Sequence[float], against: Sequence[float]
) -> float | None:
    # Round by round, and then the median: the load of a shared machine changes from round to round, and not all
    # contenders take part in all of them.
    compared = [compare(value, other) for value, other in zip(values, against, strict=False)]
    return median(compared) if compared else None


def _is_met(row: Row, figure: float | None) -> bool | None:
    if not row.is_target:
        return None
    if figure is None:
        return False
    return (row.at_most is None or figure <= row.at_most) and (row.at_least is None or figure >= row.at_least)
