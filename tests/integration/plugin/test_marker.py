"""The marker, and directories that every test gets back: the same without code."""

import os
import shutil
from pathlib import Path

import pytest

from helpers.pytest_runs import ROOT, USER_WORKERS, run, save_backup

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays and another user need root")

PROBE = """
    import os
    import unittest

    import pytest

    def touch_all():
        for directory in ("data", "other"):
            assert sorted(os.listdir(directory)) == ["kept", "sub"], directory
            open(f"{directory}/new", "w").close()

    def left():
        return [directory for directory in ("data", "other") if os.path.exists(f"{directory}/new")]

    def clean():
        found = left()
        for directory in found:
            os.unlink(f"{directory}/new")
        return found
"""


@pytest.fixture
def other(pytester: pytest.Pytester, data: Path) -> Path:
    return Path(shutil.copytree(data, pytester.path / "other"))


@pytest.mark.parametrize("strategy", ["overlay", "copy"])
def test_functions_classes_and_parameters_are_marked(
    pytester: pytest.Pytester, data: Path, other: Path, strategy: str
) -> None:
    pytester.makepyfile(
        PROBE
        + """
    @pytest.mark.sandbox_checkpoint("data")
    def test_function():
        touch_all()

    def test_after_the_function():
        assert clean() == ["other"]

    @pytest.mark.sandbox_checkpoint("data", "other")
    def test_several():
        touch_all()

    def test_after_several():
        assert clean() == []

    @pytest.mark.sandbox_checkpoint("data")
    class TestMarked:
        def test_one(self):
            touch_all()

        def test_after_one(self):
            assert clean() == ["other"]

        @pytest.mark.sandbox_checkpoint("other")
        def test_marked_itself_too(self):
            touch_all()

        def test_after_both(self):
            assert clean() == []

    @pytest.mark.parametrize("marked", [
        False, pytest.param(True, marks=pytest.mark.sandbox_checkpoint("data")), False,
    ])
    def test_parameter(marked):
        clean()
        touch_all()

    def test_after_the_parameters():
        assert clean() == ["data", "other"]

    @pytest.mark.sandbox_checkpoint("data")
    @pytest.mark.sandbox_checkpoint("other")
    @pytest.mark.sandbox_checkpoint("data")
    def test_marked_more_than_once():
        touch_all()

    def test_after_more_than_once():
        assert clean() == []
    """
    )
    run(pytester, ROOT, f"--sandbox-strategy={strategy}").assert_outcomes(passed=14)
    assert sorted(os.listdir(data)) == sorted(os.listdir(other)) == ["kept", "sub"]


def test_a_module_and_cases_of_unittest_are_marked(pytester: pytest.Pytester, data: Path, other: Path) -> None:
    pytester.makepyfile(
        PROBE
        + """
    pytestmark = [pytest.mark.sandbox_checkpoint("data")]

    def test_function():
        touch_all()

    def test_after():
        assert clean() == ["other"]

    @pytest.mark.sandbox_checkpoint("other", strategy="copy")
    class Case(unittest.TestCase):
        def setUp(self):
            touch_all()

        def test_one(self):
            self.assertEqual(left(), ["data", "other"])

        def test_two(self):
            with open("data/kept", "w") as file:
                file.write("written to")

        def tearDown(self):
            self.assertEqual(left(), ["data", "other"])

    class TestLater(unittest.IsolatedAsyncioTestCase):
        async def test_it(self):
            assert clean() == []
            touch_all()

    def test_last():
        assert clean() == ["other"]
        assert open("data/kept").read() == "kept\\n"
    """
    )
    run(pytester, ROOT).assert_outcomes(passed=6)


def test_a_marker_chooses_the_strategy(pytester: pytest.Pytester, data: Path, other: Path) -> None:
    pytester.makepyfile("""
        import os

        import pytest

        def is_mounted(directory):
            with open("/proc/self/mountinfo") as mounts:
                return any(line.split()[4] == os.path.realpath(directory) for line in mounts)

        @pytest.mark.sandbox_checkpoint("data", strategy="copy")
        @pytest.mark.sandbox_checkpoint("other")
        def test_it():
            assert is_mounted("other")
            assert not is_mounted("data")
            open("data/new", "w").close()

        def test_after():
            assert not is_mounted("other")
    """)
    run(pytester, ROOT).assert_outcomes(passed=2)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_a_marker_starts_from_a_backup(pytester: pytest.Pytester, data: Path) -> None:
    backup_id, store = save_backup(pytester)
    pytester.makepyfile(
        test_starts=f"""
        import os
        import pytest

        @pytest.mark.sandbox_checkpoint("data", backup_id={backup_id!r}, store={store!r})
        def test_there():
            assert sorted(os.listdir("data")) == ["kept", "seeded", "sub"]

        @pytest.mark.sandbox_checkpoint(backup_id={backup_id!r}, store={store!r})
        def test_where_it_was():
            assert sorted(os.listdir("data")) == ["kept", "seeded", "sub"]

        @pytest.mark.sandbox_checkpoint("one", "two", backup_id={backup_id!r}, store={store!r})
        def test_twice():
            assert sorted(os.listdir("one")) == sorted(os.listdir("two")) == ["kept", "seeded", "sub"]
    """
    )
    run(pytester, ROOT, "test_starts.py").assert_outcomes(passed=3)
    assert sorted(os.listdir(data)) == ["kept", "sub"]
    assert not {"one", "two"} & set(os.listdir(pytester.path))


@pytest.mark.parametrize("strategy", ["overlay", "copy"])
def test_what_wider_fixtures_write_is_what_a_marked_test_starts_from(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile("""
        import os
        import pytest

        @pytest.fixture(scope="session")
        def for_the_session():
            open("data/session", "w").close()

        @pytest.fixture(scope="module", autouse=True)
        def for_the_module():
            open("data/module", "w").close()

        @pytest.fixture(autouse=True)
        def for_the_test():
            assert not os.path.exists("data/test")
            open("data/test", "w").close()

        @pytest.mark.sandbox_checkpoint("data")
        @pytest.mark.parametrize("number", range(2))
        def test_it(number, for_the_session):
            assert sorted(os.listdir("data")) == ["kept", "module", "session", "sub", "test"]
            open("data/new", "w").close()
            os.unlink("data/session")

        @pytest.mark.sandbox_checkpoint("data")
        def test_without_the_session():
            assert sorted(os.listdir("data")) == ["kept", "module", "session", "sub", "test"]
    """)
    run(pytester, ROOT, f"--sandbox-strategy={strategy}").assert_outcomes(passed=3)
    assert sorted(os.listdir(data)) == ["kept", "module", "session", "sub"]


@pytest.mark.parametrize("strategy", ["overlay", "copy"])
def test_setup_functions_run_after_the_directory_was_checkpointed(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile("""
        import os
        import pytest

        def setup_function():
            assert sorted(os.listdir("data")) == ["kept", "sub"]
            open("data/set up", "w").close()

        def teardown_function():
            assert os.path.exists("data/set up")

        @pytest.mark.sandbox_checkpoint("data")
        def test_one():
            assert os.path.exists("data/set up")

        class TestClass:
            pytestmark = pytest.mark.sandbox_checkpoint("data")

            def setup_method(self):
                open("data/of the class", "w").close()

            def test_two(self):
                assert sorted(os.listdir("data")) == ["kept", "of the class", "sub"]
    """)
    run(pytester, ROOT, f"--sandbox-strategy={strategy}").assert_outcomes(passed=2)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_a_marked_test_that_fails_or_is_skipped_leaves_nothing(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile("""
        import os
        import pytest

        pytestmark = pytest.mark.sandbox_checkpoint("data")

        @pytest.fixture
        def breaks():
            open("data/new", "w").close()
            raise RuntimeError("in a fixture")

        @pytest.fixture
        def breaks_late():
            yield
            open("data/new", "w").close()
            raise RuntimeError("in a fixture's end")

        def test_fails():
            open("data/new", "w").close()
            raise AssertionError

        def test_skips():
            open("data/new", "w").close()
            pytest.skip("for a reason")

        @pytest.mark.skip
        def test_is_skipped():
            pass

        @pytest.mark.xfail(strict=True)
        def test_fails_as_expected():
            open("data/new", "w").close()
            raise AssertionError

        def test_breaks(breaks):
            pass

        def test_breaks_late(breaks_late):
            pass

        def test_last():
            assert sorted(os.listdir("data")) == ["kept", "sub"]
    """)
    result = run(pytester, ROOT)
    result.assert_outcomes(passed=2, failed=1, skipped=2, xfailed=1, errors=2)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('"data", scope="module"', "*takes no scope; it takes directories, strategy*see checkpoint_fixture*"),
        ('"data", strateggy="copy"', "*takes no strateggy;*"),
        ("", "*names no directory; write sandbox_checkpoint('tests/data')*"),
        ('"data", strategy="fast"', "*'fast' is unknown; use auto, overlay, copy*"),
        ('"nowhere"', "*the directory */nowhere does not exist; create it first, or name another*"),
        ("5", "*"),
    ],
)
def test_a_marker_that_cannot_be_meant_is_an_error_of_its_test(
    pytester: pytest.Pytester, data: Path, marker: str, message: str
) -> None:
    pytester.makepyfile(f"""
        import pytest

        @pytest.mark.sandbox_checkpoint({marker})
        def test_it():
            pass

        def test_other():
            pass
    """)
    result = run(pytester, ROOT)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([f"E  {message}"])


EVERY_KIND = """
    import os
    import pytest

    class Sheet(pytest.File):
        def collect(self):
            for number in range(2):
                yield Row.from_parent(self, name=f"row{number}")

    class Row(pytest.Item):
        def setup(self):
            super().setup()

        def runtest(self):
            assert sorted(os.listdir("data")) == ["kept", "sub"]
            open("data/new", "w").close()
            assert os.path.exists("data/new")

    def pytest_collect_file(file_path, parent):
        if file_path.suffix == ".sheet":
            return Sheet.from_parent(parent, path=file_path)
"""


@pytest.mark.parametrize("strategy", ["overlay", "copy"])
def test_items_of_every_kind_get_the_directories_of_the_ini_file_back(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makeini("[pytest]\nsandbox_checkpoint_dirs = data\n")
    pytester.makeconftest(EVERY_KIND)
    pytester.makefile(".sheet", rows="")
    pytester.makefile(
        ".txt",
        test_text="""
        >>> import os
        >>> sorted(os.listdir("data"))
        ['kept', 'sub']
        >>> open("data/new", "w").close()
        """,
    )
    pytester.makepyfile(
        test_kinds='''
        import os
        import unittest

        def f():
            """
            >>> sorted(os.listdir("data"))
            ['kept', 'sub']
            >>> open("data/new", "w").close()
            """

        def g():
            """
            >>> sorted(os.listdir("data"))
            ['kept', 'sub']
            """

        class TestCase(unittest.TestCase):
            def test_it(self):
                self.assertEqual(sorted(os.listdir("data")), ["kept", "sub"])
                open("data/new", "w").close()

        def test_function():
            assert sorted(os.listdir("data")) == ["kept", "sub"]
            open("data/new", "w").close()
    '''
    )
    result = run(pytester, ROOT, "--doctest-modules", f"--sandbox-strategy={strategy}", "-Werror")
    result.assert_outcomes(passed=7)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_marked_doctests_are_rolled_back(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makeconftest("""
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                if item.name != "test_doc.last":
                    item.add_marker(pytest.mark.sandbox_checkpoint("data"))
    """)
    pytester.makepyfile(
        test_doc='''
        import os

        def first():
            """
            >>> sorted(os.listdir("data"))
            ['kept', 'sub']
            >>> open("data/new", "w").close()
            """

        def last():
            """
            >>> sorted(os.listdir("data"))
            ['kept', 'sub']
            """
    '''
    )
    run(pytester, ROOT, "--doctest-modules").assert_outcomes(passed=2)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_marked_items_without_fixtures_are_not_left_unprotected_in_silence(
    pytester: pytest.Pytester, data: Path
) -> None:
    pytester.makeconftest(
        EVERY_KIND
        + """
    def pytest_collection_modifyitems(items):
        for item in items:
            item.add_marker(pytest.mark.sandbox_checkpoint("data"))
    """
    )
    pytester.makefile(".sheet", rows="")
    result = run(pytester, ROOT)
    result.assert_outcomes(passed=2)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_workers_of_an_ordinary_user_heed_the_marker(pytester: pytest.Pytester, data: Path, other: Path) -> None:
    pytester.makepyfile("""
        import os
        import pytest

        pytestmark = pytest.mark.sandbox_checkpoint("data")

        @pytest.mark.parametrize("number", range(8))
        @pytest.mark.sandbox_checkpoint("other", strategy="overlay")
        def test_it(number):
            assert sorted(os.listdir("data")) == sorted(os.listdir("other")) == ["kept", "sub"]
            for directory in ("data", "other"):
                with open(f"{directory}/new", "x") as file:
                    file.write(str(number))
    """)
    run(pytester, USER_WORKERS, "-o", "sandbox_namespace=always").assert_outcomes(passed=8)
    assert sorted(os.listdir(data)) == sorted(os.listdir(other)) == ["kept", "sub"]
