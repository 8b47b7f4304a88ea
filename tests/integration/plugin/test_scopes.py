"""How long checkpoints last, and how they lie upon one another."""

import os
from pathlib import Path

import pytest

from helpers.pytest_runs import ROOT, USER_WORKERS, run
from helpers.trees import list_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays and another user need root")

STRATEGIES = ("overlay", "copy")

BUILT_IN_LAYERS = """
    import os
    import pytest

    @pytest.fixture(scope="session")
    def built_once(sandbox_checkpoint_session):
        checkpoint = sandbox_checkpoint_session("data")
        assert sorted(os.listdir("data")) == ["kept", "sub"]
        (checkpoint.path / "session").write_text("session")
        return checkpoint

    @pytest.fixture(scope="module")
    def for_the_module(for_the_package, sandbox_checkpoint_module):
        checkpoint = sandbox_checkpoint_module("data")
        (checkpoint.path / "module").write_text("module")
        (checkpoint.path / "session").write_text("and module")
        return checkpoint

    @pytest.fixture(scope="class")
    def for_the_class(for_the_module, sandbox_checkpoint_class):
        checkpoint = sandbox_checkpoint_class("data")
        (checkpoint.path / "class").write_text("class")
        return checkpoint

    @pytest.fixture
    def for_the_test(for_the_class, sandbox_checkpoint):
        return sandbox_checkpoint("data")
"""

FOR_THE_PACKAGE = """
    import pytest

    @pytest.fixture(scope="package")
    def for_the_package(built_once, sandbox_checkpoint_package):
        checkpoint = sandbox_checkpoint_package("data")
        (checkpoint.path / "package").write_text("package")
        return checkpoint
"""

IN_LAYERS = """
    import os
    import pytest

    def names():
        return [name for name in sorted(os.listdir("data")) if name not in ("kept", "sub")]

    class TestInLayers:
        @pytest.mark.parametrize("number", range(2))
        def test_starts_from_all_of_them(self, for_the_test, number):
            assert names() == ["class", "module", "package", "session"]
            assert open("data/session").read() == "and module"
            open("data/kept", "w").write("test")
            open("data/test", "w").write("test")
            for_the_test.restore()
            assert names() == ["class", "module", "package", "session"]
            os.unlink("data/class")

        def test_the_class_goes_on(self, for_the_class):
            assert names() == ["class", "module", "package", "session"]
            open("data/class too", "w").close()

        def test_and_on(self, for_the_class):
            assert names() == ["class", "class too", "module", "package", "session"]
            for_the_class.restore()
            assert names() == ["module", "package", "session"]

    def test_the_class_is_over(for_the_module):
        assert names() == ["module", "package", "session"]
        assert open("data/kept").read() == "kept\\n"
        for_the_module.restore()
        assert names() == ["package", "session"]
        assert open("data/session").read() == "session"
"""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_session_builds_once_a_module_adds_and_each_test_starts_from_both(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makeconftest(BUILT_IN_LAYERS)
    for folder in ("first", "second"):
        pytester.mkpydir(folder)
        pytester.makepyfile(**{f"{folder}/conftest": FOR_THE_PACKAGE})
    between = """
    def test_the_module_is_over(for_the_package):
        import os
        assert sorted(os.listdir("data")) == ["kept", "package", "session", "sub"]
    """
    after = """
    def test_the_packages_are_over(built_once):
        import os
        assert sorted(os.listdir("data")) == ["kept", "session", "sub"]
        assert open("data/session").read() == "session"
    """
    pytester.makepyfile(
        **{
            "first/test_a": IN_LAYERS,
            "first/test_b": between,
            "second/test_a": IN_LAYERS,
            "second/test_b": between,
            "test_z": after,
        }
    )
    before = list_tree(data)
    run(pytester, ROOT, f"--sandbox-strategy={strategy}", "first", "second", "test_z.py").assert_outcomes(passed=13)
    assert list_tree(data) == before


def test_every_worker_of_an_ordinary_user_builds_its_own_layers(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makeconftest(BUILT_IN_LAYERS + FOR_THE_PACKAGE.replace("\n    import pytest\n", ""))
    pytester.makepyfile(test_a=IN_LAYERS, test_b=IN_LAYERS)
    result = run(pytester, USER_WORKERS, "--dist=loadfile", "-o", "sandbox_namespace=always")
    result.assert_outcomes(passed=10)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_scope_ends_when_its_last_test_has(pytester: pytest.Pytester, data: Path, strategy: str) -> None:
    for folder in ("inner", "inner/below", "later"):
        pytester.mkpydir(folder)
    pytester.makeconftest("""
        import os
        import pytest

        @pytest.fixture(scope="session", autouse=True)
        def outlives_the_session():
            yield
            assert sorted(os.listdir("data")) == ["kept", "sub"]
    """)
    pytester.makepyfile(
        **{
            "inner/conftest": """
                import pytest

                @pytest.fixture(scope="package")
                def written(sandbox_checkpoint_package):
                    (sandbox_checkpoint_package("data").path / "package").touch()
            """,
            "inner/test_1": """
                import os

                def names():
                    return [name for name in sorted(os.listdir("data")) if name not in ("kept", "sub")]

                def test_session(sandbox_checkpoint_session):
                    (sandbox_checkpoint_session("data").path / "session").touch()

                def test_package(written):
                    assert names() == ["package", "session"]

                def test_module(sandbox_checkpoint_module):
                    (sandbox_checkpoint_module("data").path / "module").touch()

                class TestClass:
                    def test_class(self, sandbox_checkpoint_class):
                        (sandbox_checkpoint_class("data").path / "class").touch()

                    def test_goes_on(self):
                        assert names() == ["class", "module", "package", "session"]

                def test_the_class_is_over(sandbox_checkpoint):
                    assert names() == ["module", "package", "session"]
                    (sandbox_checkpoint("data").path / "test").touch()

                def test_the_test_is_over():
                    assert names() == ["module", "package", "session"]
            """,
            "inner/test_2": """
                import os

                def test_the_module_is_over():
                    assert sorted(os.listdir("data")) == ["kept", "package", "session", "sub"]
            """,
            "inner/below/test_3": """
                import os

                def test_the_package_goes_on_below():
                    assert sorted(os.listdir("data")) == ["kept", "package", "session", "sub"]
            """,
            "later/test_4": """
                import os

                def test_the_package_is_over():
                    assert sorted(os.listdir("data")) == ["kept", "session", "sub"]
            """,
        }
    )
    tests = ("inner/test_1.py", "inner/test_2.py", "inner/below", "later")
    run(pytester, ROOT, f"--sandbox-strategy={strategy}", *tests).assert_outcomes(passed=10)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_directory_may_be_checkpointed_many_times_over_in_one_test(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile("""
        import os
        import pytest

        @pytest.fixture
        def outlives_it():
            yield
            assert sorted(os.listdir("data")) == ["kept", "sub"]
            assert open("data/kept").read() == "kept\\n"

        def test_it(outlives_it, sandbox_checkpoint):
            made = []
            for number in range(12):
                made.append(sandbox_checkpoint("data"))
                open("data/kept", "w").write(str(number))
                open(f"data/new{number}", "w").close()
            made[-1].restore()
            assert open("data/kept").read() == "10"
            assert len(os.listdir("data")) == 13
    """)
    run(pytester, ROOT, f"--sandbox-strategy={strategy}").assert_outcomes(passed=1)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("inner", STRATEGIES)
def test_a_directory_inside_has_checkpoints_of_its_own(
    pytester: pytest.Pytester, data: Path, strategy: str, inner: str
) -> None:
    pytester.makepyfile(f"""
        import os
        import pytest

        @pytest.fixture(scope="module")
        def outer(sandbox_checkpoint_module):
            checkpoint = sandbox_checkpoint_module("data", strategy={strategy!r})
            (checkpoint.path / "sub" / "built").write_text("built")
            return checkpoint

        @pytest.fixture
        def inner(outer, sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data/sub", strategy={inner!r})
            assert checkpoint.strategy == {inner!r}
            return checkpoint

        @pytest.mark.parametrize("number", range(2))
        def test_it(outer, inner, number):
            assert sorted(os.listdir("data/sub")) == ["built", "inner"]
            (inner.path / "new").write_text("new")
            (inner.path / "built").unlink()
            (outer.path / f"outer{{number}}").write_text("stays for the module")
            inner.restore()
            assert sorted(os.listdir("data/sub")) == ["built", "inner"]
            (inner.path / "inner").write_text("written to")

        def test_the_outer_one_goes_on(outer):
            assert open("data/sub/inner").read() == "inner\\n"
            assert sorted(os.listdir("data")) == ["kept", "outer0", "outer1", "sub"]
            outer.restore()
            assert sorted(os.listdir("data")) == ["kept", "sub"]
            assert os.listdir("data/sub") == ["inner"]
    """)
    run(pytester, ROOT).assert_outcomes(passed=3)
    assert (data / "sub" / "inner").read_text() == "inner\n"


def test_a_checkpoint_that_a_fixture_of_each_parameter_makes_ends_with_it(
    pytester: pytest.Pytester, data: Path
) -> None:
    pytester.makepyfile("""
        import os
        import pytest

        @pytest.fixture(params=["one", "two"])
        def variant(request, sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            (checkpoint.path / request.param).touch()
            return request.param

        def test_first(variant):
            assert sorted(os.listdir("data")) == sorted(["kept", variant, "sub"])

        def test_second(variant):
            assert sorted(os.listdir("data")) == sorted(["kept", variant, "sub"])
    """)
    run(pytester, ROOT).assert_outcomes(passed=4)
