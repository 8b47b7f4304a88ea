"""What a capture finds out about a layer that was made while the tree changed."""

import os
from pathlib import Path

import pytest

from helpers.engine import opened, walk
from sandpoint.engine.capture_full import _otherwise_linked


def build(root: Path, linked: dict[str, str]) -> None:
    root.mkdir()
    for name in ("a", "b", "c"):
        (root / name).write_text("the same in all\n")
    for name, to in linked.items():
        os.link(root / to, root / name)


@pytest.mark.parametrize(
    ("walked", "in_layer", "wrong"),
    [
        ({"link": "a"}, {"link": "a"}, set()),
        ({"link": "a"}, {"link": "b"}, {"a", "b", "link"}),
        ({"link": "a", "other": "a"}, {"link": "a", "other": "b"}, {"a", "b", "link", "other"}),
        ({"link": "a"}, {}, set()),
        ({}, {"link": "a"}, set()),
    ],
)
def test_hard_links_that_a_layer_has_otherwise_are_found(
    walked: dict[str, str], in_layer: dict[str, str], wrong: set[str], tmp_path: Path
) -> None:
    build(tmp_path / "tree", walked)
    build(tmp_path / "layer", in_layer)
    manifest = walk(tmp_path / "tree")
    with opened(tmp_path / "layer") as layer:
        found = _otherwise_linked(layer, manifest, list(manifest.entries.values()))
    assert {os.fsdecode(path) for path in found} == wrong
