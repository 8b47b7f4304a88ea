"""The plan: applied to a model of the source tree it gives the target."""

import stat
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.engine import HEADER, entry, folder, manifest
from sandpoint.engine.manifest import Entry, Manifest, make_manifest, parent
from sandpoint.engine.plan import Comparison, Plan, ancestors, is_at_or_below, make_plan, select, without

ROOT = Comparison(owners=True)


def contents_by_owner(source: Manifest) -> "Differ":
    return Differ(source)


@dataclass
class Differ:
    """Takes `ino` for the contents of a file."""

    source: Manifest

    def __call__(self, doubtful: list[Entry]) -> set[bytes]:
        assert all(self.source.entries[each.path].size == each.size > 0 for each in doubtful)
        return {each.path for each in doubtful if self.source.entries[each.path].ino != each.ino}


def plan_of(source: Manifest, target: Manifest, comparison: Comparison = ROOT, **options: Iterable[bytes]) -> Plan:
    return make_plan(source, target, differ=contents_by_owner(source), comparison=comparison, **options)


def paths(entries: Iterable[Entry]) -> list[bytes]:
    return [each.path for each in entries]


# -- a model --

Inode = tuple[object, ...]
Tree = dict[bytes, tuple[int, Inode]]


def model(made: Manifest) -> Tree:
    """A tree as paths to inodes, which hard links share."""
    inodes: Tree = {}
    for path, each in made.entries.items():
        if each.hardlink:
            inodes[path] = inodes[each.hardlink]
        else:
            inodes[path] = (id(each), _inode(each))
    return inodes


def _inode(each: Entry) -> Inode:
    content = each.ino if each.is_file and each.size else 0
    return (each.mode, each.uid, each.gid, each.size, each.mtime_ns, content, each.target, each.rdev, each.xattrs)


def carried_out(plan: Plan, source: Manifest, target: Manifest) -> Tree:
    """What becomes of the source by the plan's steps alone."""
    tree = model(source)
    wanted = model(target)
    for each in plan.removed:
        del tree[each.path]
    for each in (*plan.added, *plan.replaced):
        assert (each.path in tree) == (each in plan.replaced)
        tree[each.path] = wanted[each.path]
    for each in (*plan.touched, *plan.restamped):
        number, before = tree[each.path]
        after = list(before)
        after[0:3], after[4], after[8] = (each.mode, each.uid, each.gid), each.mtime_ns, each.xattrs
        for path in [path for path, inode in tree.items() if inode[0] == number]:
            tree[path] = (number, tuple(after))
    return tree


def shape(tree: Tree) -> dict[bytes, tuple[Inode, frozenset[bytes]]]:
    """A tree with its groups of links, whatever the inodes are called."""
    groups: dict[int, set[bytes]] = {}
    for path, (number, _) in tree.items():
        groups.setdefault(number, set()).add(path)
    return {path: (inode, frozenset(groups[number])) for path, (number, inode) in tree.items()}


NAMES = (b"a", b"b", b"c", b"d", b"d/a", b"d/b", b"d/e", b"d/e/x", b"f", b"f/y")
FILES = st.builds(
    lambda size, ino, mtime_ns, uid: {"size": size, "ino": ino, "mtime_ns": mtime_ns, "uid": uid},
    st.integers(0, 2), st.integers(1, 2), st.integers(5, 6), st.sampled_from([0, 0, 0, 9]),
)  # fmt: skip


@st.composite
def trees(draw: st.DrawFn) -> Manifest:
    """Small trees over few names, so that two of them meet in every way."""
    made = {b"": folder(b"", mtime_ns=draw(st.integers(5, 6)))}
    files: list[bytes] = []
    for path in NAMES:
        above = made.get(parent(path))
        kind = draw(st.sampled_from(["none", "file", "file", "dir", "dir", "link", "symlink", "node"]))
        if above is None or not above.is_dir or kind == "none":
            continue
        if kind == "dir":
            made[path] = folder(path, mtime_ns=draw(st.integers(5, 6)))
        elif kind == "symlink":
            made[path] = entry(path, stat.S_IFLNK | 0o777, target=draw(st.sampled_from([b"x", b"y"])))
        elif kind == "node":
            made[path] = entry(path, stat.S_IFCHR | 0o600, rdev=draw(st.integers(1, 2)))
        elif kind == "link" and files:
            first = made[draw(st.sampled_from(files))]
            made[path] = msgspec.structs.replace(first, path=path, hardlink=first.path)
        else:
            made[path] = entry(path, stat.S_IFREG | draw(st.sampled_from([0o644, 0o600])), **draw(FILES))
            files.append(path)
    return make_manifest(HEADER, made.values())


@given(trees(), trees())
@settings(deadline=None, max_examples=250)
def test_a_plan_makes_the_source_equal_to_the_target(source: Manifest, target: Manifest) -> None:
    plan = plan_of(source, target)
    assert shape(carried_out(plan, source, target)) == shape(model(target))


@given(trees(), trees())
@settings(deadline=None, max_examples=100)
def test_no_path_is_in_two_steps_and_all_are_sorted(source: Manifest, target: Manifest) -> None:
    plan = plan_of(source, target)
    steps = [paths(each) for each in (plan.added, plan.replaced, plan.touched, plan.restamped, plan.removed)]
    every = [path for step in steps for path in step]
    assert len(every) == len(set(every))
    assert all(step == sorted(step) for step in steps)


@given(trees())
@settings(deadline=None, max_examples=100)
def test_a_tree_and_its_copy_need_no_plan(tree: Manifest) -> None:
    copy = Manifest.from_bytes(tree.content)
    assert plan_of(tree, copy).is_empty
    assert not plan_of(tree, copy).changes()


@given(trees(), trees())
@settings(deadline=None, max_examples=100)
def test_there_and_back(source: Manifest, target: Manifest) -> None:
    there, back = plan_of(source, target).changes(), plan_of(target, source).changes()
    assert (there.added, there.removed) == (back.removed, back.added)


@given(trees(), trees(), st.sets(st.sampled_from(NAMES), min_size=1))
@settings(deadline=None, max_examples=150)
def test_a_part_is_a_tree_with_its_own_links(source: Manifest, target: Manifest, chosen: set[bytes]) -> None:
    for part in (select(target, sorted(chosen)), without(target, sorted(chosen))):
        assert Manifest.from_bytes(part.content).entries == part.entries
        plan = plan_of(source, part)
        assert shape(carried_out(plan, source, part)) == shape(model(part))


# -- single rules --


def test_unchanged_objects_are_not_compared() -> None:
    same = entry(b"a", size=5)
    assert plan_of(manifest(same), manifest(same)).is_empty


def test_only_attributes_differ() -> None:
    before = manifest(entry(b"a", size=5), folder(b"d"))
    after = manifest(entry(b"a", size=5, uid=4), folder(b"d", xattrs={b"user.x": b""}))
    plan = plan_of(before, after)
    assert (paths(plan.touched), plan.replaced) == ([b"a", b"d"], [])


def test_a_directory_with_another_time_only_is_put_right_without_a_word() -> None:
    plan = plan_of(manifest(folder(b"d", mtime_ns=1)), manifest(folder(b"d", mtime_ns=2)))
    assert paths(plan.restamped) == [b"d"]
    assert not plan.is_empty
    assert not plan.changes()


def test_contents_differ() -> None:
    plan = plan_of(manifest(entry(b"a", size=5, ino=1)), manifest(entry(b"a", size=5, ino=2)))
    assert (paths(plan.replaced), plan.touched) == ([b"a"], [])


@pytest.mark.parametrize(
    "other",
    [entry(b"a", size=6), entry(b"a", stat.S_IFLNK | 0o777, target=b"x"), folder(b"a"), entry(b"a", stat.S_IFIFO)],
)
def test_another_kind_or_size_is_replaced(other: Entry) -> None:
    assert paths(plan_of(manifest(entry(b"a", size=5)), manifest(other)).replaced) == [b"a"]


def test_what_lies_below_a_replaced_directory_goes() -> None:
    plan = plan_of(manifest(folder(b"d"), entry(b"d/x")), manifest(entry(b"d")))
    assert (paths(plan.replaced), paths(plan.removed)) == ([b"d"], [b"d/x"])


def test_the_whole_group_comes_with_one_of_its_members() -> None:
    before = manifest(entry(b"a", size=1), entry(b"b", size=1, hardlink=b"a"))
    after = manifest(entry(b"a", size=1), entry(b"b", size=1, hardlink=b"a"), entry(b"c", size=1, hardlink=b"a"))
    plan = plan_of(before, after)
    assert (paths(plan.added), paths(plan.replaced)) == ([b"c"], [b"a", b"b"])


def test_files_that_are_wrongly_linked_are_parted() -> None:
    before = manifest(entry(b"a", size=1), entry(b"b", size=1, hardlink=b"a"))
    after = manifest(entry(b"a", size=1), entry(b"b", size=1))
    assert paths(plan_of(before, after).replaced) == [b"a", b"b"]


def test_a_group_that_lost_a_member_stays() -> None:
    before = manifest(entry(b"a", size=1), entry(b"b", size=1, hardlink=b"a"), entry(b"c", size=1, hardlink=b"a"))
    after = manifest(entry(b"a", size=1), entry(b"b", size=1, hardlink=b"a"))
    plan = plan_of(before, after)
    assert (paths(plan.removed), plan.replaced) == ([b"c"], [])


def test_the_untouchable_are_in_no_step() -> None:
    before = manifest(folder(b"m", mtime_ns=1), folder(b"gone"))
    after = manifest(folder(b"m", mtime_ns=2), folder(b"new"))
    assert plan_of(before, after, untouchable=[b"m", b"gone", b"new"]).is_empty


def test_owners_and_nodes_do_not_count_where_they_cannot_be_set() -> None:
    before = manifest(entry(b"a", uid=1, xattrs={b"security.x": b"1"}), entry(b"n", stat.S_IFCHR, rdev=1))
    after = manifest(entry(b"a", uid=2, xattrs={b"trusted.y": b"2"}), entry(b"n", stat.S_IFCHR, rdev=2))
    assert plan_of(before, after, Comparison(owners=False)).is_empty
    plan = plan_of(before, after, ROOT)
    assert (paths(plan.touched), paths(plan.replaced)) == ([b"a"], [b"n"])


@pytest.mark.parametrize(
    ("shown", "meant", "same"),
    [
        (5_000_000_000, 5_999_999_999, True),
        (5_000_000_000, 6_000_000_000, False),
        (4_294_967_295_000_000_000, -1, True),
        (410_065_408_000_000_000, 9_000_000_000_000_000_000, True),
        (0, -1, False),
        (5_000_000_001, 5_000_000_002, False),
    ],
)
def test_a_mounted_layer_shows_whole_seconds_of_32_bits(shown: int, meant: int, same: bool) -> None:
    before, after = entry(b"a", mtime_ns=shown), entry(b"a", mtime_ns=meant)
    assert Comparison(coarse_times=True).same_mtime(before, after) is same
    assert not Comparison().same_mtime(before, after)


# -- parts --


def test_select_takes_what_leads_there() -> None:
    tree = manifest(folder(b"d"), folder(b"d/e"), entry(b"d/e/x"), entry(b"d/y"), entry(b"z"))
    assert list(select(tree, [b"d/e"]).entries) == [b"", b"d", b"d/e", b"d/e/x"]


def test_select_names_a_new_first_of_a_group() -> None:
    tree = manifest(entry(b"a"), entry(b"b", hardlink=b"a"), entry(b"c", hardlink=b"a"))
    assert [e.hardlink for e in select(tree, [b"b", b"c"]).entries.values()] == [b"", b"", b"b"]


def test_without_keeps_the_place_itself() -> None:
    tree = manifest(folder(b"m"), entry(b"m/a"), entry(b"z", hardlink=b"m/a"))
    part = without(tree, [b"m"])
    assert list(part.entries) == [b"", b"m", b"z"]
    assert part.entries[b"z"].hardlink == b""
    assert paths(plan_of(manifest(folder(b"m")), part).added) == [b"z"]


def test_without_nothing_is_the_same() -> None:
    tree = manifest(entry(b"a"))
    assert without(tree, []) is tree


@pytest.mark.parametrize(("path", "above"), [(b"a/b/c", [b"a/b", b"a", b""]), (b"a", [b""]), (b"", [])])
def test_ancestors(path: bytes, above: list[bytes]) -> None:
    assert ancestors(path) == above


@pytest.mark.parametrize(("path", "inside"), [(b"a", True), (b"a/b", True), (b"ab", False), (b"", False)])
def test_at_or_below(path: bytes, inside: bool) -> None:
    assert is_at_or_below(path, frozenset({b"a"})) is inside
