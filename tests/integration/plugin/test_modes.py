"""Runs that use nothing of the plugin, runs without it, and runs with other options and plugins."""

import json
import os
from pathlib import Path

import pytest

from helpers.pytest_runs import ROOT, ROOT_WORKERS, USER, USER_WORKERS, WAYS, Way, run
from helpers.trees import write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays and another user need root")

STRATEGIES = ("overlay", "copy")
OTHERS_OFF = ("-p", "no:anyio", "-p", "no:hypothesispytest", "-p", "no:xdist", "-p", "no:forked", "-p", "no:timeout")

OBSERVES = """
    import json
    import os
    import sys

    def test_it():
        seen = {
            "mnt": os.readlink("/proc/self/ns/mnt"),
            "user": os.readlink("/proc/self/ns/user"),
            "modules": sorted(sys.modules),
            "environment": [name for name in os.environ if name.startswith("SANDPOINT_WORKERS")],
        }
        with open("seen", "w") as file:
            json.dump(seen, file)
"""

USES_IT = """
    def test_uses_it(sandbox_checkpoint):
        checkpoint = sandbox_checkpoint("data")
        (checkpoint.path / "new").write_text("new")
        USE

    def test_is_over():
        import os
        assert not os.path.exists("data/new")
"""


def seen(pytester: pytest.Pytester) -> dict[str, object]:
    found: dict[str, object] = json.loads((pytester.path / "seen").read_text())
    return found


def loaded(pytester: pytest.Pytester, *names: str) -> set[str]:
    """Return which of some modules and packages were loaded."""
    modules = seen(pytester)["modules"]
    assert isinstance(modules, list)
    return {name for name in names if any(each == name or each.startswith(f"{name}.") for each in modules)}


# -- unused --


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_run_that_uses_nothing_of_it_enters_no_namespace(pytester: pytest.Pytester, data: Path, way: Way) -> None:
    pytester.makepyfile(OBSERVES)
    mine = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "user")}
    if way is USER:  # the helper that makes it an ordinary user enters one for it
        run(pytester, way, "-p", "no:sandpoint").assert_outcomes(passed=1)
        assert seen(pytester)["user"] == mine["user"]
    result = run(pytester, way)
    result.assert_outcomes(passed=1)
    found = seen(pytester)
    assert found["user"] == mine["user"]
    assert found["mnt"] == mine["mnt"] or not way.is_root
    assert found["environment"] == []
    said = [line for line in result.outlines if line.startswith("sandpoint: ")]
    assert len(said) == (way is USER_WORKERS)  # what to set, should it be used
    assert not (pytester.path.parent / f"{pytester.path.name}-home" / "state" / "pytest").exists()


def test_a_run_that_uses_nothing_of_it_loads_nothing_heavy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(OBSERVES)
    run(pytester, ROOT, *OTHERS_OFF).assert_outcomes(passed=1)
    ours = {"pytest_sandpoint", "pytest_sandpoint.plugin", "pytest_sandpoint.options"}
    modules = seen(pytester)["modules"]
    assert isinstance(modules, list)
    assert {name for name in modules if name.split(".")[0] == "pytest_sandpoint"} == ours
    assert not loaded(
        pytester,
        "sandpoint",
        "pydantic",
        "msgspec",
        "mcp",
        "boto3",
        "docker",
        "anyio",
        "zstandard",
        "rich",
        "typer",
        "ctypes",
        "concurrent.futures.thread",
        "asyncio",
    )


@pytest.mark.parametrize("use", ["checkpoint.restore()", "pass"])
def test_overlays_load_only_what_they_need(pytester: pytest.Pytester, data: Path, use: str) -> None:
    pytester.makepyfile(test_a=USES_IT.replace("USE", use), test_b=OBSERVES)
    run(pytester, ROOT, *OTHERS_OFF).assert_outcomes(passed=3)
    assert loaded(pytester, "pytest_sandpoint.overlay")
    assert not loaded(pytester, "pydantic", "mcp", "boto3", "docker", "anyio", "asyncio", "rich", "typer")


def test_copies_load_no_service(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(test_a=USES_IT.replace("USE", "checkpoint.restore()"), test_b=OBSERVES)
    run(pytester, ROOT, *OTHERS_OFF, "--sandbox-strategy=copy").assert_outcomes(passed=3)
    assert loaded(pytester, "pytest_sandpoint.copying")
    assert not loaded(pytester, "mcp", "boto3", "docker", "anyio", "rich", "typer", "sandpoint.service")


# -- off --


def test_it_can_be_turned_off(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makeini("[pytest]\nsandbox_namespace = always\nsandbox_checkpoint_dirs = data\n")
    pytester.makepyfile(
        test_a=OBSERVES
        + """
    def test_writes():
        open("data/new", "w").close()
    """
    )
    result = run(pytester, ROOT, "-p", "no:sandpoint", *OTHERS_OFF)
    result.assert_outcomes(passed=2, warnings=result.parseoutcomes().get("warnings", 0))
    assert (data / "new").exists()
    assert seen(pytester)["mnt"] == os.readlink("/proc/self/ns/mnt")
    assert not loaded(pytester, "pytest_sandpoint", "sandpoint")
    assert not [line for line in result.outlines if line.startswith("sandpoint: ")]

    pytester.makepyfile(test_a=USES_IT.replace("USE", "pass"))
    (data / "new").unlink()
    result = run(pytester, ROOT, "-p", "no:sandpoint")
    result.assert_outcomes(passed=1, errors=1, warnings=result.parseoutcomes().get("warnings", 0))
    result.stdout.fnmatch_lines(["*fixture 'sandbox_checkpoint' not found*"])

    for option in ("--sandbox-report", "--sandbox-strategy=copy", "--sandbox-checkpoint-dir=data"):
        result = run(pytester, ROOT, "-p", "no:sandpoint", option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert f"unrecognized arguments: {option}" in result.stderr.str()


# -- with others --

FORKED = """
    import multiprocessing

    import pytest

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport():
        # pytest-forked 1.7.5 cannot send the ids that reports of pytest 9.2 have.
        report = yield
        if multiprocessing.parent_process() is not None and "_id" in vars(report):
            vars(report)["nodeid"] = str(vars(report).pop("_id"))
        return report
"""

MODULE = """
    import os
    import pytest

    @pytest.fixture(scope="module")
    def built(sandbox_checkpoint_module):
        checkpoint = sandbox_checkpoint_module("data", strategy="overlay")
        (checkpoint.path / "built").touch()

    @pytest.mark.sandbox_checkpoint("data")
    @pytest.mark.parametrize("number", range(3))
    def test_marked(number, built):
        assert sorted(os.listdir("data")) == ["built", "kept", "sub"]
        with open("data/new", "x") as file:
            file.write("new")

    class TestClass:
        def test_factory(self, sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("other")
            (checkpoint.path / "new").touch()
            assert checkpoint.changes().added == ("new",)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--strict-markers", "--strict-config", "-W", "error", "--import-mode=importlib"),
        ("--strict-markers", "--strict-config", "-W", "error", "--import-mode=prepend"),
        # pytest-forked itself leaves files open.
        (
            "--forked",
            "-W",
            "error",
            "-W",
            "ignore::ResourceWarning",
            "-W",
            "ignore::pytest.PytestUnraisableExceptionWarning",
        ),
        ("--strict-markers", "--strict-config", "-W", "error", "-n", "4"),
        ("-W", "error", "-p", "no:warnings", "-p", "no:terminal"),
        ("--assert=plain", "-p", "no:logging", "-s"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_works_with_other_options(
    pytester: pytest.Pytester, data: Path, arguments: tuple[str, ...], strategy: str
) -> None:
    write(pytester.path / "other" / "kept", "kept")
    pytester.makeconftest(FORKED)
    pytester.makepyfile(test_it=MODULE)
    result = run(pytester, ROOT, *arguments, f"--sandbox-strategy={strategy}", "--sandbox-report")
    assert result.ret == 0
    if "no:terminal" not in arguments:
        result.assert_outcomes(passed=4)
    assert sorted(os.listdir(data)) == ["kept", "sub"]
    assert os.listdir(pytester.path / "other") == ["kept"]


def test_workers_of_an_ordinary_user_work_with_strict_options(pytester: pytest.Pytester, data: Path) -> None:
    write(pytester.path / "other" / "kept", "kept")
    pytester.makeini("[pytest]\nsandbox_namespace = always\naddopts = --strict-markers --strict-config -W error\n")
    pytester.makepyfile(test_it=MODULE)
    run(pytester, USER_WORKERS, "--import-mode=importlib").assert_outcomes(passed=4)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


CRASHES = """
    import os
    import pytest

    @pytest.mark.parametrize("number", range(3))
    def test_crashes(sandbox_checkpoint, number):
        checkpoint = sandbox_checkpoint("data")
        assert sorted(os.listdir("data")) == ["kept", "sub"]
        (checkpoint.path / "new").write_text("new")
        (checkpoint.path / "kept").write_text("written to")
        (checkpoint.path / "sub" / "inner").unlink()
        if number == 1:
            os.abort()

    def test_sees_nothing():
        assert sorted(os.listdir("data")) == ["kept", "sub"]
        assert open("data/kept").read() == "kept\\n"
"""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("way", [ROOT, USER], ids=lambda way: way.name)
def test_a_forked_test_that_crashes_leaves_nothing_to_the_next(
    pytester: pytest.Pytester, data: Path, strategy: str, way: Way
) -> None:
    pytester.makeconftest(FORKED)
    pytester.makepyfile(CRASHES)
    result = run(pytester, way, "--forked", f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*CRASHED with signal 6*"])
    assert (data / "kept").read_text() == "kept\n"
    assert sorted(os.listdir(data)) == ["kept", "sub"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_worker_that_crashes_leaves_nothing_to_the_next(pytester: pytest.Pytester, data: Path, strategy: str) -> None:
    pytester.makepyfile(CRASHES)
    result = run(pytester, ROOT, "-n", "1", f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running *test_crashes?1?*"])
    assert (data / "kept").read_text() == "kept\n"
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_forked_tests_have_their_options_and_reports(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture(scope="session")
        def built(sandbox_checkpoint_session):
            checkpoint = sandbox_checkpoint_session("data")
            (checkpoint.path / "built").touch()
            return checkpoint

        @pytest.mark.parametrize("number", range(2))
        def test_it(built, number):
            assert built.strategy == "overlay"
            (built.path / "new").touch()

        def test_fails(built):
            (built.path / "failed").touch()
            raise AssertionError
    """
    )
    pytester.makeconftest(FORKED)
    arguments = ("--forked", "--sandbox-report", "--sandbox-keep-failed", "--sandbox-kept-dir=kept trees")
    result = run(pytester, ROOT, *arguments)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "* as the test left it: *",
            "  added built, failed",
            "*changes by tests*",
            f"{data}:",
            "  test_it.py::test_it?0?: added new",
            "  test_it.py::test_it?1?: added new",
            "  test_it.py::test_fails: added failed",
        ]
    )
    assert sorted(os.listdir(data)) == ["kept", "sub"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_child_that_a_test_forks_does_not_roll_back_for_it(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile("""
        import os
        import pytest
        from pytest_sandpoint import UsageError

        def test_it(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            (checkpoint.path / "new").touch()
            child = os.fork()
            if not child:
                try:
                    checkpoint.restore()
                except UsageError:
                    os._exit(0)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert (checkpoint.path / "new").exists()
            checkpoint.restore()
            assert not (checkpoint.path / "new").exists()
    """)
    run(pytester, ROOT, f"--sandbox-strategy={strategy}").assert_outcomes(passed=1)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_async_tests_may_save_and_start_from_backups(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makeconftest("""
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
    """)
    pytester.makepyfile("""
        import pytest

        @pytest.mark.anyio
        @pytest.mark.sandbox_checkpoint("data")
        async def test_it(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            (checkpoint.path / "new").touch()
            backup = checkpoint.save()
            checkpoint.restore()
            sandbox_checkpoint("data", backup_id=backup.id)
            assert (checkpoint.path / "new").exists()
    """)
    run(pytester, ROOT, "-W", "error").assert_outcomes(passed=1)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_collecting_alone_changes_nothing(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(test_it=MODULE)
    result = run(pytester, ROOT, "--collect-only", "-q", "--sandbox-checkpoint-dir=data")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["test_it.py::test_marked?0?", "4 tests collected*"])


def test_a_run_in_the_same_process_twice_begins_anew(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(test_it=CRASHES.replace("number == 1", "number == 5"))
    pytester.makepyfile(
        twice="""
        import pytest

        arguments = ["-p", "no:cacheprovider", "-p", "no:pytester", "-q", "test_it.py"]
        raise SystemExit(pytest.main(arguments) or pytest.main([*arguments, "--sandbox-strategy=copy"]))
    """
    )
    result = pytester.runpython(pytester.path / "twice.py")
    assert result.ret == 0
    assert sum(line.startswith("4 passed") for line in result.outlines) == 2
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_workers_of_root_leave_no_queue_behind(pytester: pytest.Pytester, data: Path) -> None:
    temporary = pytester.mkdir("temporary")
    pytester.makepyfile(test_it=CRASHES.replace("number == 1", "number == 5"))
    result = run(pytester, ROOT_WORKERS, "--sandbox-strategy=copy", env={"TMPDIR": str(temporary)})
    result.assert_outcomes(passed=4)
    assert not list(temporary.glob("sandpoint-*"))
    state = pytester.path.parent / f"{pytester.path.name}-home" / "state" / "pytest"
    assert not list((state / "runs").iterdir())
    assert not list((state / "directories").iterdir())
