"""Trees of failed tests that are kept, and the report of which tests changed what."""

import os
import pickle
from pathlib import Path

import pytest

from helpers import ordinary, pytest_runs
from helpers.pytest_runs import ROOT, ROOT_WORKERS, USER, USER_WORKERS, WAYS, Way, run
from helpers.trees import assert_same, build_zoo, list_tree, write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays, owners and another user need root")

STRATEGIES = ("overlay", "copy")
HELPERS = ("-o", f"pythonpath={Path(pytest_runs.__file__).parents[1]}")
ALWAYS = ("-o", "sandbox_namespace=always")


def section(result: pytest.RunResult) -> list[str]:
    """Return the report's lines: those after its heading."""
    headings = [at for at, line in enumerate(result.outlines) if "sandpoint: changes by tests" in line]
    assert len(headings) == 1, "it is printed once"
    lines = result.outlines[headings[0] + 1 :]
    return lines[: next(at for at, line in enumerate(lines) if not line or line.startswith("="))]


# -- kept trees --


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_kept_tree_is_exactly_what_the_failed_test_left(pytester: pytest.Pytester, strategy: str) -> None:
    data = pytester.path / "data"
    build_zoo(data)
    write(data / "to remove", "x")
    pytester.makepyfile(
        test_it="""
        import pickle
        import shutil
        from pathlib import Path

        from helpers.trees import list_tree, write

        def test_fails(sandbox_checkpoint):
            data = sandbox_checkpoint("data").path
            write(data / "new" / "file", "new", mode=0o4751, mtime_ns=1_000_000_000_123_456_789)
            (data / "to remove").unlink()
            shutil.rmtree(data / "nest")
            (data / "empty").rename(data / "renamed")
            Path("listing").write_bytes(pickle.dumps({
                path: (item.kind, item.mode, item.uid, item.gid, item.mtime_ns, item.sha256, item.target, item.xattrs)
                for path, item in list_tree(data).items()
            }))
            assert not "as expected"
    """
    )
    before = list_tree(data)
    arguments = ("--sandbox-keep-failed", "--sandbox-kept-dir=kept trees", f"--sandbox-strategy={strategy}")
    result = run(pytester, ROOT, *arguments, *HELPERS, "test_it.py")
    result.assert_outcomes(failed=1)
    [kept] = (pytester.path / "kept trees").iterdir()
    left = pickle.loads((pytester.path / "listing").read_bytes())
    found = list_tree(kept / "data")
    assert found.keys() == left.keys()
    for path, item in found.items():
        what = (item.kind, item.mode, item.uid, item.gid, item.mtime_ns, item.sha256, item.target, item.xattrs)
        assert what == left[path], path
    assert_same(before, list_tree(data))
    result.stdout.fnmatch_lines(
        [
            "*- Sandpoint -*",
            f"{data} as the test left it: {kept}/data",
            "  added new, new/file, renamed, renamed/inner; removed empty, empty/inner, nest, * and * more",
        ]
    )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_trees_are_kept_of_failures_and_errors_and_of_no_other_tests(
    pytester: pytest.Pytester, data: Path, way: Way
) -> None:
    write(pytester.path / "other" / "kept", "kept")
    pytester.makepyfile(
        test_it="""
        import os
        import pytest

        pytestmark = pytest.mark.sandbox_checkpoint("data", "other")

        @pytest.fixture
        def breaks():
            open("data/of the set-up", "w").close()
            raise RuntimeError

        @pytest.fixture
        def breaks_late():
            yield
            raise RuntimeError

        def test_fails():
            open("data/of the test", "w").close()
            raise AssertionError

        def test_breaks(breaks):
            pass

        def test_breaks_late(breaks_late):
            pass

        def test_passes():
            open("data/of a test that passes", "w").close()

        def test_skips():
            pytest.skip("for a reason")

        @pytest.mark.xfail(strict=True)
        def test_fails_as_expected():
            raise AssertionError
    """
    )
    result = run(pytester, way, "--sandbox-keep-failed", "--sandbox-kept-dir=kept trees", *ALWAYS)
    result.assert_outcomes(passed=2, failed=1, errors=2, skipped=1, xfailed=1)
    kept = {path.parent.name.rpartition("-")[0]: sorted(os.listdir(path)) for path in Path("kept trees").glob("*/*")}
    assert kept == {
        "test_it.py-test_fails-data": ["kept", "of the test", "sub"],
        "test_it.py-test_fails-other": ["kept"],
        "test_it.py-test_breaks-data": ["kept", "of the set-up", "sub"],
        "test_it.py-test_breaks-other": ["kept"],
    }
    text = result.stdout.str()
    assert text.count("as the test left it: ") == 4
    assert "  added of the test\n" in text
    assert "  added of the set-up\n" in text
    assert text.count("  nothing was changed\n") == 2
    assert sorted(os.listdir(data)) == ["kept", "sub"]
    owner = os.stat(next(Path("kept trees").iterdir())).st_uid
    assert owner == (0 if way.is_root else ordinary.UID)


def test_a_tree_is_kept_as_it_is_upon_all_checkpoints(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture(scope="module")
        def built(sandbox_checkpoint_module):
            (sandbox_checkpoint_module("data").path / "built").touch()

        @pytest.mark.sandbox_checkpoint("data")
        def test_fails(built):
            open("data/new", "w").close()
            raise AssertionError
    """
    )
    result = run(pytester, ROOT, "--sandbox-keep-failed", "--sandbox-kept-dir=kept trees")
    result.assert_outcomes(failed=1)
    [kept] = Path("kept trees").glob("*/data")
    assert sorted(os.listdir(kept)) == ["built", "kept", "new", "sub"]
    result.stdout.fnmatch_lines(["  added new"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_cannot_be_kept_is_said_and_does_not_hinder(pytester: pytest.Pytester, data: Path, strategy: str) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.sandbox_checkpoint("data")
        def test_fails():
            open("data/new", "w").close()
            raise AssertionError
    """
    )
    arguments = ("--sandbox-keep-failed", f"--sandbox-strategy={strategy}")
    result = run(pytester, ROOT, *arguments, "--sandbox-kept-dir=data/kept trees")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [f"{data} cannot be kept in {data}/kept trees, which is inside it; see --sandbox-kept-dir"]
    )
    result = run(pytester, ROOT, *arguments, "--sandbox-kept-dir=data/kept")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{data} cannot be kept in {data}/kept, which is inside it; see --sandbox-kept-dir"])
    result = run(pytester, ROOT, *arguments, "--sandbox-kept-dir=test_it.py/below")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"{data} could not be kept: *test_it.py*"])
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_names_of_tests_are_names_of_files(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.parametrize("value", ["../../up", "a/b", "x" * 300, "\\n", ""])
        def test_fails(sandbox_checkpoint, value):
            sandbox_checkpoint("data")
            raise AssertionError
    """
    )
    run(pytester, ROOT, "--sandbox-keep-failed", "--sandbox-kept-dir=kept trees").assert_outcomes(failed=5)
    assert len(list(Path("kept trees").glob("*/data/kept"))) == 5


# -- the report --

CHANGES = """
    import os
    import pytest

    @pytest.fixture(scope="module", autouse=True)
    def for_the_module(sandbox_checkpoint_module):
        checkpoint = sandbox_checkpoint_module("data")
        (checkpoint.path / "built").write_text("built")

    def test_leaves_something():
        open("data/left", "w").close()
        open("data/kept", "w").write("written to")

    def test_changes_nothing():
        open("data/kept").read()

    def test_writes_to_what_was_left():
        open("data/left", "w").write("more")
        os.unlink("data/built")

    def test_puts_back():
        os.unlink("data/left")

    def test_comes_and_goes():
        open("data/passing", "w").close()
        os.unlink("data/passing")

    def test_of_its_own(sandbox_checkpoint):
        checkpoint = sandbox_checkpoint("other")
        (checkpoint.path / "new").touch()
        checkpoint.restore()
        (checkpoint.path / "kept").unlink()
        open("data/also", "w").close()

    def test_fails():
        open("data/of a failure", "w").close()
        raise AssertionError
"""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_report_says_which_test_changed_what(pytester: pytest.Pytester, data: Path, strategy: str) -> None:
    write(pytester.path / "other" / "kept", "kept")
    pytester.makepyfile(test_it=CHANGES)
    result = run(pytester, ROOT, "--sandbox-report", f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=6, failed=1)
    assert section(result) == [
        f"{data}:",
        "  test_it.py::test_leaves_something: added left; modified kept",
        "  test_it.py::test_writes_to_what_was_left: added left; put back built",
        "  test_it.py::test_puts_back: put back left",
        "  test_it.py::test_of_its_own: added also",
        "  test_it.py::test_fails: added of a failure",
        f"{pytester.path / 'other'}:",
        "  test_it.py::test_of_its_own: removed kept",
    ]


@pytest.mark.parametrize("way", [ROOT_WORKERS, USER], ids=lambda way: way.name)
def test_the_report_is_printed_once_whoever_runs_the_tests(pytester: pytest.Pytester, data: Path, way: Way) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_writes(sandbox_checkpoint, number):
            checkpoint = sandbox_checkpoint("data")
            if number % 2:
                (checkpoint.path / f"new{number}").touch()
    """
    )
    result = run(pytester, way, "--sandbox-report", *ALWAYS)
    result.assert_outcomes(passed=6)
    first, *lines = section(result)
    assert first == f"{data}:"
    assert sorted(lines) == [f"  test_it.py::test_writes[{number}]: added new{number}" for number in (1, 3, 5)]


def test_the_report_says_if_nothing_was_changed(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(
        test_it="""
        def test_it(sandbox_checkpoint):
            sandbox_checkpoint("data")
            open("data/kept").read()
    """
    )
    result = run(pytester, ROOT, "--sandbox-report")
    result.assert_outcomes(passed=1)
    assert section(result) == ["no test changed a protected directory"]


def test_long_lists_are_cut(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(
        test_it="""
        import shutil

        def test_it(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            for number in range(37):
                (checkpoint.path / f"new{number:02}").touch()
            shutil.rmtree("data/sub")
            assert False
    """
    )
    result = run(pytester, ROOT, "--sandbox-report", "--sandbox-keep-failed", "--sandbox-kept-dir=kept trees")
    result.assert_outcomes(failed=1)
    changes = f"added {', '.join(f'new{number:02}' for number in range(10))} and 27 more; removed sub, sub/inner"
    assert section(result) == [f"{data}:", f"  test_it.py::test_it: {changes}"]
    assert f"  {changes}" in result.outlines


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_fixtures_of_wider_scopes_write_is_no_change_by_a_test(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture(scope="session")
        def built(sandbox_checkpoint_session):
            checkpoint = sandbox_checkpoint_session("data")
            (checkpoint.path / "built").touch()
            return checkpoint

        @pytest.fixture(scope="module")
        def added_to(built):
            (built.path / "added").touch()

        def test_first(built):
            pass

        def test_second(added_to):
            open("data/sub/by the test", "w").close()

        def test_third(added_to, sandbox_checkpoint):
            (sandbox_checkpoint("data").path / "of the third").touch()
    """
    )
    result = run(pytester, ROOT, "--sandbox-report", f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=3)
    assert section(result) == [
        f"{data}:",
        "  test_it.py::test_second: added sub/by the test",
        "  test_it.py::test_third: added of the third",
    ]


@pytest.mark.parametrize("way", [ROOT, USER_WORKERS], ids=lambda way: way.name)
def test_directories_of_the_ini_file_are_reported_on_too(pytester: pytest.Pytester, data: Path, way: Way) -> None:
    pytester.makeini("[pytest]\nsandbox_checkpoint_dirs = data\nsandbox_report = true\n")
    pytester.makepyfile(
        test_it="""
        def test_leaks():
            open("data/leak", "w").close()

        def test_clean():
            pass
    """
    )
    result = run(pytester, way)
    result.assert_outcomes(passed=2)
    assert section(result) == [f"{data}:", "  test_it.py::test_leaks: added leak"]


def test_a_failure_of_an_ordinary_user_is_told_with_all_that_is_unreadable(
    pytester: pytest.Pytester, data: Path
) -> None:
    pytester.makepyfile(
        test_it="""
        import os

        def test_it(sandbox_checkpoint):
            sandbox_checkpoint("data")
            os.mkdir("data/closed")
            os.chmod("data/closed", 0)
            assert False
    """
    )
    result = run(pytester, USER, "--sandbox-report", "--sandbox-keep-failed", "--sandbox-kept-dir=kept trees")
    result.assert_outcomes(failed=1)
    assert "INTERNALERROR" not in result.stdout.str()
    assert sorted(os.listdir(data)) == ["kept", "sub"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_inside_others_do_not_hinder_the_report(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture(scope="module", autouse=True)
        def built(sandbox_checkpoint_module):
            checkpoint = sandbox_checkpoint_module("data")
            (checkpoint.path / "sub" / "built").touch()
            return checkpoint

        @pytest.mark.sandbox_checkpoint("data/sub")
        def test_inside(built):
            open("data/sub/new", "w").close()
            assert built.changes().added == ("sub/built", "sub/new")

        def test_outside():
            open("data/outside", "w").close()
    """
    )
    result = run(pytester, ROOT, "--sandbox-report", f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=2)
    assert section(result) == [
        f"{data}:",
        "  test_it.py::test_outside: added outside",
        f"{data}/sub:",
        "  test_it.py::test_inside: added new",
    ]
