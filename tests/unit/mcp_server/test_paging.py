import base64
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.mcp_server.paging import MAX_CURSOR, MAX_PATH_CHARACTERS, MAX_PATHS, first_of, page_of
from sandpoint.mcp_server.results import MAX_PATCH, Difference
from sandpoint.models import Changes, ContentChanges, FileDiff

QUESTION = ("id", None)


def numbered(kind: str, count: int) -> tuple[str, ...]:
    return tuple(f"{kind}/{number:05}" for number in range(count))


def pages(trees: Sequence[Changes]) -> list[Difference]:
    """Return all pages, the first of the first difference and so on; of the last one to the end."""
    found: list[Difference] = []
    cursor = None
    while not found or cursor is not None:
        changes = trees[min(len(found), len(trees) - 1)]
        found.append(Difference.of(changes, cursor=cursor, question=QUESTION))
        cursor = found[-1].next_cursor
    return found


def together(found: Sequence[Difference], kind: str) -> list[str]:
    return [path for page in found for path in getattr(page, kind)]


def test_the_pages_together_are_the_whole_and_counts_are_exact_on_each() -> None:
    changes = Changes(added=numbered("a", 170), modified=numbered("m", 3), removed=numbered("r", 60))
    found = pages([changes])
    assert len(found) == 4
    for kind in ("added", "modified", "removed"):
        assert together(found, kind) == list(getattr(changes, kind))
    assert {(page.added_count, page.modified_count, page.removed_count) for page in found} == {(170, 3, 60)}
    assert [page.more for page in found] == [130, 70, 20, None]
    assert {page.changed_between_pages for page in found} == {None}


def test_few_paths_are_one_page_without_a_cursor() -> None:
    told = Difference.of(Changes(added=numbered("a", MAX_PATHS)), question=QUESTION).model_dump(mode="json")
    assert told.keys() == {"added_count", "modified_count", "removed_count", "added"}


def test_paths_that_begin_alike_at_length_are_told_once_in_a_tree_that_never_rests() -> None:
    deep = "d" * 1_100
    found = pages([Changes(added=tuple(f"{deep}/{number:03}" for number in range(count))) for count in range(30, 60)])
    told = together(found, "added")
    assert len(found) < 20
    assert told == sorted(set(told))


paths = st.sets(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), max_size=120)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(paths, paths), min_size=1, max_size=4))
def test_what_differs_all_the_time_is_on_one_page_and_on_one_only(trees: list[tuple[set[str], set[str]]]) -> None:
    differences = [Changes(added=tuple(sorted(added)), removed=tuple(sorted(gone))) for added, gone in trees]
    found = pages(differences)
    for index, kind in enumerate(("added", "removed")):
        always = set.intersection(*(tree[index] for tree in trees))
        shown = together(found, kind)
        assert always <= set(shown)
        assert len(shown) == len(set(shown))


def test_a_tree_that_changes_between_pages_is_said_and_counted_anew() -> None:
    before = Changes(added=numbered("a", 120))
    after = Changes(added=tuple(path for path in before.added if path != "a/00049"), modified=("m",))
    first, second, third = pages([before, after])
    assert second.changed_between_pages is True
    assert (second.added_count, second.modified_count, second.modified) == (119, 1, ["m"])
    assert second.added[0] == "a/00050"
    assert third.changed_between_pages is None
    assert first.next_cursor != second.next_cursor


def test_long_names_make_short_pages_and_come_whole() -> None:
    names = tuple(f"{number:02}" + "n" * 4000 for number in range(20))
    assert len(first_of(names)) == 2
    assert first_of(("n" * (MAX_PATH_CHARACTERS + 1), "m")) == ("n" * (MAX_PATH_CHARACTERS + 1),)
    found = pages([Changes(added=names)])
    assert together(found, "added") == list(names)
    for page in found:
        assert len(page.model_dump_json()) < 20_000
        assert len(page.next_cursor or "") < 2000


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "?",
        "next",
        "e30",
        "eJyrrgUAAXUA-Q",  # {} as we pack it
        "A" * (MAX_CURSOR + 1),
        "\ud800",
        "caf\u00e9",
    ],
)
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"^cursor: not one that diff_backup returned") as raised:
        page_of(Changes(), cursor, question=QUESTION)
    assert len(str(raised.value)) < 200


def test_a_cursor_is_good_for_one_question_only() -> None:
    changes = Changes(added=numbered("a", 60))
    cursor = Difference.of(changes, question=QUESTION).next_cursor
    with pytest.raises(InvalidBackupConfigError, match="cursor: it belongs to another comparison"):
        page_of(changes, cursor, question=("another id", None))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_a_cursor_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidBackupConfigError):
        page_of(Changes(), base64.urlsafe_b64encode(data).decode(), question=QUESTION)


def test_a_page_has_the_patches_of_its_own_paths() -> None:
    names = numbered("m", 70)
    files = tuple(
        FileDiff(path=name, change="modified", old=None, new=None, patch=f"diff {name}\n")
        if index % 2
        else FileDiff(path=name, change="modified", old=None, new=None, omitted="binary")
        for index, name in enumerate(names)
    )
    first, second = pages([ContentChanges(modified=names, files=files)])
    assert first.patch == "".join(f"diff {name}\n" for name in names[1:50:2])
    assert second.patch == "".join(f"diff {name}\n" for name in names[51::2])
    assert first.not_in_patch == {"binary": list(names[:50:2])}
    assert second.not_in_patch == {"binary": list(names[50::2])}
    assert len(first.patch) < MAX_PATCH
