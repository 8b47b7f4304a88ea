"""What cannot be meant: each a message that says what was tried and what to do."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.pytest_runs import ROOT, ROOT_WORKERS, USER_WORKERS, run
from helpers.trees import write
from sandpoint.engine import linux

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays, mounts and another user need root")

USAGE_ERROR = pytest.ExitCode.USAGE_ERROR
PASSES = "def test_it():\n    pass\n"


@pytest.fixture
def mounted(data: Path) -> Iterator[Path]:
    point = data / "sub"
    linux.mount("none", os.fsencode(point), "tmpfs", 0, b"size=1m")
    yield point
    linux.detach(os.fsencode(point))


DIRECTORIES = [
    ("nowhere", "the directory {root}/nowhere does not exist; create it first, or name another"),
    ("data/kept", "{root}/data/kept is a file; name the directory that holds it"),
    ("dangling", "the directory {root}/dangling does not exist; create it first, or name another"),
    ("/", "'/' cannot be rolled back; name a directory of your tests"),
    ("..", "{above} holds the root directory of this run, {root}; protect that, or a directory below it"),
    ("/tmp", "/tmp holds the root directory of this run, {root}; protect that, or a directory below it"),
    ("/proc/self", "belongs to the kernel, and cannot be rolled back"),
    ("/dev", "/dev belongs to the kernel, and cannot be rolled back"),
]


@pytest.mark.parametrize("by", ["command line", "ini"])
def test_directories_of_the_options_that_cannot_be_protected_are_usage_errors(
    pytester: pytest.Pytester, data: Path, by: str
) -> None:
    (pytester.path / "dangling").symlink_to("nowhere")
    pytester.makepyfile(PASSES)
    # Each takes half a second: every one by one of the two ways.
    for named, message in DIRECTORIES[by == "ini" :: 2]:
        pytester.makeini("[pytest]\n" + (f"sandbox_checkpoint_dirs = {named}\n" if by == "ini" else ""))
        result = run(pytester, ROOT, *([f"--sandbox-checkpoint-dir={named}"] if by == "command line" else []))
        assert result.ret == USAGE_ERROR, named
        [line] = [line for line in result.errlines if line.startswith("ERROR: ")]
        assert line.startswith("ERROR: sandbox_checkpoint_dirs: ")
        assert message.format(root=pytester.path, above=pytester.path.parent) in line
        assert not result.outlines or "test session starts" not in result.stdout.str()


def test_directories_of_the_factory_that_cannot_be_protected_are_usage_errors(
    pytester: pytest.Pytester, data: Path
) -> None:
    (pytester.path / "dangling").symlink_to("nowhere")
    messages = [
        (named, message.format(root=pytester.path, above=pytester.path.parent)) for named, message in DIRECTORIES
    ]
    messages += [("", f"'' is no path; name a directory, relative to {pytester.path}"), ("a\0b", "is no path")]
    pytester.makepyfile(f"""
        import re
        import pytest
        from pytest_sandpoint import UsageError

        @pytest.mark.parametrize("strategy", ["overlay", "copy"])
        @pytest.mark.parametrize(("named", "message"), {messages!r})
        def test_it(sandbox_checkpoint, named, message, strategy):
            with pytest.raises(UsageError, match=re.escape(message)):
                sandbox_checkpoint(named, strategy=strategy)

        def test_neither_a_directory_nor_a_backup(sandbox_checkpoint):
            with pytest.raises(UsageError, match="name a directory, or a backup_id to take its directory from"):
                sandbox_checkpoint()

        def test_the_root_directory_itself(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint(".")
            (checkpoint.path / "new").touch()

        def test_it_came_back(sandbox_checkpoint):
            import os
            assert not os.path.exists("new")
    """)
    run(pytester, ROOT).assert_outcomes(passed=2 * len(messages) + 3)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("sandbox_strategy=fast", "sandbox_strategy: 'fast' is unknown; use auto, overlay, copy"),
        ("sandbox_namespace=sometimes", "sandbox_namespace: 'sometimes' is unknown; use auto, always, never"),
    ],
)
def test_choices_that_there_are_not_are_usage_errors(pytester: pytest.Pytester, option: str, message: str) -> None:
    pytester.makepyfile(PASSES)
    for arguments in (["-o", option], [f"--{option.replace('_', '-')}"]):
        result = run(pytester, ROOT, *arguments)
        assert result.ret == USAGE_ERROR
        assert f"ERROR: {message}" in result.errlines


def test_the_command_line_is_not_excused_by_the_ini_file(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nsandbox_strategy = copy\n")
    pytester.makepyfile(PASSES)
    result = run(pytester, ROOT, "--sandbox-strategy=")
    assert result.ret == USAGE_ERROR
    assert "ERROR: sandbox_strategy: '' is unknown; use auto, overlay, copy" in result.errlines


def test_a_bad_value_of_the_ini_file_does_not_matter_where_the_command_line_wins(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nsandbox_strategy = fast\n")
    pytester.makepyfile(PASSES)
    run(pytester, ROOT, "--sandbox-strategy=copy").assert_outcomes(passed=1)


def test_strategies_of_code_that_there_are_not_are_usage_errors(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makeconftest("""
        from pytest_sandpoint import checkpoint_fixture

        made_to_order = checkpoint_fixture("data", strategy="quick")
    """)
    pytester.makepyfile("""
        import pytest
        from pytest_sandpoint import UsageError

        @pytest.mark.parametrize("strategy", ["fast", "", 5, "Overlay"])
        def test_factory(sandbox_checkpoint, strategy):
            with pytest.raises(UsageError, match=f"{strategy!r} is unknown; use auto, overlay, copy"):
                sandbox_checkpoint("data", strategy=strategy)

        @pytest.mark.sandbox_checkpoint("data", strategy="fast")
        def test_marker():
            pass

        def test_fixture(made_to_order):
            pass
    """)
    result = run(pytester, ROOT)
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines_random(
        ["E  *UsageError: *'fast' is unknown; use auto, overlay, copy", "E  *UsageError: *'quick' is unknown; use *"]
    )


def test_an_unknown_scope_is_an_error_of_the_conftest(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makeconftest("""
        from pytest_sandpoint import checkpoint_fixture

        made_to_order = checkpoint_fixture("data", scope="directory")
    """)
    pytester.makepyfile(PASSES)
    result = run(pytester, ROOT)
    assert result.ret == USAGE_ERROR
    assert (
        "checkpoint_fixture: the scope 'directory' is unknown; use session, package, module, class, function"
        in result.stderr.str()
    )


# -- checkpoints that overlap --


@pytest.mark.parametrize("strategy", ["overlay", "copy"])
def test_checkpoints_that_overlap_wrongly_are_usage_errors(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    (pytester.path / "link").symlink_to("data")
    pytester.makepyfile("""
        import pytest
        from pytest_sandpoint import UsageError

        @pytest.mark.parametrize("outer", ["data", "link", "."])
        def test_outer_after_inner(sandbox_checkpoint, outer):
            checkpoint = sandbox_checkpoint("data/sub")
            with pytest.raises(UsageError, match="holds .*/data/sub, of which a checkpoint is in force already; make "):
                sandbox_checkpoint(outer)
            assert not checkpoint.changes()

        @pytest.mark.parametrize("inner", ["data", "data/sub", "link/sub"])
        def test_wider_within_narrower(request, sandbox_checkpoint, inner):
            sandbox_checkpoint("data")
            for scope in ("session", "module"):
                with pytest.raises(UsageError, match=f"for the whole {scope} cannot begin within one of .*/data for a "
                                                     "function, which ends before it; ask for it earlier"):
                    request.getfixturevalue(f"sandbox_checkpoint_{scope}")(inner)

        def test_restoring_an_outer_one(sandbox_checkpoint):
            outer, inner = sandbox_checkpoint("data"), sandbox_checkpoint("data")
            (inner.path / "new").touch()
            with pytest.raises(UsageError, match="a later checkpoint of .*/data .for a function. is in force"):
                outer.restore()
            assert (inner.path / "new").exists()
            inner.restore()
            assert not (inner.path / "new").exists()

        def test_restoring_one_that_has_another_inside(sandbox_checkpoint):
            outer, inner = sandbox_checkpoint("data"), sandbox_checkpoint("data/sub")
            (outer.path / "new").touch()
            with pytest.raises(UsageError, match="a later checkpoint of .*/data/sub .for a function. is in force"):
                outer.restore()

        ENDED = []

        def test_ends(sandbox_checkpoint):
            ENDED.append(sandbox_checkpoint("data"))

        def test_restoring_one_that_has_ended(sandbox_checkpoint):
            open("data/new", "w").close()
            with pytest.raises(UsageError, match="the checkpoint of .*/data has ended with its function"):
                ENDED[0].restore()
            import os
            os.unlink("data/new")

        def test_comparing_with_one_that_has_ended(sandbox_checkpoint):
            with pytest.raises(UsageError, match="the checkpoint of .*/data has ended with its function"):
                ENDED[0].changes()

    """)
    result = run(pytester, ROOT, f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=11)


def test_the_scope_of_neighbours_does_not_matter(pytester: pytest.Pytester, data: Path) -> None:
    write(pytester.path / "data and more" / "kept", "kept")
    pytester.makepyfile("""
        def test_it(request, sandbox_checkpoint):
            sandbox_checkpoint("data")
            request.getfixturevalue("sandbox_checkpoint_session")("data and more")
            sandbox_checkpoint("data/sub")
    """)
    run(pytester, ROOT).assert_outcomes(passed=1)


# -- overlay where it cannot be --

DEMANDS = """
    import pytest

    @pytest.mark.sandbox_checkpoint("data", strategy="overlay")
    def test_marker():
        pass

    def test_factory(sandbox_checkpoint):
        sandbox_checkpoint("data", strategy="overlay")

    def test_other(sandbox_checkpoint):
        sandbox_checkpoint("data")
"""


def test_an_overlay_without_a_namespace_is_refused(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(DEMANDS)
    result = run(pytester, ROOT, "--sandbox-namespace=never")
    result.assert_outcomes(passed=1, failed=1, errors=1)
    message = "E  *UsageError: the strategy 'overlay' was asked for, but sandbox_namespace is 'never'; or use *"
    result.stdout.fnmatch_lines([message, message])


def test_an_overlay_over_a_mount_is_refused(pytester: pytest.Pytester, data: Path, mounted: Path) -> None:
    pytester.makepyfile(DEMANDS)
    result = run(pytester, ROOT)
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        [f"E  *the strategy 'overlay' was asked for, but {mounted} inside it is a mount, which an overlay *"]
    )


def test_an_overlay_in_workers_that_were_not_prepared_is_refused_with_what_to_set(
    pytester: pytest.Pytester, data: Path
) -> None:
    pytester.makepyfile(DEMANDS)
    result = run(pytester, USER_WORKERS)
    result.assert_outcomes(passed=1, failed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["E  *the strategy 'overlay' was asked for, but *set sandbox_namespace = always in the *"]
    )


def test_a_copy_for_more_than_a_test_is_refused_in_workers(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile("""
        import pytest
        from pytest_sandpoint import UsageError

        @pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
        def test_it(request, scope):
            factory = request.getfixturevalue(f"sandbox_checkpoint_{scope}")
            with pytest.raises(UsageError, match=f"for a {scope} cannot be made by copy in a worker of pytest-xdist: .*"
                                                 "use the overlay strategy or run without -n"):
                factory("data", strategy="copy")
    """)
    run(pytester, ROOT_WORKERS).assert_outcomes(passed=4)


# -- backups --


@pytest.mark.parametrize("strategy", ["overlay", "copy"])
def test_backups_that_there_are_not_leave_everything_as_it_was(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile("""
        import os
        import pytest
        from sandpoint import BackupNotFoundError, InvalidBackupConfigError

        UNKNOWN = "01890000-0000-7000-8000-000000000000"

        @pytest.mark.parametrize("named", ["data", "new/place", None])
        def test_unknown(sandbox_checkpoint, named):
            with pytest.raises(BackupNotFoundError, match=UNKNOWN):
                sandbox_checkpoint(named, backup_id=UNKNOWN)
            assert not os.path.exists("new")
            sandbox_checkpoint("data")

        @pytest.mark.parametrize("named", ["data", None])
        def test_no_id(sandbox_checkpoint, named):
            with pytest.raises(InvalidBackupConfigError, match="backup_id: "):
                sandbox_checkpoint(named, backup_id="no-id")

        def test_unknown_store(sandbox_checkpoint):
            with pytest.raises(InvalidBackupConfigError, match="ftp"):
                sandbox_checkpoint("data", backup_id=UNKNOWN, store="ftp://example.com/")

        def test_below_a_file(sandbox_checkpoint):
            with pytest.raises(InvalidBackupConfigError, match="data/kept is not a directory"):
                sandbox_checkpoint("data/kept/below", backup_id=UNKNOWN)

        @pytest.mark.sandbox_checkpoint("data", backup_id=UNKNOWN)
        def test_marker():
            pass

        def test_nothing_is_in_force(sandbox_checkpoint_session):
            sandbox_checkpoint_session("data")
    """)
    result = run(pytester, ROOT, f"--sandbox-strategy={strategy}")
    result.assert_outcomes(passed=8, errors=1)
    result.stdout.fnmatch_lines(["E  *BackupNotFoundError: *01890000-0000-7000-8000-000000000000*"])


def test_messages_are_shown_without_our_own_lines(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile("""
        import pytest

        def test_factory(sandbox_checkpoint):
            sandbox_checkpoint("nowhere")

        @pytest.mark.sandbox_checkpoint("nowhere")
        def test_marker():
            pass

        @pytest.mark.sandbox_checkpoint("data", scope="module")
        def test_bad_marker():
            pass
    """)
    result = run(pytester, ROOT, "--sandbox-checkpoint-dir=data")
    result.assert_outcomes(failed=1, errors=2)
    result.stdout.fnmatch_lines([">*sandbox_checkpoint(*nowhere*)"])
    assert "pytest_sandpoint/checkpoint" not in result.stdout.str()
    assert "pytest_sandpoint/plugin.py" not in result.stdout.str()
