"""Settings: environment, overrides and defaults."""

from pathlib import Path

import pytest

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.models import KeepRules
from sandpoint.settings import Settings, read_settings, resolve


def test_defaults_lie_in_the_users_own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = read_settings({})
    assert settings.store == f"file://{tmp_path}/.local/share/sandpoint/store"
    assert settings.state_dir == f"{tmp_path}/.local/state/sandpoint"
    assert (settings.sandbox, settings.allowed_dirs, settings.compression) == ("local", None, "zstd")


def test_the_default_state_directory_is_where_links_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to("real")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    assert read_settings({}).state_dir == f"{tmp_path}/real/sandpoint"


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("SANDPOINT_STORE", "file:///srv/store", "store", "file:///srv/store"),
        ("SANDPOINT_SANDBOX", "docker:web", "sandbox", "docker:web"),
        ("SANDPOINT_ALLOWED_DIRS", "/srv/a:/srv/b", "allowed_dirs", ("/srv/a", "/srv/b")),
        ("SANDPOINT_ALLOWED_DIRS", "/srv/a::", "allowed_dirs", ("/srv/a",)),
        ("SANDPOINT_ALLOWED_DIRS", ":", "allowed_dirs", ()),
        ("SANDPOINT_STATE_DIR", "/srv/state", "state_dir", "/srv/state"),
        ("SANDPOINT_COMPRESSION", "lz4", "compression", "lz4"),
        ("SANDPOINT_PRUNE_EVERY", "0.5", "prune_every", 0.5),
        ("SANDPOINT_KEEP", "last=5", "keep", KeepRules(keep_last=5)),
        (
            "SANDPOINT_KEEP",
            "last=1, hourly=2,daily=3,weekly=4,name=release-*, name=a=b",
            "keep",
            KeepRules(keep_last=1, keep_hourly=2, keep_daily=3, keep_weekly=4, keep_names=("release-*", "a=b")),
        ),
    ],
)
def test_each_variable(variable: str, value: str, field: str, expected: object) -> None:
    assert getattr(read_settings({variable: value}), field) == expected


def test_a_server_does_not_prune_unless_told() -> None:
    settings = read_settings({})
    assert settings.prune_every is None
    assert not settings.keep


def test_an_empty_variable_counts_as_unset() -> None:
    environment = {"SANDPOINT_COMPRESSION": "", "SANDPOINT_ALLOWED_DIRS": "", "SANDPOINT_STATE_DIR": ""}
    assert read_settings(environment) == read_settings({})


def test_an_override_wins_and_none_is_no_override() -> None:
    environment = {"SANDPOINT_STORE": "file:///a", "SANDPOINT_SANDBOX": "local"}
    settings = read_settings(environment, store="file:///b", sandbox=None)
    assert (settings.store, settings.sandbox) == ("file:///b", "local")


def test_an_override_to_no_directories_is_not_lost() -> None:
    assert read_settings({"SANDPOINT_ALLOWED_DIRS": "/a"}, allowed_dirs=()).allowed_dirs == ()


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"SANDPOINT_COMPRESSION": "gzip"}, "compression"),
        ({"SANDPOINT_STATE_DIR": "state"}, "state_dir: 'state' is relative"),
        ({"SANDPOINT_ALLOWED_DIRS": "/srv:work"}, "allowed_dirs: 'work' is relative"),
        ({"SANDPOINT_PRUNE_EVERY": "0"}, "prune_every: must be more than 0"),
        ({"SANDPOINT_PRUNE_EVERY": "inf"}, "prune_every: must be a finite number"),
        ({"SANDPOINT_PRUNE_EVERY": "daily"}, "prune_every: must be a number"),
        ({"SANDPOINT_KEEP": "5"}, "keep: '5' is no rule, .* write last=N"),
        ({"SANDPOINT_KEEP": "last=x"}, "keep: 'last=x' is no rule"),
        ({"SANDPOINT_KEEP": "{0}"}, r"keep: '\{0\}' is no rule"),
        ({"SANDPOINT_KEEP": "last=-1"}, "keep: 'last=-1' is no rule"),
        ({"SANDPOINT_KEEP": "last=1,last=2"}, "keep: 'last=2' is no rule, or the second of its kind"),
        ({"SANDPOINT_KEEP": "names=x"}, "keep: 'names=x' is no rule"),
        ({"SANDPOINT_KEEP": "yearly=1"}, "keep: 'yearly=1' is no rule"),
        ({"SANDPOINT_KEEP": "last=5,"}, "keep: '' is no rule"),
        ({"SANDPOINT_KEEP": "last=0"}, "keep.keep_last: must be at least 1"),
        ({"SANDPOINT_KEEP": "name="}, "keep.keep_names.0: must not be empty"),
    ],
)
def test_a_bad_value_is_named(environment: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=named):
        read_settings(environment)


def test_an_unknown_override_is_refused() -> None:
    with pytest.raises(InvalidBackupConfigError, match="stores: no such option"):
        read_settings({}, stores="x")


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().store = "file:///x"  # type: ignore[misc]


def test_resolve_follows_links_and_survives_a_loop(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "loop").symlink_to("loop")
    assert resolve(f"{tmp_path}/link/../link/x") == f"{tmp_path}/there/x"
    assert resolve(f"{tmp_path}/loop/x").startswith(str(tmp_path))


def test_names_of_sandboxes_are_checked_and_patterns_split() -> None:
    settings = read_settings({"SANDPOINT_SANDBOXES": " docker:agent-*, docker:web,local,"})
    assert settings.sandboxes == ("docker:agent-*", "docker:web", "local")
    for variable, value in (("SANDBOXES", "docker:web,*"), ("SANDBOX", "web"), ("SANDBOX", "docker:")):
        with pytest.raises(InvalidBackupConfigError, match="is unknown; use 'local', or 'docker:NAME'"):
            read_settings({f"SANDPOINT_{variable}": value})


def test_links_of_this_machine_mean_nothing_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/srv")
    allowed = {"SANDPOINT_ALLOWED_DIRS": f"{tmp_path}/link/:/a/../b"}
    assert read_settings(allowed).allowed_dirs == ("/srv", "/b")
    for containers in ({"SANDPOINT_SANDBOX": "docker:web"}, {"SANDPOINT_SANDBOXES": "docker:web"}):
        assert read_settings(allowed | containers).allowed_dirs == (f"{tmp_path}/link", "/b")
