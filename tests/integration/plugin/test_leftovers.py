"""Tests that leave something behind: processes, open files, a working directory; and roll-backs that fail."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.pytest_runs import ROOT, ROOT_WORKERS, USER, Way, run
from helpers.trees import list_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays, flags of files and another user need root")

STRATEGIES = ("overlay", "copy")

LEAVES = """
    import os
    import subprocess
    import time

    import pytest

    LEFT = []

    def leave(how):
        # It says when it is ready, so that nobody has to guess.
        opened = open("data/opened by it", "w") if how == "open" else subprocess.DEVNULL
        process = subprocess.Popen(
            ["sh", "-c", "echo ready; exec sleep 600"], stdout=subprocess.PIPE, stderr=opened,
            cwd="data/sub" if how == "cwd" else "/",
        )
        assert process.stdout.readline() == b"ready\\n"
        if how == "open":
            opened.close()
        while os.readlink(f"/proc/{process.pid}/exe") == os.path.realpath("/bin/sh"):
            time.sleep(0.001)
        LEFT.append(process)

    @pytest.fixture(scope="session", autouse=True)
    def end_them():
        yield
        for process in LEFT:
            process.kill()
            process.wait()
            process.stdout.close()

    @pytest.mark.parametrize("how", ["open", "cwd"])
    def test_leaves_a_process(sandbox_checkpoint, how):
        checkpoint = sandbox_checkpoint("data")
        (checkpoint.path / "new").write_text("new")
        leave(how)
        print(f"\\npid: {LEFT[-1].pid}")

    def test_it_is_rolled_back():
        assert sorted(os.listdir("data")) == ["kept", "sub"]
        assert [process.poll() for process in LEFT] == [None, None]
        assert os.listdir("data/sub") == ["inner"]

    def test_and_again(sandbox_checkpoint):
        checkpoint = sandbox_checkpoint("data")
        (checkpoint.path / "new").write_text("new")
"""


@pytest.mark.parametrize("way", [ROOT, USER], ids=lambda way: way.name)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_process_that_uses_the_directory_is_named_and_does_not_hinder(
    pytester: pytest.Pytester, data: Path, strategy: str, way: Way
) -> None:
    pytester.makepyfile(LEAVES)
    result = run(pytester, way, "-s", f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=4, warnings=2)
    pids = [line.split()[1] for line in result.outlines if line.startswith("pid:")]
    found = " was rolled back while it is in use: "
    result.stdout.fnmatch_lines(
        [
            f"*SandboxCheckpointWarning: {data}{found}process {pids[0]} (sleep) has {data}/opened by it open; end it *",
            f"*SandboxCheckpointWarning: {data}{found}process {pids[1]} (sleep) works in {data}/sub; end it with the *",
        ]
    )
    assert sorted(os.listdir(data)) == ["kept", "sub"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_where_warnings_are_errors_the_test_has_one_and_the_directory_is_back(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile(LEAVES)
    result = run(
        pytester, ROOT, "-W", "error::pytest_sandpoint.SandboxCheckpointWarning", f"--sandbox-strategy={strategy}"
    )
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(
        ["*ERROR at teardown of test_leaves_a_process?open?*", "E  *SandboxCheckpointWarning: *"]
    )
    assert sorted(os.listdir(data)) == ["kept", "sub"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_process_that_maps_a_file_or_a_thread_that_works_there_is_rolled_back(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile("""
        import mmap
        import os

        MAPPED = []

        def test_maps(sandbox_checkpoint):
            sandbox_checkpoint("data")
            with open("data/kept", "r+b") as file:
                MAPPED.append(mmap.mmap(file.fileno(), 0))
            MAPPED[0][:4] = b"KEPT"

        def test_it_is_back():
            assert open("data/kept").read() == "kept\\n"
            MAPPED[0][:4] = b"KE__"
            assert open("data/kept").read() == "kept\\n"
    """)
    result = run(pytester, ROOT, f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=2, warnings=1 if strategy == "overlay" else 0)
    assert (data / "kept").read_text() == "kept\n"


def test_files_of_the_test_itself_count_unless_only_a_cycle_keeps_them(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile("""
        import gc
        import os
        import pytest

        LEFT = []

        def test_leaves_it_open(sandbox_checkpoint):
            sandbox_checkpoint("data")
            LEFT.append(open("data/left open", "w"))

        def test_it_is_gone():
            assert not os.path.exists("data/left open")
            LEFT.pop().close()

        @pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
        def test_leaves_a_cycle(sandbox_checkpoint):
            sandbox_checkpoint("data")
            gc.disable()
            cycle = [open("data/in a cycle", "w")]
            cycle.append(cycle)

        def test_the_cycle_is_gone():
            gc.enable()
            assert sorted(os.listdir("data")) == ["kept", "sub"]
    """)
    result = run(pytester, ROOT, "-W", "ignore::ResourceWarning")
    result.assert_outcomes(passed=4, warnings=1)
    result.stdout.fnmatch_lines(
        [f"*SandboxCheckpointWarning: {data} was rolled back * this process (*) has {data}/left open open; *"]
    )
    result.stdout.no_fnmatch_line("*in a cycle open*")
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_a_file_open_for_writing_before_the_checkpoint_is_warned_of(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.fixture(scope="session")
        def log():
            with open("data/log", "a") as file:
                yield file

        @pytest.fixture(scope="session")
        def reader():
            with open("data/kept") as file:
                yield file

        def test_reads(reader, sandbox_checkpoint):
            sandbox_checkpoint("data")

        def test_writes(log, sandbox_checkpoint):
            sandbox_checkpoint("data")
            log.write("a line")
            log.flush()
    """)
    result = run(pytester, ROOT)
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "*SandboxCheckpointWarning: what is written through files opened before the checkpoint stays: *"
            f"this process (*) has {data}/log open for writing"
        ]
    )
    assert (data / "log").read_text() == "a line"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_warning_that_is_an_error_leaves_no_checkpoint_in_force(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile("""
        import os
        import pytest

        IDS = []
        LEFT = []

        @pytest.fixture
        def log():
            with open("data/kept", "a") as file:
                yield file

        @pytest.mark.filterwarnings("ignore")
        def test_saves(sandbox_checkpoint):
            IDS.append(sandbox_checkpoint("data").save().id)

        def test_writes(log, sandbox_checkpoint):
            sandbox_checkpoint("data")

        def test_starts_from_a_backup(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data", backup_id=IDS[0])
            process = os.fork()
            if not process:
                os.chdir("data")
                os.write(LEFT[1][1], b".")
                os.read(LEFT[0][0], 1)
                os._exit(0)
            os.read(LEFT[1][0], 1)
            (checkpoint.path / "new").write_text("new")

        @pytest.fixture(scope="module", autouse=True)
        def pipes():
            LEFT.extend((os.pipe(), os.pipe()))
            yield
            os.write(LEFT[0][1], b".")
            os.wait()

        def test_nothing_is_in_force(sandbox_checkpoint_session):
            assert sorted(os.listdir("data")) == ["kept", "sub"]
            with open("/proc/self/mountinfo") as mounts:
                assert not any("sandpoint-checkpoint" in line for line in mounts)
            sandbox_checkpoint_session("data")
    """)
    arguments = ("-W", "error::pytest_sandpoint.SandboxCheckpointWarning", f"--sandbox-strategy={strategy}")
    result = run(pytester, ROOT, *arguments)
    if strategy == "overlay":
        result.assert_outcomes(passed=3, failed=1, errors=1)
    else:  # no file that was opened before escapes it
        result.assert_outcomes(passed=4, errors=1)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


# -- the working directory --


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("way", [ROOT, USER], ids=lambda way: way.name)
def test_a_test_may_work_in_the_directory(pytester: pytest.Pytester, data: Path, strategy: str, way: Way) -> None:
    pytester.makepyfile(f"""
        import os
        import shutil
        import pytest

        DATA = {str(data)!r}

        @pytest.fixture
        def checkpoint(sandbox_checkpoint):
            return sandbox_checkpoint(DATA)

        def look():
            # By a relative path: it is the directory of today, not one that was rolled back.
            return sorted(os.listdir("."))

        def test_chdir(checkpoint):
            os.chdir(DATA)
            open("new", "w").close()
            checkpoint.restore()
            assert os.getcwd() == DATA
            assert look() == ["kept", "sub"]
            open("new", "w").close()
            assert os.path.exists(f"{{DATA}}/new")

        def test_it_is_still_there():
            assert os.getcwd() == DATA
            assert look() == ["kept", "sub"]

        def test_makes_a_checkpoint_while_there(checkpoint):
            open("new", "w").close()
            assert checkpoint.changes().added == ("new",)
            assert os.path.exists(f"{{DATA}}/new")
            os.chdir("sub")

        def test_in_a_folder_below(checkpoint):
            assert os.getcwd() == f"{{DATA}}/sub"
            assert look() == ["inner"]
            open("new", "w").close()
            assert checkpoint.changes().added == ("sub/new",)

        def test_in_a_folder_that_will_not_be(checkpoint):
            assert look() == ["inner"]
            os.makedirs(f"{{DATA}}/made/below")
            os.chdir(f"{{DATA}}/made/below")

        def test_it_is_in_the_directory_itself():
            assert os.getcwd() == DATA
            assert look() == ["kept", "sub"]

        def test_in_a_folder_that_was_removed(checkpoint):
            os.chdir("sub")
            shutil.rmtree(f"{{DATA}}/sub")

        def test_it_is_in_the_folder():
            assert os.getcwd() == f"{{DATA}}/sub"
            assert look() == ["inner"]

        def test_monkeypatch(monkeypatch, checkpoint):
            monkeypatch.chdir(DATA)
            open("new", "w").close()

        def test_last():
            assert os.getcwd() == f"{{DATA}}/sub"
            assert sorted(os.listdir(DATA)) == ["kept", "sub"]
            os.chdir({str(pytester.path)!r})
    """)
    run(pytester, way, "-W", "error", f"--sandbox-strategy={strategy}").assert_outcomes(passed=10)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


# -- roll-backs that fail --


@pytest.fixture
def clears_flags(data: Path) -> Iterator[None]:
    yield
    subprocess.run(["chattr", "-R", "-i", str(data)], check=True)


FLAGGED = """
    import os
    import subprocess
    import pytest

    def set_flag(flag, path="data/new/blocked"):
        subprocess.run(["chattr", flag, path], check=True)

    def test_leaves_what_cannot_be_removed(sandbox_checkpoint):
        checkpoint = sandbox_checkpoint("data")
        (checkpoint.path / "new").mkdir()
        (checkpoint.path / "new" / "blocked").touch()
        (checkpoint.path / "kept").write_text("written to")
        set_flag("+i")

    def test_other():
        pass

    def test_cannot_begin(sandbox_checkpoint):
        sandbox_checkpoint("data")

    def test_cannot_begin_inside(sandbox_checkpoint):
        sandbox_checkpoint("data/sub")

    def test_mends():
        assert open("data/kept").read() == "written to"
        set_flag("-i")

    def test_begins(sandbox_checkpoint):
        checkpoint = sandbox_checkpoint("data")
        assert open("data/kept").read() == "kept\\n"
        assert sorted(os.listdir("data")) == ["kept", "sub"]
        (checkpoint.path / "kept").write_text("written to")

    def test_all_is_well():
        assert open("data/kept").read() == "kept\\n"
"""


def test_a_roll_back_that_fails_is_an_error_of_its_test_and_of_those_after_it_until_it_is_mended(
    pytester: pytest.Pytester, data: Path, clears_flags: None
) -> None:
    before = list_tree(data)
    pytester.makepyfile(FLAGGED)
    result = run(pytester, ROOT, "--sandbox-strategy=copy", "-rA")
    result.assert_outcomes(passed=5, failed=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaves_what_cannot_be_removed*",
            f"E  *BackupRestoreError: {data} could not be rolled back: *",
        ]
    )
    assert {line.split(" - ")[0] for line in result.outlines if line.startswith(("FAILED", "ERROR "))} == {
        f"{kind} {pytester.path.name.rstrip('0')}.py::{name}"
        for kind, name in (
            ("ERROR", "test_leaves_what_cannot_be_removed"),
            ("FAILED", "test_cannot_begin"),
            ("FAILED", "test_cannot_begin_inside"),
        )
    }
    assert list_tree(data) == before


def test_a_roll_back_that_failed_is_tried_once_more_at_the_end(
    pytester: pytest.Pytester, data: Path, clears_flags: None
) -> None:
    before = list_tree(data)
    pytester.makepyfile(FLAGGED.split("    def test_other")[0])
    pytester.makeconftest("""
        import subprocess
        import pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_sessionfinish():
            subprocess.run(["chattr", "-i", "data/new/blocked"], check=True)
    """)
    result = run(pytester, ROOT, "--sandbox-strategy=copy")
    result.assert_outcomes(passed=1, errors=1)
    assert list_tree(data) == before


def test_a_directory_that_stays_changed_is_named_when_the_run_ends(
    pytester: pytest.Pytester, data: Path, clears_flags: None
) -> None:
    pytester.makepyfile(FLAGGED.split("    def test_other")[0])
    result = run(pytester, ROOT, "--sandbox-strategy=copy")
    assert result.ret != 0
    result.assert_outcomes(passed=1, errors=1)
    assert f"{data} could not be rolled back" in result.stdout.str()
    assert "INTERNALERROR" not in result.stdout.str()
    assert (data / "kept").read_text() == "written to"


def test_a_worker_whose_roll_back_failed_does_not_block_the_others(
    pytester: pytest.Pytester, data: Path, clears_flags: None
) -> None:
    before = list_tree(data)
    (data / "new").mkdir()
    pytester.makepyfile("""
        import subprocess
        import pytest

        def test_fails(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            (checkpoint.path / "new" / "blocked").touch()
            subprocess.run(["chattr", "+i", "data/new/blocked"], check=True)

        @pytest.mark.parametrize("number", range(3))
        def test_other(number):
            pass
    """)
    result = run(pytester, ROOT_WORKERS, "--sandbox-strategy=copy")
    result.assert_outcomes(passed=4, errors=1)
    assert before.keys() <= list_tree(data).keys()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_error_of_the_test_and_one_of_the_end_do_not_hide_one_another(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile("""
        import os

        def test_fails(sandbox_checkpoint, request):
            checkpoint = sandbox_checkpoint("data")
            (checkpoint.path / "new").touch()
            request.addfinalizer(lambda: 1 / 0)
            raise RuntimeError("of the test")

        def test_is_back():
            assert sorted(os.listdir("data")) == ["kept", "sub"]
    """)
    result = run(pytester, ROOT, f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines_random(["E  *ZeroDivisionError*", "E  *RuntimeError: of the test"])
