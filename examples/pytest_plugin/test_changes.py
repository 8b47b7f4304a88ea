"""Asserting on changes: just these files are touched by the code under test."""

from pathlib import Path

from pytest_sandpoint import CheckpointFactory


def upgrade(project: Path) -> None:
    """Stand for the code under test: a tool that rewrites a project's files."""
    (project / "setup.cfg").unlink()
    (project / "pyproject.toml").write_text("[project]\n")
    (project / "src" / "main.py").write_text("print('new')\n")


def test_an_upgrade_touches_these_files_only(tmp_path: Path, sandbox_checkpoint: CheckpointFactory) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text("print('old')\n")
    (tmp_path / "src" / "other.py").write_text("")
    (tmp_path / "setup.cfg").write_text("[metadata]\n")
    project = sandbox_checkpoint(tmp_path)

    upgrade(project.path)

    changes = project.changes()
    assert changes.added == ("pyproject.toml",)
    assert changes.modified == ("src/main.py",)
    assert changes.removed == ("setup.cfg",)
