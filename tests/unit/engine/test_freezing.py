"""What is read in a pause: what it proves for later."""

from helpers.engine import entry, manifest
from sandpoint.engine.freezing import unproven


def test_a_file_that_was_not_written_out_has_no_stamp_by_any_of_its_names() -> None:
    tree = manifest(entry(b"a", size=1), entry(b"b", size=1, hardlink=b"a"), entry(b"c", size=1))

    found = unproven(tree, [tree.entries[b"a"]])

    assert {path for path, each in found.entries.items() if not each.ctime_ns and not each.ino} == {b"a", b"b"}
    assert list(found.entries) == list(tree.entries)
