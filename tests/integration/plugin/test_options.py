"""Every option, by command line and by ini-file, and which of them wins."""

import os
import shutil
from pathlib import Path

import pytest

from helpers.pytest_runs import ROOT, ROOT_WORKERS, USER, USER_WORKERS, Way, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays and another user need root")

SHOWS = """
    import os

    def mounted():
        with open("/proc/self/mountinfo") as mounts:
            found = [line.split() for line in mounts]
        return sorted({line[4].replace("\\\\040", " ") for line in found if line[-2] == "sandpoint-checkpoint"})

    def test_writes():
        print("\\nmounted:", *(os.path.relpath(each) for each in mounted()))
        print("\\nnamespace:", os.readlink("/proc/self/ns/mnt"))
        for directory in ("data", "other", "started in/data"):
            if os.path.isdir(directory):
                assert not os.path.exists(f"{directory}/new")
                open(f"{directory}/new", "w").close()

    def test_sees():
        print("\\nwritten:", *(each for each in ("data", "other", "started in/data") if os.path.exists(f"{each}/new")))
"""

NAMESPACE = os.readlink("/proc/self/ns/mnt")


def shown(result: pytest.RunResult, what: str) -> str:
    """Return what the first of the tests printed; later ones may do so too."""
    return next(line.partition(":")[2].strip() for line in result.outlines if line.startswith(f"{what}:"))


def header(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("sandpoint: ")]


def ini(pytester: pytest.Pytester, *lines: str) -> None:
    pytester.makeini("\n".join(["[pytest]", *lines]))


@pytest.fixture(autouse=True)
def tests(pytester: pytest.Pytester, data: Path) -> None:
    shutil.copytree(data, pytester.path / "other")
    shutil.copytree(data, pytester.path / "started in" / "data")
    pytester.makepyfile(test_it=SHOWS)


# -- directories --


def test_directories_of_the_command_line_are_relative_to_where_pytest_was_started(pytester: pytest.Pytester) -> None:
    ini(pytester)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pytester.path / "started in")
        pytester.makeconftest(f"import os\nos.chdir({str(pytester.path)!r})")
        result = run(
            pytester, ROOT, "--sandbox-checkpoint-dir=data", "--sandbox-checkpoint-dir", "../other", "-s", ".."
        )
    result.assert_outcomes(passed=2)
    assert shown(result, "mounted") == "other started in/data"
    assert shown(result, "written") == "data"
    [line] = header(result)
    assert set(line.removeprefix("sandpoint: overlay, every test gets back ").split(", ")) == {
        "started in/data",
        "other",
    }


def test_directories_of_the_ini_file_are_relative_to_the_root_directory(pytester: pytest.Pytester) -> None:
    ini(pytester, "sandbox_checkpoint_dirs =", "    data", f"    {pytester.path}/other")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pytester.path / "started in")
        pytester.makeconftest(f"import os\nos.chdir({str(pytester.path)!r})")
        result = run(pytester, ROOT, "-s", "..")
    result.assert_outcomes(passed=2)
    assert shown(result, "mounted") == "data other"
    assert shown(result, "written") == "started in/data"
    assert header(result) == ["sandpoint: overlay, every test gets back data, other"]


def test_directories_of_both_are_protected_and_of_the_same_one_only_once(pytester: pytest.Pytester) -> None:
    ini(pytester, "sandbox_checkpoint_dirs = data")
    result = run(pytester, ROOT, "--sandbox-checkpoint-dir=./data/", "--sandbox-checkpoint-dir=other", "-s")
    result.assert_outcomes(passed=2)
    assert header(result) == ["sandpoint: overlay, every test gets back data, other"]
    assert shown(result, "written") == "started in/data"


def test_a_directory_and_one_inside_it_are_protected_in_any_order(pytester: pytest.Pytester) -> None:
    ini(pytester, "sandbox_checkpoint_dirs =", "    data/sub", "    data")
    run(pytester, ROOT).assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("way", "strategy"),
    [(ROOT, "copy"), (ROOT_WORKERS, "copy"), (USER, "auto"), (USER_WORKERS, "auto")],
    ids=lambda value: getattr(value, "name", value),
)
def test_every_test_gets_the_directories_back_whoever_runs_it(
    pytester: pytest.Pytester, data: Path, way: Way, strategy: str
) -> None:
    pytester.makepyfile(
        test_it="""
        import os
        import pytest

        @pytest.mark.parametrize("number", range(8))
        def test_it(number):
            assert sorted(os.listdir("data")) == ["kept", "sub"]
            with open("data/kept", "w") as file:
                file.write(str(number))
            with open("data/new", "x") as file:
                file.write(str(number))
    """
    )
    result = run(pytester, way, "--sandbox-checkpoint-dir=data", f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=8)
    assert (data / "kept").read_text() == "kept\n"
    assert sorted(os.listdir(data)) == ["kept", "sub"]
    [line] = header(result)
    assert line.startswith("sandpoint: copy" if strategy == "copy" else "sandpoint: overlay")
    assert line.endswith(", every test gets back data")


# -- strategy --


@pytest.mark.parametrize(
    ("noted", "given", "strategy"),
    [
        (None, None, "overlay"),
        (None, "copy", "copy"),
        ("copy", None, "copy"),
        ("copy", "overlay", "overlay"),
        ("overlay", "copy", "copy"),
        ("copy", "auto", "overlay"),
    ],
)
def test_the_command_line_chooses_the_strategy_before_the_ini_file(
    pytester: pytest.Pytester, noted: str | None, given: str | None, strategy: str
) -> None:
    ini(pytester, *([f"sandbox_strategy = {noted}"] if noted else []))
    pytester.makepyfile(
        test_it=f"""
        import pytest

        OF_THE_FACTORY = [(None, {strategy!r}), ("copy", "copy"), ("overlay", "overlay"), ("auto", "overlay")]

        @pytest.mark.parametrize(("asked_for", "strategy"), OF_THE_FACTORY)
        def test_the_factory_wins(sandbox_checkpoint, asked_for, strategy):
            checkpoint = sandbox_checkpoint("data", strategy=asked_for)
            assert checkpoint.strategy == strategy
    """
    )
    given_too = [f"--sandbox-strategy={given}"] if given else []
    run(pytester, ROOT, *given_too).assert_outcomes(passed=4)


# -- namespace --


@pytest.mark.parametrize("by", ["command line", "ini"])
def test_always_enters_a_namespace_that_nothing_asked_for(pytester: pytest.Pytester, by: str) -> None:
    ini(pytester, *(["sandbox_namespace = always"] if by == "ini" else ["sandbox_namespace = never"]))
    result = run(pytester, ROOT, "-s", *(["--sandbox-namespace=always"] if by == "command line" else []))
    result.assert_outcomes(passed=2)
    assert shown(result, "namespace") != NAMESPACE
    assert header(result) == ["sandpoint: overlay"]


@pytest.mark.parametrize("by", ["command line", "ini"])
def test_never_enters_none_whatever_is_asked_for(pytester: pytest.Pytester, by: str) -> None:
    ini(
        pytester,
        "sandbox_checkpoint_dirs = data",
        *(["sandbox_namespace = never"] if by == "ini" else ["sandbox_namespace = always"]),
    )
    result = run(pytester, ROOT, "-s", *(["--sandbox-namespace=never"] if by == "command line" else []))
    result.assert_outcomes(passed=2)
    assert shown(result, "namespace") == NAMESPACE
    assert shown(result, "written") == "other started in/data"
    assert header(result) == ["sandpoint: copy, every test gets back data"]


def test_auto_enters_one_when_a_test_needs_it(pytester: pytest.Pytester) -> None:
    ini(pytester, "sandbox_namespace = always")
    result = run(pytester, ROOT, "-s", "--sandbox-namespace=auto")
    result.assert_outcomes(passed=2)
    assert shown(result, "namespace") == NAMESPACE
    assert not header(result)
    with (pytester.path / "test_it.py").open("a") as file:
        file.write("\n\ndef test_needs_it(sandbox_checkpoint):\n    sandbox_checkpoint('data')\n")
    result = run(pytester, ROOT, "-s", "--sandbox-namespace=auto")
    assert shown(result, "namespace") != NAMESPACE


def test_an_ordinary_user_chooses_when_too(pytester: pytest.Pytester) -> None:
    result = run(pytester, USER, "-s", "--sandbox-namespace=always")
    result.assert_outcomes(passed=2)
    assert header(result) == ["sandpoint: overlay"]


# -- reports --

FAILS = """
    def test_fails():
        open("data/new", "w").close()
        raise AssertionError

    def test_passes():
        open("data/passes", "w").close()
"""


@pytest.mark.parametrize("by", ["command line", "ini", "command line, relative", "ini, relative"])
def test_trees_of_failed_tests_are_kept_where_it_is_said(pytester: pytest.Pytester, by: str) -> None:
    place = "kept trees" if "relative" in by else str(pytester.path / "kept trees")
    if by.startswith("ini"):
        ini(pytester, "sandbox_checkpoint_dirs = data", "sandbox_keep_failed = true", f"sandbox_kept_dir = {place}")
        arguments = []
    else:
        ini(pytester, "sandbox_checkpoint_dirs = data", "sandbox_kept_dir = nowhere")
        place = f"../{place}" if "relative" in by else place
        arguments = ["--sandbox-keep-failed", "--sandbox-kept-dir", place]
    pytester.makepyfile(test_it=FAILS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pytester.path / "other")
        pytester.makeconftest(f"import os\nos.chdir({str(pytester.path)!r})")
        result = run(pytester, ROOT, *arguments, "..")
    result.assert_outcomes(passed=1, failed=1)
    [kept] = (pytester.path / "kept trees").iterdir()
    assert sorted(os.listdir(kept / "data")) == ["kept", "new", "sub"]
    result.stdout.fnmatch_lines([f"{pytester.path}/data as the test left it: {kept}/data"])


def test_without_a_place_they_are_kept_among_the_temporary_files(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=FAILS)
    temporary = pytester.mkdir("temporary")
    arguments = ("--sandbox-keep-failed", "--sandbox-checkpoint-dir=data")
    run(pytester, ROOT, *arguments, env={"TMPDIR": str(temporary)}).assert_outcomes(passed=1, failed=1)
    [kept] = temporary.glob("sandpoint-failed-*/*/data")
    assert (kept / "new").exists()


def test_the_place_alone_keeps_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=FAILS)
    result = run(pytester, ROOT, "--sandbox-kept-dir=kept trees", "--sandbox-checkpoint-dir=data")
    result.assert_outcomes(passed=1, failed=1)
    assert not (pytester.path / "kept trees").exists()


@pytest.mark.parametrize("by", ["command line", "ini"])
def test_a_report_is_printed_if_asked_for(pytester: pytest.Pytester, by: str) -> None:
    ini(pytester, "sandbox_checkpoint_dirs = data", *(["sandbox_report = yes"] if by == "ini" else []))
    result = run(pytester, ROOT, *(["--sandbox-report"] if by == "command line" else []))
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*= sandpoint: changes by tests =*", f"{pytester.path}/data:", "  test_it.py::test_writes: added new"]
    )


def test_no_report_is_printed_if_not_asked_for(pytester: pytest.Pytester) -> None:
    ini(pytester, "sandbox_checkpoint_dirs = data", "sandbox_report = false")
    result = run(pytester, ROOT)
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*changes by tests*")


# -- all of them --


def test_every_option_and_ini_value_is_explained_by_help(pytester: pytest.Pytester) -> None:
    result = run(pytester, ROOT, "--help")
    assert result.ret == 0
    text = result.stdout.str()
    for name in ("checkpoint-dir", "strategy", "namespace", "keep-failed", "kept-dir", "report"):
        assert f"--sandbox-{name}" in text
    for name in ("checkpoint_dirs", "strategy", "namespace", "keep_failed", "kept_dir", "report"):
        assert f"  sandbox_{name} (" in text
    assert "sandbox_checkpoint(dir, ..., strategy=None" in run(pytester, ROOT, "--markers").stdout.str()


def test_values_of_the_ini_file_can_come_from_a_toml_file(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("""
        [tool.pytest.ini_options]
        sandbox_checkpoint_dirs = ["data", "other"]
        sandbox_strategy = "copy"
        sandbox_report = true
        sandbox_keep_failed = true
        sandbox_kept_dir = "kept trees"
    """)
    pytester.makepyfile(test_it=FAILS)
    result = run(pytester, ROOT)
    result.assert_outcomes(passed=1, failed=1)
    assert header(result) == ["sandpoint: copy, every test gets back data, other"]
    assert len(list((pytester.path / "kept trees").iterdir())) == 2
    result.stdout.fnmatch_lines(["*changes by tests*", "  test_it.py::test_fails: added new"])


def test_workers_have_the_options_of_their_controller(pytester: pytest.Pytester) -> None:
    ini(pytester)
    pytester.makepyfile(
        test_it=f"""
        import os
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(number, sandbox_checkpoint):
            assert sandbox_checkpoint("other").strategy == "copy"
            open({str(pytester.path)!r} + "/started in/data/new", "x").close()
    """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pytester.path / "started in")
        arguments = ("--sandbox-checkpoint-dir=data", "--sandbox-strategy=copy")
        run(pytester, ROOT_WORKERS, *arguments, "..").assert_outcomes(passed=4)
    assert not (pytester.path / "started in" / "data" / "new").exists()
