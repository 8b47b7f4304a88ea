"""The bench runs through on a small tree, and every row has its figure. How fast is not for a test to say."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import plugin, report
from benchmarks.report import Report
from benchmarks.rows import ROWS, Sizes, measure
from benchmarks.subject import fingerprint
from benchmarks.tree import generate

BENCH = Path(__file__).parents[1] / "benchmarks" / "run.py"
PLUGIN_ARGUMENTS = ("--rounds", "1", "--rest", "0", "--plugin-files", "200", "--tests", "20")
BUCKET_ARGUMENTS = ("--bucket-backups", "300", "--layer-mib", "20")
ARGUMENTS = (
    *(*PLUGIN_ARGUMENTS, *BUCKET_ARGUMENTS),
    *("--files", "300", "--backups", "300", "--series", "10", "--load-seconds", "3", "--without-peers"),
)
SIZES = Sizes(files=10, backups=10, series=10, plugin_files=10, tests=10, bucket_backups=10, layer_mib=1)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), *arguments], capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    done = bench(*ARGUMENTS, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def read(path: Path) -> Report:
    report: Report = json.loads(path.read_text())
    return report


def test_every_row_has_a_figure(figures: Path) -> None:
    rows = {row["key"]: row for row in read(figures)["rows"]}
    assert list(rows) == [row.key for row in ROWS if not row.peer]
    for row in rows.values():
        assert row["median"] is not None, row["key"]
        assert row["median"] > 0, row["key"]


def test_every_target_has_its_limit_and_verdict(figures: Path) -> None:
    rows = {row["key"]: row for row in read(figures)["rows"]}
    peers = {row.key for row in ROWS if row.peer}
    for target in (row for row in ROWS if row.is_target and not peers & {row.key, row.against}):
        row = rows[target.key]
        assert row["met"] in {True, False}, target.key
        assert (row["at_most"], row["at_least"], row["held"]) == (target.at_most, target.at_least, target.held)
        assert (row["ratio"] is not None) == (target.against is not None), target.key


def test_nothing_is_held_to_peers_that_are_left_out(figures: Path) -> None:
    row = next(row for row in read(figures)["rows"] if row["key"] == "create_again")
    assert (row["against"], row["met"]) == (None, None)
    assert row["median"] is not None


def test_machine_is_named_by_cores_and_kernel_only(figures: Path) -> None:
    report = read(figures)
    assert set(report["machine"]) == {"cores", "kernel"}
    assert "/" not in report["filesystem"]


def test_markdown_of_the_last_run_has_all_rows(figures: Path) -> None:
    done = bench("--reuse", "--json", str(figures), "--markdown")
    assert done.returncode == 0, done.stderr
    for row in read(figures)["rows"]:
        assert f"| {row['what']} |" in done.stdout


def test_missed_target_is_said_and_fails_only_if_strict(figures: Path, tmp_path: Path) -> None:
    report = read(figures)
    report["rows"][0]["met"] = False
    altered = tmp_path / "bench.json"
    altered.write_text(json.dumps(report))
    easy = bench("--reuse", "--json", str(altered))
    assert easy.returncode == 0
    assert f"Missed: {report['rows'][0]['what']}" in easy.stdout
    assert bench("--reuse", "--json", str(altered), "--strict").returncode == 1


def test_plugin_can_be_measured_alone(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    done = bench("--only", "plugin", *PLUGIN_ARGUMENTS, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read(path)["rows"]
    assert [row["key"] for row in rows] == [row.key for row in ROWS if row.part == "plugin"]
    for row in rows:
        assert row["median"] is not None, row["key"]
        assert row["median"] > 0, row["key"]
    assert f"tree of {200 * 10:,} files" in done.stdout


def test_import_that_loads_what_is_forbidden_stops_the_bench(tmp_path: Path) -> None:
    (tmp_path / "docker.py").touch()
    (tmp_path / "sitecustomize.py").write_text("import docker\n")
    with pytest.raises(RuntimeError, match="has loaded docker"):
        plugin.time_import({"PYTHONPATH": str(tmp_path)})


def test_terminated_bench_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", str(BENCH), *ARGUMENTS],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "Working on" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_tree_is_the_same_each_time(tmp_path: Path) -> None:
    made = [generate(str(tmp_path / name), 700, seed=1) for name in ("one", "two")]
    assert made[0] == made[1]
    assert made[0].files == 700
    assert made[0].hard_links
    assert made[0].symlinks
    one, two = ([_seen(path, root) for path in sorted(root.rglob("*"))] for root in sorted(tmp_path.iterdir()))
    assert one == two


def _seen(path: Path, root: Path) -> tuple[object, ...]:
    status = path.lstat()
    content = path.read_bytes() if path.is_file() else b""
    return path.relative_to(root), status.st_mode, status.st_mtime_ns, status.st_nlink, content


def test_ratio_is_taken_round_by_round() -> None:
    """A load that comes over later rounds, in which a peer has no part, moves no ratio."""
    samples = {"mksquashfs": [2.0, 2.0, 8.0], "create": [2.0, 2.2, 8.0], "restic_first": [8.0, 6.6]}
    rows = {row["key"]: row for row in measure(samples, peers=True, sizes=SIZES)}
    assert rows["create"]["ratio"] == pytest.approx(1.0)
    assert rows["restic_first"]["ratio"] == pytest.approx(3.5)
    assert rows["restic_first"]["met"] is True


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.000352, "0.35 ms"), (0.0005, "0.50 ms"), (0.0046, "4.6 ms"), (0.03, "30 ms"), (1.5, "1.50 s")],
)
def test_figure_is_legible_at_any_size(
    seconds: float, shown: str, capsys: pytest.CaptureFixture[str], figures: Path
) -> None:
    whole = read(figures)
    row = next(row for row in whole["rows"] if row["key"] == "rollback_overlay")
    whole["rows"] = [{**row, "median": seconds}]
    report.print_markdown(whole)
    assert f"| {shown} |" in capsys.readouterr().out


def test_limit_can_be_on_the_difference_round_by_round() -> None:
    samples = {"create_again": [0.5, 0.5, 2.0], "create_changed": [0.56, 0.7, 2.08]}
    row = next(row for row in measure(samples, peers=True, sizes=SIZES) if row["key"] == "create_changed")
    assert row["difference"] == pytest.approx(0.08)
    assert row["met"] is True


@pytest.mark.parametrize(("seconds", "met"), [(0.055, True), (0.065, False)])
def test_limit_can_be_on_the_figure_of_a_row_that_is_compared(seconds: float, met: bool) -> None:
    samples = {"create_overlay": [0.01], "create_overlay_large": [seconds]}
    row = next(row for row in measure(samples, peers=True, sizes=SIZES) if row["key"] == "create_overlay_large")
    assert row["ratio"] == pytest.approx(seconds / 0.01)
    assert row["met"] is met


def test_difference_is_shown_with_its_sign(figures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = read(figures)
    row = next(row for row in whole["rows"] if row["key"] == "changed_layer")
    whole["rows"] = [{**row, "difference": 9_000.0}, {**row, "difference": -300.0}]
    report.print_markdown(whole)
    shown = capsys.readouterr().out
    assert "| changed_bytes + 9 KB | ≤ + 64 KB |" in shown
    assert "| changed_bytes - 0 KB | ≤ + 64 KB |" in shown


@pytest.mark.parametrize("change", ["edit", "mode", "time", "name", "target"])
def test_fingerprint_sees_every_change(change: str, tmp_path: Path) -> None:
    root = tmp_path / "tree"
    file, link = root / "a" / "file", root / "a" / "link"
    file.parent.mkdir(parents=True)
    file.write_text("before")
    link.symlink_to("file")
    stamps = {path: path.lstat().st_mtime_ns for path in (link, file, file.parent, root)}
    before = fingerprint(str(root))
    if change == "edit":
        file.write_text("behind")
    elif change == "mode":
        file.chmod(0o700)
    elif change == "time":
        stamps[file] -= 1
    elif change == "name":
        stamps[file.rename(root / "a" / "other")] = stamps.pop(file)
    else:
        link.unlink()
        link.symlink_to("elif")
    for path, stamp in stamps.items():
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)
    assert fingerprint(str(root)) != before


def test_target_without_a_figure_is_missed() -> None:
    row = next(row for row in measure({}, peers=True, sizes=SIZES) if row["key"] == "create")
    assert (row["median"], row["ratio"], row["met"]) == (None, None, False)
