"""Stamps prove what has not changed in a container's own filesystem, whichever of its layers a file lies in."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.changes import CHANGES, build_varied
from helpers.docker import Engine, Target
from helpers.kinds import Sandboxed
from helpers.trees import assert_same, list_tree, write

_NAMES = sorted(CHANGES)


def _folder(name: str) -> str:
    return f"/workspace/{_NAMES.index(name)}"


@pytest.fixture(scope="module")
def upper(docker_engine: Engine, busybox: str) -> Iterator[Target]:
    """A container that has made the trees itself."""
    with docker_engine.container(busybox) as target:
        for name in _NAMES:
            build_varied(target.root / _folder(name).lstrip("/"))
        yield target


@pytest.fixture(scope="module")
def lower(docker_engine: Engine, upper: Target) -> Iterator[Target]:
    """A container whose image has the trees."""
    image = upper.container.commit("sandpoint-test/changes")
    try:
        with docker_engine.container(str(image.id)) as target:
            yield target
    finally:
        docker_engine.client.images.remove(str(image.id), force=True)


def test_trees_made_in_the_container(upper: Target, tmp_path: Path) -> None:
    check_all(Sandboxed("direct", tmp_path, upper))


def test_trees_of_the_image(lower: Target, tmp_path: Path) -> None:
    check_all(Sandboxed("direct", tmp_path, lower))


def check_all(here: Sandboxed) -> None:
    try:
        for name in _NAMES:
            check(here, _folder(name), CHANGES[name])
    finally:
        here.run(here.service.close)


def check(here: Sandboxed, dir: str, change: Callable[[Path], object]) -> None:
    tree = here.outside(dir)
    before, first = list_tree(tree), here.create(dir)
    try:
        change(tree)
    except OSError:
        # Docker's overlays have no redirect_dir: a directory of the image cannot be renamed. Nor do images hold sockets
        # and most extended attributes, to be changed.
        write(tree / "file", "another")
    state, backup = list_tree(tree), here.create(dir)
    here.restore(first.id, undo=False)
    found = list_tree(tree)
    here.restore(backup.id, undo=False)
    assert (backup.kind, backup.parent_id) == ("delta", first.id)
    assert_same(before, found)
    assert_same(state, list_tree(tree))
