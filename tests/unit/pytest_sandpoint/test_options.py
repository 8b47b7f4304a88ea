"""The options of a run: the command line first, then the ini-file."""

from pathlib import Path

import pytest

from pytest_sandpoint.options import Options, Strategy, UsageError, is_told, parse_strategy, read_options
from sandpoint.errors import BackupRestoreError

ROOT = Path("/root directory")
STARTED_IN = Path("/root directory/below")

INI: dict[str, object] = {
    "sandbox_checkpoint_dirs": [],
    "sandbox_strategy": "auto",
    "sandbox_namespace": "auto",
    "sandbox_keep_failed": False,
    "sandbox_kept_dir": "",
    "sandbox_report": False,
    "sandbox_name": "",
    "sandbox_docker_image": "",
}
"""What pytest says of an ini-file that says nothing."""


class Source:
    """Options as pytest has them: None for what the command line does not say."""

    def __init__(self, given: dict[str, object] | None = None, noted: dict[str, object] | None = None) -> None:
        self._given = given or {}
        self._noted = INI | (noted or {})

    def getoption(self, name: str, default: object = None) -> object:
        return self._given.get(name, default)

    def getini(self, name: str) -> object:
        return self._noted[name]


def read(
    given: dict[str, object] | None = None,
    noted: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
) -> Options:
    return read_options(Source(given, noted), root=ROOT, started_in=STARTED_IN, environment=environment or {})


def test_nothing_said_is_nothing_done() -> None:
    assert read() == Options(
        dirs=(), strategy="auto", namespace="auto", keep_failed=False, kept_dir=None, report=False, root=str(ROOT)
    )
    assert not read().is_needed_from_the_start


def test_the_sandbox_is_that_of_the_command_line_then_the_ini_file_then_the_environment() -> None:
    given: dict[str, object] = {"sandbox_name": "docker:given"}
    noted: dict[str, object] = {"sandbox_name": "docker:noted"}
    environment = {"SANDPOINT_SANDBOX": "docker:environment"}
    assert read(given, noted, environment).sandbox == "docker:given"
    assert read(noted=noted, environment=environment).sandbox == "docker:noted"
    assert read(environment=environment).sandbox == "docker:environment"
    assert read().sandbox == "local"
    assert not read(environment=environment).is_here


def test_directories_in_a_container_are_absolute_and_need_nothing_of_this_machine() -> None:
    options = read({"sandbox_name": "docker:web", "sandbox_checkpoint_dir": ["/b", "/b/c"]})
    assert options.dirs == ("/b", "/b/c")
    assert not options.is_needed_from_the_start
    with pytest.raises(UsageError, match="'b' is relative; in docker:web name an absolute path"):
        read({"sandbox_name": "docker:web"}, {"sandbox_checkpoint_dirs": ["b"]})


def test_the_image_is_that_of_the_command_line_then_the_ini_file() -> None:
    assert read({"sandbox_docker_image": "a:1"}, {"sandbox_docker_image": "b:1"}).docker_image == "a:1"
    assert read(noted={"sandbox_docker_image": "b:1"}).docker_image == "b:1"
    assert read().docker_image is None


def test_directories_of_both_sources_count_each_from_its_own_place() -> None:
    options = read(
        {"sandbox_checkpoint_dir": ["data", "../other", "/absolute"]},
        {"sandbox_checkpoint_dirs": ["data", "other/", "/absolute/./here"]},
    )
    assert set(options.dirs) == {f"{ROOT}/data", f"{ROOT}/other", "/absolute/here", f"{STARTED_IN}/data", "/absolute"}
    assert len(options.dirs) == 5
    assert options.is_needed_from_the_start


def test_an_outer_directory_comes_before_those_inside_it() -> None:
    options = read({"sandbox_checkpoint_dir": ["/a/b/c", "/z", "/a"]}, {"sandbox_checkpoint_dirs": ["/a/b"]})
    order = [options.dirs.index(each) for each in ("/a", "/a/b", "/a/b/c")]
    assert order == sorted(order)
    assert "/z" in options.dirs


@pytest.mark.parametrize(
    ("given", "noted", "wanted"),
    [
        (None, "auto", "auto"),
        (None, "copy", "copy"),
        ("overlay", "copy", "overlay"),
        ("auto", "copy", "auto"),
        ("copy", "nonsense", "copy"),
    ],
)
def test_the_command_line_wins_with_the_strategy(given: str | None, noted: str, wanted: Strategy) -> None:
    assert read({"sandbox_strategy": given}, {"sandbox_strategy": noted}).strategy == wanted


@pytest.mark.parametrize(
    ("given", "noted", "wanted"),
    [(None, "always", "always"), ("never", "always", "never"), ("auto", "never", "auto"), (None, "auto", "auto")],
)
def test_the_command_line_wins_with_the_namespace(given: str | None, noted: str, wanted: str) -> None:
    options = read({"sandbox_namespace": given}, {"sandbox_namespace": noted})
    assert options.namespace == wanted
    assert options.is_needed_from_the_start == (wanted == "always")


@pytest.mark.parametrize("name", ["sandbox_keep_failed", "sandbox_report"])
def test_switches_are_turned_on_by_either(name: str) -> None:
    field = name.removeprefix("sandbox_")
    assert getattr(read({name: True}), field) is True
    assert getattr(read(None, {name: True}), field) is True
    assert getattr(read({name: False}, {name: True}), field) is False


@pytest.mark.parametrize(
    ("given", "noted", "wanted"),
    [
        (None, "", None),
        (None, "kept", f"{ROOT}/kept"),
        ("kept", "other", f"{STARTED_IN}/kept"),
        ("../kept", "", f"{ROOT}/kept"),
        ("/kept/", "", "/kept"),
    ],
)
def test_the_place_of_kept_trees_is_relative_to_where_it_was_said(
    given: str | None, noted: str, wanted: str | None
) -> None:
    assert read({"sandbox_kept_dir": given}, {"sandbox_kept_dir": noted}).kept_dir == wanted


@pytest.mark.parametrize("name", ["sandbox_strategy", "sandbox_namespace"])
@pytest.mark.parametrize("value", ["nonsense", "", "AUTO", 5])
def test_values_that_there_are_not_are_refused_wherever_they_come_from(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name}: {value!r} is unknown; use auto, "):
        read({name: value})
    with pytest.raises(UsageError, match=f"{name}: {value!r} is unknown; use auto, "):
        read(None, {name: value})


def test_a_strategy_is_parsed_by_its_name() -> None:
    assert [parse_strategy(name) for name in ("auto", "overlay", "copy")] == ["auto", "overlay", "copy"]
    with pytest.raises(UsageError, match="None is unknown"):
        parse_strategy(None)


@pytest.mark.parametrize(
    ("error", "told"), [(UsageError("x"), True), (BackupRestoreError("x"), True), (RuntimeError("x"), False)]
)
def test_our_own_errors_say_all_that_there_is_to_say(error: Exception, told: bool) -> None:
    with pytest.raises(type(error)) as failure:
        raise error
    assert is_told(failure) == told
