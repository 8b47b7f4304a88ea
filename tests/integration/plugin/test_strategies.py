"""Which strategy runs, and where the run says so and why."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import ordinary
from helpers.pytest_runs import QUIET, ROOT, ROOT_WORKERS, USER, USER_WORKERS, Way, run
from helpers.trees import write
from sandpoint.engine import linux

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays, mounts and another user need root")

MARKED = """
    import os
    import pytest

    @pytest.mark.sandbox_checkpoint("data")
    @pytest.mark.parametrize("number", range(2))
    def test_it(number):
        with open("/proc/self/mountinfo") as mounts:
            print("\\nby overlay:", any(line.split()[-2] == "sandpoint-checkpoint" for line in mounts))
        with open("data/new", "x") as file:
            file.write("new")
"""

THREAD = """
    import threading

    threading.Thread(target=threading.Event().wait, name="of-the-conftest", daemon=True).start()
"""
NO_THREADS_PLEASE = (
    "an ordinary user's process with threads cannot enter a user namespace; set sandbox_namespace = always"
)
ROOT_AND_USER = pytest.mark.parametrize("way", [ROOT, USER], ids=lambda way: way.name)


def said(result: pytest.RunResult) -> list[str]:
    """Return the lines of the header and of the end of the collection."""
    return [line for line in result.outlines if line.startswith("sandpoint: ")]


def by_copy(result: pytest.RunResult) -> list[str]:
    """Return what the end of the report says of directories by copy."""
    lines = iter(result.outlines)
    if not any("sandpoint: rolled back by copy" in line for line in lines):
        return []
    found = []
    for line in lines:
        if not line or line.startswith("="):
            break
        found.append(line)
    return found


def was_overlay(result: pytest.RunResult) -> bool:
    return "by overlay: True" in result.outlines


# -- overlay --


@ROOT_AND_USER
def test_what_is_first_known_after_the_collection_is_said_there(
    pytester: pytest.Pytester, data: Path, way: Way
) -> None:
    pytester.makepyfile(MARKED)
    result = run(pytester, way, "-s")
    result.assert_outcomes(passed=2)
    assert said(result) == ["sandpoint: overlay"]
    lines = result.outlines
    assert lines.index("collected 2 items") + 1 == lines.index("sandpoint: overlay")
    assert was_overlay(result)
    assert not by_copy(result)


@ROOT_AND_USER
def test_what_the_ini_file_asks_for_is_said_in_the_header(pytester: pytest.Pytester, data: Path, way: Way) -> None:
    pytester.makepyfile(MARKED)
    result = run(pytester, way, "-s", "-o", "sandbox_checkpoint_dirs=data")
    result.assert_outcomes(passed=2)
    [line] = said(result)
    assert line == "sandpoint: overlay, every test gets back data"
    assert result.outlines.index(line) < result.outlines.index("collected 2 items")


def test_workers_of_root_need_nothing(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(sandbox_checkpoint, number):
            assert sandbox_checkpoint("data").strategy == "overlay"
    """)
    result = run(pytester, ROOT_WORKERS)
    result.assert_outcomes(passed=4)
    assert not by_copy(result)


@pytest.mark.parametrize("asked_for", ["sandbox_namespace=always", "sandbox_strategy=overlay"])
def test_workers_of_an_ordinary_user_are_prepared_when_it_is_known_at_the_start(
    pytester: pytest.Pytester, data: Path, asked_for: str
) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(sandbox_checkpoint, number):
            assert sandbox_checkpoint("data").strategy == "overlay"
            status = open("/proc/self/status").read().splitlines()
            ambient, effective = (next(line.split()[1] for line in status if line.startswith(name))
                                  for name in ("CapAmb", "CapEff"))
            assert int(ambient, 16) == int(effective, 16) == 0
    """)
    result = run(pytester, USER_WORKERS, "-o", asked_for)
    result.assert_outcomes(passed=4)
    assert said(result) == ["sandpoint: overlay in every worker"]
    assert not by_copy(result)


def test_a_directory_in_memory_can_have_an_overlay_too(pytester: pytest.Pytester) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        write(Path(folder, "kept"), "kept")
        pytester.makepyfile(f"""
            import os

            def test_writes(sandbox_checkpoint):
                checkpoint = sandbox_checkpoint({folder!r})
                assert checkpoint.strategy == "overlay"
                (checkpoint.path / "new").touch()

            def test_sees_nothing():
                assert os.listdir({folder!r}) == ["kept"]
        """)
        run(pytester, ROOT).assert_outcomes(passed=2)


# -- why not --


def test_workers_of_an_ordinary_user_who_were_not_prepared_say_what_to_set(
    pytester: pytest.Pytester, data: Path
) -> None:
    pytester.makepyfile(MARKED)
    result = run(pytester, USER_WORKERS)
    result.assert_outcomes(passed=2)
    assert said(result) == [
        "sandpoint: copy in the workers of an ordinary user; for overlays set sandbox_namespace = always"
    ]
    [line] = by_copy(result)
    assert line.startswith(f"{data}: {NO_THREADS_PLEASE}")


@ROOT_AND_USER
def test_with_no_namespace_it_is_copy(pytester: pytest.Pytester, data: Path, way: Way) -> None:
    pytester.makepyfile(MARKED)
    result = run(pytester, way, "-s", "--sandbox-namespace=never")
    result.assert_outcomes(passed=2)
    assert by_copy(result) == [f"{data}: sandbox_namespace is 'never'"]
    assert not was_overlay(result)


def test_copy_that_was_asked_for_needs_no_reason(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(MARKED)
    result = run(pytester, ROOT, "-s", "--sandbox-strategy=copy", "--sandbox-checkpoint-dir=data")
    result.assert_outcomes(passed=2)
    assert said(result) == ["sandpoint: copy, every test gets back data"]
    assert not by_copy(result)
    assert not was_overlay(result)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (ROOT, "threads run already (of-the-conftest) and would see the directories without their overlays; set "),
        (USER, NO_THREADS_PLEASE),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_threads_of_a_conftest_make_it_copy_unless_always_is_set(
    pytester: pytest.Pytester, data: Path, way: Way, reason: str
) -> None:
    pytester.makeconftest(THREAD)
    pytester.makepyfile(MARKED)
    result = run(pytester, way, "-s")
    result.assert_outcomes(passed=2)
    [line] = said(result)
    assert line.startswith(f"sandpoint: copy ({reason}")
    assert "sandbox_namespace = always" in line
    [line] = by_copy(result)
    assert line.startswith(f"{data}: {reason}")
    assert not was_overlay(result)

    result = run(pytester, way, "--sandbox-strategy=overlay")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        [f"E  *UsageError: the strategy 'overlay' was asked for, but {reason}*".replace("(", "[(]")]
    )

    result = run(pytester, way, "-s", "-o", "sandbox_namespace=always")
    result.assert_outcomes(passed=2)
    assert was_overlay(result)
    assert not by_copy(result)


def test_timers_are_no_threads_to_mind(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(MARKED)
    result = run(pytester, ROOT, "-s", "--timeout=60", "--timeout-method=thread")
    result.assert_outcomes(passed=2)
    assert was_overlay(result)
    pytester.makepyfile("""
        def test_it(request):
            request.getfixturevalue("sandbox_checkpoint")("data", strategy="overlay")
    """)
    run(pytester, ROOT, "--timeout=60", "--timeout-method=thread").assert_outcomes(passed=1)


@pytest.fixture
def mounted(data: Path) -> Iterator[Path]:
    point = data / "sub"
    linux.mount("none", os.fsencode(point), "tmpfs", 0, b"size=1m")
    try:
        write(point / "on the mount", "on the mount")
        yield point
    finally:
        linux.detach(os.fsencode(point))


def test_a_mount_inside_the_directory_makes_it_copy_and_is_left_alone(
    pytester: pytest.Pytester, data: Path, mounted: Path
) -> None:
    write(pytester.path / "other" / "kept", "kept")
    pytester.makepyfile("""
        import os

        def test_writes(sandbox_checkpoint):
            first, second = sandbox_checkpoint("data"), sandbox_checkpoint("other")
            assert (first.strategy, second.strategy) == ("copy", "overlay")
            assert os.path.exists("data/sub/on the mount")
            open("data/new", "w").close()
            open("data/sub/new on the mount", "w").close()
            open("other/new", "w").close()

        def test_sees():
            assert not os.path.exists("data/new")
            assert not os.path.exists("other/new")
    """)
    result = run(pytester, ROOT)
    result.assert_outcomes(passed=2)
    assert said(result) == ["sandpoint: overlay"]
    assert by_copy(result) == [f"{data}: {mounted} inside it is a mount, which an overlay would hide"]
    assert sorted(os.listdir(mounted)) == ["new on the mount", "on the mount"]


def test_files_of_others_make_it_copy_for_an_ordinary_user(pytester: pytest.Pytester) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        write(Path(folder, "data", "of root"), "of root")
        os.chown(Path(folder, "data"), ordinary.UID, ordinary.GID)
        pytester.makepyfile(f"""
            import os

            def test_writes(sandbox_checkpoint):
                checkpoint = sandbox_checkpoint({folder!r} + "/data")
                assert checkpoint.strategy == "copy"
                (checkpoint.path / "new").touch()

            def test_sees():
                assert os.listdir({folder!r} + "/data") == ["of root"]
        """)
        result = run(pytester, USER)
        result.assert_outcomes(passed=2)
        assert by_copy(result) == [
            f"{folder}/data: {folder}/data/of root belongs to another user or group, which an ordinary user's overlay "
            "cannot keep"
        ]
        assert os.stat(Path(folder, "data", "of root")).st_uid == 0


def test_root_that_may_not_mount_says_which_capability_is_missing(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(MARKED)
    argv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", "--"]
    argv += [sys.executable, "-m", "pytest", *QUIET, "-s"]
    state = {"SANDPOINT_STATE_DIR": str(pytester.path.parent / "state")}
    done = subprocess.run(argv, env={**os.environ, **state}, capture_output=True, text=True, timeout=60, check=False)
    result = pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0)
    result.assert_outcomes(passed=2)
    reason = (
        "this process may not have mounts of its own (Operation not permitted); in a container, add the capability "
        "SYS_ADMIN"
    )
    assert said(result) == [f"sandpoint: copy ({reason})"]
    assert by_copy(result) == [f"{data}: {reason}"]


def test_each_directory_is_named_once_whatever_the_number_of_workers(pytester: pytest.Pytester, data: Path) -> None:
    write(pytester.path / "other" / "kept", "kept")
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(8))
        def test_it(sandbox_checkpoint, number):
            for directory in ("data", "other"):
                assert sandbox_checkpoint(directory).strategy == "copy"
    """)
    result = run(pytester, ROOT_WORKERS, "--sandbox-namespace=never")
    result.assert_outcomes(passed=8)
    reason = "sandbox_namespace is 'never'"
    assert by_copy(result) == [f"{data}: {reason}", f"{pytester.path / 'other'}: {reason}"]
