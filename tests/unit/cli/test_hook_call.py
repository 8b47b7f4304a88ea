import json
import os
import stat
import time
from pathlib import Path

import pytest

from sandpoint.cli.hook_call import find_directory, is_too_wide, read_call, repository_of
from sandpoint.cli.hook_notes import Notes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return home


def repository(path: Path) -> Path:
    (path / ".git").mkdir(parents=True)
    return path


def directory(cwd: Path, **variables: Path) -> str:
    return find_directory({"cwd": str(cwd)}, {name: str(path) for name, path in variables.items()})


def test_the_project_is_what_the_agent_was_started_in(home: Path) -> None:
    project = repository(home / "project")
    (project / "sub").mkdir()
    assert directory(project / "sub", CLAUDE_PROJECT_DIR=project) == str(project)
    assert directory(project, GEMINI_PROJECT_DIR=project) == str(project)
    assert directory(project / "sub", CLAUDE_PROJECT_DIR=project / "sub") == str(project / "sub")
    told = {"cwd": str(project), "workspace_roots": [str(project / "sub"), 5]}
    assert find_directory(told | {"cwd": str(project / "sub")}, {}) == str(project / "sub")


def test_another_worktree_is_backed_up_where_the_agent_works_there(home: Path) -> None:
    project = repository(home / "project")
    worktree = home / "worktree"
    (worktree / "sub").mkdir(parents=True)
    (worktree / ".git").write_text("gitdir: elsewhere\n")
    assert directory(worktree / "sub", CLAUDE_PROJECT_DIR=project) == str(worktree)
    (home / "plain").mkdir()
    assert directory(home / "plain", CLAUDE_PROJECT_DIR=project) == str(project)


def test_without_a_project_it_is_the_repository_or_the_working_directory(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = repository(home / "project")
    (project / "sub").mkdir()
    (home / "plain").mkdir()
    assert directory(project / "sub") == str(project)
    assert directory(home / "plain") == str(home / "plain")
    monkeypatch.chdir(project / "sub")
    assert find_directory({}, {}) == str(project)
    assert find_directory({"cwd": 7, "workspace_roots": "x"}, {"CLAUDE_PROJECT_DIR": "relative"}) == str(project)


def test_links_are_followed(home: Path) -> None:
    project = repository(home / "project")
    (home / "link").symlink_to(project)
    assert directory(home / "link", CLAUDE_PROJECT_DIR=home / "link") == str(project)


def test_the_home_directory_is_too_wide_and_no_repository(home: Path) -> None:
    repository(home)
    (home / "plain").mkdir()
    assert repository_of(str(home / "plain")) is None
    assert is_too_wide(str(home))
    assert is_too_wide(str(home.parent))
    assert is_too_wide("/")
    assert not is_too_wide(str(home / "plain"))


@pytest.mark.parametrize(
    ("tool", "given", "purpose"),
    [
        ("Bash", {"command": "npm install left-pad --token=s3cret"}, "before Bash: npm install"),
        ("Bash", {"command": "API_KEY=s3cret TOKEN='x' /usr/bin/curl -H s3cret"}, "before Bash: curl"),
        ("Bash", {"command": "git -c x=s3cret push"}, "before Bash: git"),
        ("Bash", {"command": "git s3cret"}, "before Bash: git"),
        ("Bash", {"command": "mysql s3cret"}, "before Bash: mysql"),
        ("Bash", {"command": "'s3cret' x"}, "before Bash"),
        ("Bash", {"command": "$(s3cret)"}, "before Bash"),
        ("Bash", {"command": "s3cret" * 10}, "before Bash"),
        ("Bash", {"command": "A=s3cret"}, "before Bash"),
        ("Bash", {"command": 'A="the s3cret is" make'}, "before Bash"),
        ("Bash", {"command": "A='the s3cret is' make"}, "before Bash"),
        ("Bash", {"command": "A=the\\\\ s3cret make"}, "before Bash"),
        ("Bash", {"command": "A=$(cat s3cret) make"}, "before Bash"),
        ("Bash", {"command": "A=`cat s3cret x` make"}, "before Bash"),
        ("Bash", {"command": "A=(x s3cret) make"}, "before Bash"),
        ("Bash", {"command": "A=${B:-x s3cret} make"}, "before Bash"),
        ("Bash", {"command": "A[0]=x/s3cret make"}, "before Bash"),
        ("Bash", {"command": "</run/s3cret cat"}, "before Bash"),
        ("Bash", {"command": "A=$HOME B='x' ~/bin/make"}, "before Bash: make"),
        ("Bash", {"command": ""}, "before Bash"),
        ("Bash", {"command": ["rm", "-rf", "s3cret"]}, "before Bash: rm"),
        ("Bash", {"command": []}, "before Bash"),
        ("Bash", {"command": "ls", "description": "s3cret"}, "before Bash: ls"),
        ("Edit", {"file_path": "/p/src/app.py", "old_string": "s3cret"}, "before Edit of src/app.py"),
        ("Write", {"file_path": "src/app.py", "content": "s3cret"}, "before Write of src/app.py"),
        ("Write", {"file_path": "/p/../etc/passwd"}, "before Write of a file outside"),
        ("Write", {"file_path": "/p/a\nb\x1b"}, "before Write of a?b?"),
        ("NotebookEdit", {"notebook_path": "/p/n.ipynb"}, "before NotebookEdit of n.ipynb"),
        ("mcp__db__run", {"sql": "s3cret"}, "before mcp__db__run"),
        ("no tool\n", {"command": "make"}, "before a command: make"),
        (None, None, "before a tool"),
        ("Edit", {"file_path": 5}, "before Edit"),
    ],
)
def test_of_a_call_only_what_holds_no_secret_is_written_down(tool: object, given: object, purpose: str) -> None:
    call = read_call({"tool_name": tool, "tool_input": given, "cwd": "/p"}, {"CLAUDE_PROJECT_DIR": "/p"})
    assert call.purpose == purpose
    assert "s3cret" not in repr(call)


def test_a_command_beside_the_other_fields_is_read_as_well() -> None:
    assert read_call({"command": "rm -rf x", "cwd": "/p"}, {}).purpose == "before a command: rm"


def test_what_is_written_down_is_bounded() -> None:
    long = {
        "tool_name": "Write",
        "tool_input": {"file_path": "/p/" + "a" * 5000},
        "session_id": "s" * 5000,
        "cwd": "/p",
    }
    call = read_call(long, {})
    assert len(call.purpose) < 256
    assert len(call.session) == 128


def test_text_that_no_path_can_hold_counts_as_not_said() -> None:
    half = "\ud800"
    told = {"tool_name": "Edit", "tool_input": {"file_path": half}, "session_id": half, "cwd": half}
    here = os.getcwd()
    call = read_call(told, {"CLAUDE_PROJECT_DIR": half, "GEMINI_PROJECT_DIR": here})
    assert (call.directory, call.session, call.purpose) == (here, "", "before Edit")


def test_a_working_directory_that_is_deleted_and_told_as_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = repository(tmp_path / "project") / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PWD", str(gone))
    gone.rmdir()
    try:
        assert read_call({"cwd": "."}, {}).directory == str(gone.parent)
    finally:
        os.chdir("/")


def test_a_user_whom_the_machine_does_not_know_has_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.chdir(tmp_path)
    assert not is_too_wide(str(tmp_path))
    assert repository_of(str(repository(tmp_path / "project"))) == str(tmp_path / "project")


def test_tools_that_only_read() -> None:
    assert read_call({"tool_name": "Read", "cwd": "/p"}, {}).only_reads
    assert not read_call({"tool_name": "Bash", "cwd": "/p"}, {}).only_reads
    assert not read_call({"cwd": "/p"}, {}).only_reads


# -- notes --


def test_a_failure_is_told_once_a_session_until_it_is_over(tmp_path: Path) -> None:
    notes = Notes(str(tmp_path / "state"), "/p", "one")
    assert notes.is_first("A")
    assert not notes.is_first("A")
    assert notes.is_first("B")
    assert Notes(str(tmp_path / "state"), "/p", "two").is_first("A")
    assert Notes(str(tmp_path / "state"), "/q", "one").is_first("A")
    notes.forget_failures()
    assert notes.is_first("A")
    assert not Notes(str(tmp_path / "state"), "/p", "two").is_first("A")
    for folder in (tmp_path / "state", tmp_path / "state" / "hooks"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_rest_ends_by_itself_and_with_a_success(tmp_path: Path) -> None:
    notes = Notes(str(tmp_path), "/p", "one")
    assert not notes.is_resting()
    notes.rest(60)
    assert notes.is_resting()
    assert not Notes(str(tmp_path), "/p", "two").is_resting()
    notes.forget_failures()
    assert not notes.is_resting()
    notes.rest(-1)
    assert not notes.is_resting()


def test_backups_are_counted_for_all_sessions(tmp_path: Path) -> None:
    notes = Notes(str(tmp_path), "/p", "one")
    assert [notes.count(), notes.count(), Notes(str(tmp_path), "/p", "two").count()] == [1, 2, 3]
    assert Notes(str(tmp_path), "/q", "one").count() == 1
    notes.start_again()
    assert notes.count() == 1


@pytest.mark.parametrize("state_dir", [None, "/proc/none", "/dev/null/x"])
def test_where_the_state_directory_cannot_be_used_notes_are_elsewhere(state_dir: str | None, tmp_path: Path) -> None:
    notes = Notes(state_dir, "/p", "one")
    assert [notes.is_first("A"), notes.is_first("A")] == [True, False]
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == [f"sandpoint-{os.geteuid()}"]


def test_where_nothing_can_be_noted_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/null")
    notes = Notes(None, "/p", "one")
    notes.rest(60)
    assert [notes.is_first("A"), notes.is_first("A"), notes.count(), notes.is_resting()] == [True, True, 0, False]


def test_a_folder_of_somebody_elses_making_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "tmp" / f"sandpoint-{os.geteuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    notes = Notes(None, "/p", "one")
    assert [notes.is_first("A"), notes.is_first("A"), notes.count()] == [True, True, 0]
    assert list(folder.iterdir()) == []


def test_old_notes_go(tmp_path: Path) -> None:
    old = tmp_path / "hooks" / "old"
    old.parent.mkdir(mode=0o700)
    old.touch()
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    Notes(str(tmp_path), "/p", "one").is_first("A")
    assert not old.exists()


def test_names_of_notes_tell_nothing(tmp_path: Path) -> None:
    Notes(str(tmp_path), "/secret", "session").is_first("A")
    assert "secret" not in json.dumps([path.name for path in (tmp_path / "hooks").iterdir()])
