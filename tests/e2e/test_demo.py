"""The demo runs through on a small tree, and finds what did not come back."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Real files: those of the `json` and `email` packages, with links of both kinds."""
    root = tmp_path / "source"
    library = Path(sysconfig.get_path("stdlib"))
    for package in ("json", "email"):
        target = root / package
        target.mkdir(parents=True)
        for path in (library / package).glob("*.py"):
            (target / path.name).write_bytes(path.read_bytes())
    (root / "empty").mkdir()
    (root / "json" / "deep").mkdir()
    (root / "json" / "deep" / "notes").write_text("deep\n")
    (root / "json" / "link").symlink_to("decoder.py")
    os.link(root / "json" / "decoder.py", root / "email" / "linked.py")
    (root / "json" / "tool.py").chmod(0o755)
    (root / os.fsdecode(b"not UTF-8 \xff")).write_text("odd\n")
    os.setxattr(root / "json" / "tool.py", "user.note", b"kept")
    return root


def test_everything_comes_back(source: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, str(DEMO), "--source", str(source)],
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything came back as it was." in done.stdout
    assert "mode copy" in done.stdout
    if os.geteuid() == 0:
        assert "mode overlay, again" in done.stdout
    assert list(temporary.iterdir()) == []


def _delete(root: Path) -> None:
    (root / "json" / "scanner.py").unlink()


def _add(root: Path) -> None:
    (root / "new").touch()


def _edit_unseen(root: Path) -> None:
    path = root / "json" / "scanner.py"
    status = path.stat()
    path.write_bytes(b"#" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _chmod(root: Path) -> None:
    (root / "json" / "scanner.py").chmod(0o600)


def _touch(root: Path) -> None:
    os.utime(root / "json" / "scanner.py", ns=(1, 1))


def _relink(root: Path) -> None:
    (root / "json" / "link").unlink()
    (root / "json" / "link").symlink_to("encoder.py")


def _part(root: Path) -> None:
    path = root / "email" / "linked.py"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def _mark(root: Path) -> None:
    os.setxattr(root / "json" / "tool.py", "user.note", b"changed")


@pytest.mark.parametrize("damage", [_delete, _add, _edit_unseen, _chmod, _touch, _relink, _part, _mark])
def test_listing_sees(demo: ModuleType, source: Path, damage: Callable[[Path], None]) -> None:
    before = demo.list_tree(str(source))
    assert demo.differences(before, demo.list_tree(str(source)), whole_seconds=False) == []
    damage(source)
    assert demo.differences(before, demo.list_tree(str(source)), whole_seconds=True)


def test_damage_is_of_every_kind(demo: ModuleType, source: Path) -> None:
    before = demo.list_tree(str(source))
    said = list(demo.Damage(str(source), 1).do())
    assert len(said) == 8
    after = demo.list_tree(str(source))
    assert before.keys() - after.keys()
    assert after.keys() - before.keys()
    assert any(
        after[path].sha256 != was.sha256 and after[path].mtime_ns == was.mtime_ns
        for path, was in before.items()
        if path in after and was.type == "file"
    )
