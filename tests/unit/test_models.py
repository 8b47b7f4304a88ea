"""The rules of options, of metadata, and of expiry."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.models import (
    DEFAULT_TTL,
    MAX_TTL,
    Backup,
    BackupMetadata,
    Changes,
    CreateOptions,
    ListOptions,
    RestoreOptions,
    Strict,
    check_options,
    describe_invalid,
    parse_backup_id,
)

ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def create(**options: Any) -> CreateOptions:
    return check_options(CreateOptions, {"dir": "/work", **options})


def refused(model: type[Strict], **options: Any) -> str:
    with pytest.raises(InvalidBackupConfigError) as caught:
        check_options(model, options)
    return str(caught.value)


def stored(**changes: Any) -> BackupMetadata:
    file = {"size": 1, "sha256": "0" * 64}
    values = {
        "formatVersion": 1,
        "id": ID,
        "dir": "/work",
        "sandboxId": "local:0",
        "ttl": DEFAULT_TTL,
        "createdAt": NOW,
        "expiresAt": NOW + timedelta(seconds=DEFAULT_TTL),
        "sizeBytes": 1,
        "totalBytes": 1,
        "fileCount": 1,
        "manifest": {"key": f"backups/{ID}/manifest.zst", **file},
        "layers": [{"key": f"backups/{ID}/data.sqsh", **file}],
    }
    return BackupMetadata.model_validate(values | changes)


# -- create --


def test_the_defaults_of_create() -> None:
    options = create()
    assert (options.ttl, options.excludes, options.use_gitignore, options.full) == (259_200, (), False, False)
    assert (options.name, options.description, options.metadata) == (None, None, {})


@pytest.mark.parametrize("name", ["a", "x" * 256, "caf\u00e9 \U0001f600", "-rf", "a\u00a0b"])
def test_a_good_name(name: str) -> None:
    assert create(name=name).name == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "name: must not be empty"),
        ("x" * 257, "name: a name has at most 256 characters, this one has 257"),
        ("a\nb", r"name: a name may not hold control characters; remove '\\n'"),
        ("a\0", "control characters"),
        ("\x1b[31m", "control characters"),
        ("\x7f", "control characters"),
        ("\x85", "control characters"),
        ("\ud800", "unicode"),
        (5, "name: must be text (got 5)"),
        (b"bytes", "name: must be text"),
    ],
)
def test_a_bad_name(name: object, why: str) -> None:
    assert why.replace("\\\\", "\\") in refused(CreateOptions, dir="/work", name=name)


def test_a_description_has_lines_and_a_limit() -> None:
    assert create(description="one\n\ttwo").description == "one\n\ttwo"
    assert "at most 4096" in refused(CreateOptions, dir="/work", description="x" * 4097)
    assert "control characters" in refused(CreateOptions, dir="/work", description="a\rb")


@pytest.mark.parametrize("ttl", [1, 60, 0.5, 1e-9, 259_200, MAX_TTL, float(MAX_TTL)])
def test_a_good_ttl(ttl: float) -> None:
    assert create(ttl=ttl).ttl == ttl


def test_whole_seconds_are_kept_as_an_int() -> None:
    assert isinstance(create(ttl=60.0).ttl, int)
    assert isinstance(create(ttl=60.5).ttl, float)


@pytest.mark.parametrize(
    "ttl",
    [0, -1, -0.0, float("nan"), float("inf"), float("-inf"), MAX_TTL + 1, 1e300, 10**400, 10**5000, -(10**5000)],
    ids=["zero", "negative", "-0.0", "nan", "inf", "-inf", "above", "1e300", "10**400", "10**5000", "-(10**5000)"],
)
def test_a_ttl_that_is_no_time(ttl: float) -> None:
    message = refused(CreateOptions, dir="/work", ttl=ttl)
    assert message.startswith(f"ttl: must be a number of seconds above 0 and at most {MAX_TTL} (got ")
    assert len(message) < 300


@pytest.mark.parametrize("ttl", [True, False, "60", None, [60], 1j, {}])
def test_a_ttl_that_is_no_number(ttl: object) -> None:
    assert "ttl: not a number of seconds (got" in refused(CreateOptions, dir="/work", ttl=ttl)


def test_excludes() -> None:
    assert create(excludes=("node_modules/", " ")[:1]).excludes == ("node_modules/",)
    assert create(excludes=["a", "b"]).excludes == ("a", "b")
    assert len(create(excludes=("x",) * 1000).excludes) == 1000


@pytest.mark.parametrize("exclude", ["", "  ", "a\0b", "a\nb", "x" * 4097, "\udcff", 5, None])
def test_a_bad_exclude(exclude: object) -> None:
    assert "excludes.1: " in refused(CreateOptions, dir="/work", excludes=("good", exclude))


def test_excludes_are_a_list_and_not_too_long() -> None:
    assert "excludes: " in refused(CreateOptions, dir="/work", excludes="*.log")
    assert "excludes: " in refused(CreateOptions, dir="/work", excludes=("x",) * 1001)


def test_metadata() -> None:
    assert create(metadata={"k" * 256: "v" * 1024, "lines": "a\nb"}).metadata["lines"] == "a\nb"
    assert len(create(metadata={str(n): "" for n in range(64)}).metadata) == 64


@pytest.mark.parametrize(
    "metadata",
    [
        {str(n): "" for n in range(65)},
        {"": "empty key"},
        {"k" * 257: "v"},
        {"k": "v" * 1025},
        {"k\n": "v"},
        {"k": "\x1b"},
        {"k": 5},
        {5: "v"},
        {"k": None},
        [("k", "v")],
    ],
)
def test_bad_metadata(metadata: object) -> None:
    assert refused(CreateOptions, dir="/work", metadata=metadata).startswith("metadata")


@pytest.mark.parametrize("field", ["use_gitignore", "full", "freeze"])
@pytest.mark.parametrize("value", [1, "yes", None])
def test_a_flag_is_a_bool(field: str, value: object) -> None:
    assert f"{field}: must be true or false" in refused(CreateOptions, **{"dir": "/work", field: value})


# -- restore and list --


@pytest.mark.parametrize(
    ("given_id", "expected"),
    [(ID, ID), (ID.upper(), ID), ("00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000000")],
)
def test_an_id_has_one_form(given_id: str, expected: str) -> None:
    assert parse_backup_id(given_id) == expected
    assert RestoreOptions(backup_id=given_id).backup_id == expected


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "latest",
        ID[:-1],
        ID + "0",
        ID + "\n",
        f" {ID}",
        ID.replace("-", ""),
        f"{{{ID}}}",
        f"urn:uuid:{ID}",
        ID.replace("a", "g"),
        f"../{ID}",
        f"{ID}/../{ID}",
        "\u0660" + ID[1:],
    ],
)
def test_a_bad_id(bad: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match="no backup id; ids are UUIDs such as"):
        parse_backup_id(bad)
    assert "backup_id: " in refused(RestoreOptions, backup_id=bad)


@pytest.mark.parametrize("bad", [None, 5, b"x", ["x"]])
def test_an_id_that_is_no_text(bad: Any) -> None:
    with pytest.raises(InvalidBackupConfigError):
        parse_backup_id(bad)
    assert "backup_id: " in refused(RestoreOptions, backup_id=bad)


def test_paths() -> None:
    options = check_options(RestoreOptions, {"backup_id": ID, "paths": ["src/app.py", "a dir/", "...", "-x"]})
    assert options.paths == ("src/app.py", "a dir", "...", "-x")


@pytest.mark.parametrize("path", ["", "/", "/etc", "..", "a/../b", ".", "./a", "a/.", "a//b", "a\0b", "a/..", "\ud800"])
def test_a_bad_path(path: str) -> None:
    assert "paths.0: " in refused(RestoreOptions, backup_id=ID, paths=(path,))


def test_paths_are_a_list() -> None:
    assert "paths: " in refused(RestoreOptions, backup_id=ID, paths="src")


@pytest.mark.parametrize("mode", ["", "Copy", "clone", None, 1])
def test_a_bad_mode(mode: object) -> None:
    assert "mode: must be 'auto', 'overlay' or 'copy'" in refused(RestoreOptions, backup_id=ID, mode=mode)


@pytest.mark.parametrize("limit", [1, 20, 1000])
def test_a_good_limit(limit: int) -> None:
    assert check_options(ListOptions, {"limit": limit}).limit == limit


@pytest.mark.parametrize("limit", [0, -1, 1001, "20", 20.0, True, None])
def test_a_bad_limit(limit: object) -> None:
    assert refused(ListOptions, limit=limit).startswith("limit: ")


# -- what a refusal says --


def test_every_wrong_field_is_named_in_one_sentence_each() -> None:
    message = refused(CreateOptions, ttl=0, name="", color="red")
    assert message == (
        "dir: must be given; name: must not be empty (got ''); "
        f"ttl: must be a number of seconds above 0 and at most {MAX_TTL} (got 0); color: no such option (got 'red')"
    )


def test_a_refusal_quotes_no_more_than_a_line() -> None:
    assert len(refused(CreateOptions, dir="/work", name=["x" * 10_000])) < 200


def test_a_refusal_of_the_whole_names_the_arguments() -> None:
    with pytest.raises(ValidationError) as caught:
        CreateOptions.model_validate(5)
    assert describe_invalid(caught.value).startswith("arguments: ")


def test_options_do_not_change() -> None:
    with pytest.raises(ValidationError):
        create().ttl = 5  # type: ignore[misc]


# -- expiry --


@pytest.mark.parametrize(
    ("ttl", "restorable"),
    [(1, 1), (0.5, 0.5), (59, 59), (60, 60), (61, 60), (100, 60), (120, 60), (121, 61), (259_200, 259_140)],
)
def test_the_buffer_never_eats_into_the_first_minute(ttl: float, restorable: float) -> None:
    backup = stored(ttl=ttl)
    end = NOW + timedelta(seconds=restorable)
    assert backup.restorable_until == end
    assert not backup.is_expired(end - timedelta(microseconds=1))
    assert backup.is_expired(end)


@given(st.floats(min_value=1e-3, max_value=MAX_TTL) | st.integers(1, MAX_TTL))
@hypothesis_settings(deadline=None, max_examples=200)
def test_a_fresh_backup_lives(ttl: float) -> None:
    lives = (stored(ttl=ttl).restorable_until - NOW).total_seconds()
    assert lives >= min(ttl, 60) - 1e-5
    assert ttl - 60 - 1e-5 <= lives <= ttl + 1e-5


# -- metadata --


def test_metadata_reads_what_it_wrote() -> None:
    backup = stored(description="two\nlines", excludes=("*.log",), metadata={"k": "v"})
    written = backup.model_dump_json(by_alias=True)
    assert '"sizeBytes"' in written
    assert BackupMetadata.model_validate_json(written) == backup


def test_fields_of_others_are_let_through() -> None:
    assert stored(somethingNew=1).id == ID


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("formatVersion", 2),
        ("id", "nonsense"),
        ("ttl", 0),
        ("ttl", 10**400),
        ("createdAt", "2026-01-01T00:00:00"),
        ("createdAt", "9999-12-31T23:59:59Z"),
        ("createdAt", "0001-01-01T00:00:00Z"),
        ("expiresAt", "2026-01-01T00:00:00"),
        ("expiresAt", "9999-12-31T23:59:59Z"),
        ("sizeBytes", -1),
        ("layers", []),
        ("excludes", [""]),
        ("excludes", ["a\nb"]),
        ("metadata", {"k": 5}),
        ("kind", "half"),
    ],
)
def test_metadata_that_breaks_a_rule(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        stored(**{field: value})


@pytest.mark.parametrize(
    "key",
    [
        "backups/../../etc/passwd",
        f"backups/{ID}/../x.y",
        f"/backups/{ID}/data.sqsh",
        f"backups/{ID}/data.sqsh\n",
        f"backups/{ID}/.hidden",
        f"backups/{ID}/a/b.c",
        "meta.json",
    ],
)
def test_a_layer_lies_in_the_folder_of_a_backup(key: str) -> None:
    with pytest.raises(ValidationError):
        stored(layers=[{"key": key, "size": 1, "sha256": "0" * 64}])


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n"])
def test_a_digest_has_one_form(sha256: str) -> None:
    with pytest.raises(ValidationError):
        stored(manifest={"key": f"backups/{ID}/manifest.zst", "size": 1, "sha256": sha256})


def test_a_backup_says_what_the_metadata_says() -> None:
    backup = Backup.from_metadata(stored(name="n", useGitignore=True, metadata={"k": "v"}))
    assert (backup.id, backup.name, backup.use_gitignore, backup.metadata) == (ID, "n", True, {"k": "v"})
    assert (backup.unstable_paths, backup.skipped_mounts) == ((), ())


def test_changes_are_true_when_anything_differs() -> None:
    assert not Changes()
    assert all(Changes(**{field: ("x",)}) for field in ("added", "modified", "removed"))
