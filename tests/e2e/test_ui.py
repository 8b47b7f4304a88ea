"""`sandpoint ui` in a real Chromium: on real trees, by mouse and by keys alone."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import Browser, Page, expect

from helpers.place import Place
from helpers.trees import assert_same, list_tree, write
from helpers.window import CONTRASTS, PATIENCE_MS, PlaceBeside, Window, chromium, settled, watch
from sandpoint.stores.local import LocalStore

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one store of all these tests is; each has a tree of its own."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def window(shared: Path) -> Iterator[Window]:
    """One server for all; a page names its directory in the address."""
    with Window(shared, store=shared / "store", state=shared / "state") as window:
        yield window


@pytest.fixture
def place(tmp_path: Path, shared: Path) -> Place:
    place = PlaceBeside(tmp_path, store=LocalStore(str(shared / "store")), state=shared / "state")
    write(place.tree / "README.md", "# Shop\n\nA shop.\n")
    write(place.tree / "src" / "cart.py", "def total(items):\n    return sum(items)\n")
    write(place.tree / "logo.png", bytes(range(256)))
    return place


@pytest.fixture
def open_page(browser: Browser, window: Window, place: Place) -> Iterator[Open]:
    """Return what opens the page and waits until it shows all; the page must run without an error of its own."""
    with ExitStack() as stack:

        def opened(*, width: int = 1280, height: int = 800, scheme: str = "light") -> Page:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                locale="en-GB",
            )
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MS)
            errors = watch(page)
            stack.callback(lambda: check(errors))
            page.goto(f"{window.link}&dir={place.tree}")
            settled(page)
            return page

        def check(errors: list[str]) -> None:
            assert errors == []

        yield opened


def rows(page: Page) -> list[str]:
    """Return what the list says, row by row."""
    return [re.sub(r"\s+", " ", row) for row in page.locator(".row").all_inner_texts()]


def three_backups(place: Place) -> list[str]:
    first = place.create(name="fresh checkout", description="before anything")
    write(place.tree / "README.md", "# Shop\n\nA shop that sells.\n")
    write(place.tree / "src" / "discount.py", "RATE = 0.1\n")
    second = place.create(name="before the migration", metadata={"agent": "claude"})
    (place.tree / "src" / "cart.py").unlink()
    write(place.tree / "logo.png", bytes(2000))
    third = place.create()
    return [first.id, second.id, third.id]


def test_the_time_line_shows_each_backup_with_its_kind_size_age_and_what_changed_in_it(
    place: Place, open_page: Open
) -> None:
    three_backups(place)
    page = open_page()
    newest, second, first = rows(page)
    assert re.search(r"no name .*delta .*B .*~1 changed .*\N{MINUS SIGN}1 removed .*(now|ago)", newest), newest
    assert re.search(r"before the migration .*delta .*\+1 added .*~1 changed", second), second
    assert re.search(r"fresh checkout .*full .*B .*the first", first), first
    expect(page.locator(".day")).to_have_text("Today")
    expect(page.locator("#end")).to_have_text("3 backups")
    expect(page).to_have_title(f"{place.tree} · Sandpoint")


def test_a_backups_facts_are_told_in_full(place: Place, open_page: Open) -> None:
    _, second, _ = three_backups(place)
    page = open_page()
    page.locator(".row", has_text="before the migration").click()
    settled(page)
    facts = page.locator(".facts").inner_text()
    for fact in ("Expires\nin 2 days", f"Directory\n{place.tree}", "3 files", "4 files", "agent\nclaude", second):
        assert (fact in facts) != (fact == "3 files"), facts
    page.locator(".row", has_text="fresh checkout").click()
    expect(page.locator(".facts")).to_contain_text("before anything")
    expect(page.locator("#changes")).to_contain_text("The first backup of this directory")


def test_the_step_from_the_one_before_is_shown_line_by_line_with_numbers_and_signs(
    place: Place, open_page: Open
) -> None:
    three_backups(place)
    page = open_page()
    page.locator(".row", has_text="before the migration").click()
    settled(page)
    expect(page.locator("#changes .summary")).to_contain_text("2 paths differ")
    readme = page.locator("details.file", has_text="README.md")
    lines = readme.locator("tr").evaluate_all(
        "rows => rows.map(row => [row.className, ...[...row.cells].map(cell => cell.dataset.line ?? cell.innerText)])"
    )
    assert ["same", "1", "1", "", "# Shop"] in lines
    assert ["removed", "3", "", "\N{MINUS SIGN}", "A shop."] in lines
    assert ["added", "", "3", "+", "A shop that sells."] in lines
    expect(readme.locator("summary")).to_contain_text("changed")
    expect(readme.locator("summary .note")).to_have_text("+1 \N{MINUS SIGN}1")
    page.locator(".row.delta").first.click()
    settled(page)
    expect(page.locator("details.file", has_text="logo.png").locator("summary .note")).to_have_text("binary")
    expect(page.locator("details.file", has_text="cart.py").locator("summary")).to_contain_text("removed")


def test_a_file_whose_patch_was_too_long_for_the_first_answer_is_asked_for_when_it_is_opened(
    place: Place, open_page: Open
) -> None:
    place.create(name="first")
    for number in range(3):
        write(place.tree / f"long{number}.txt", "".join(f"{number} {line}\n" for line in range(1500)))
    place.create(name="second")
    page = open_page()
    last = page.locator("details.file", has_text="long2.txt")
    expect(last).not_to_have_attribute("open", "")
    last.locator("summary").click()
    expect(last.locator("tr.added").last).to_contain_text("2 1499")
    expect(last.locator("summary .note")).to_have_text("+1,500")


def test_a_file_too_long_for_any_answer_is_shown_in_part_and_that_is_said(place: Place, open_page: Open) -> None:
    place.create(name="first")
    write(place.tree / "very long.txt", "".join(f"line {line}\n" for line in range(5000)))
    place.create(name="second")
    page = open_page()
    row = page.locator("details.file")
    if row.get_attribute("open") is None:
        row.locator("summary").click()
    expect(row).to_contain_text("The rest is too long to be shown here.")
    expect(row.locator("tr.added").first).to_contain_text("line 0")


def test_more_changes_than_are_named_are_counted(place: Place, open_page: Open) -> None:
    place.create(name="first")
    for number in range(120):
        write(place.tree / f"file{number:03}", "")
    place.create(name="second")
    page = open_page()
    expect(page.locator("#changes .summary")).to_contain_text("+120 added")
    expect(page.locator("details.file")).to_have_count(50)
    expect(page.locator(".rest")).to_contain_text("70")


def test_the_present_is_compared_and_looked_at_again(place: Place, open_page: Open) -> None:
    place.create(name="only")
    page = open_page()
    page.get_by_role("tab", name="Until now").click()
    settled(page)
    expect(page.locator("#changes")).to_contain_text("Nothing has changed since this backup.")
    write(place.tree / "new.txt", "new\n")
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("details.file")).to_contain_text("new.txt")


def test_a_restore_shows_its_plan_changes_nothing_before_it_is_confirmed_and_can_be_undone(
    place: Place, open_page: Open
) -> None:
    wanted = list_tree(place.tree)
    three_backups(place)
    write(place.tree / "later.txt", "later\n")
    before = list_tree(place.tree)
    page = open_page()
    page.locator(".row", has_text="fresh checkout").click()
    page.get_by_role("button", name="Restore…").click()
    dialog = page.get_by_role("dialog", name="Restore “fresh checkout”")
    expect(dialog.locator(".effect.added")).to_contain_text("src/cart.py")
    expect(dialog.locator(".effect.modified")).to_contain_text("README.md")
    expect(dialog.locator(".effect.removed")).to_contain_text("later.txt")
    expect(dialog).to_contain_text("is backed up first")
    assert_same(before, list_tree(place.tree))
    dialog.get_by_role("button", name="Restore 3 paths, delete 2 paths").click()
    done = page.get_by_role("dialog", name="Restored")
    expect(done).to_contain_text("1 path came back, 2 paths overwritten, 2 paths deleted")
    assert_same(wanted, list_tree(place.tree))

    done.get_by_role("button", name="Undo…").click()
    undo = page.get_by_role("dialog", name="Restore “undo of fresh checkout”")
    expect(undo.locator("#confirm")).to_have_text("Restore 4 paths, delete 1 path")
    assert_same(wanted, list_tree(place.tree))
    undo.locator("#confirm").click()
    expect(page.get_by_role("dialog", name="Restored")).to_be_visible()
    assert_same(before, list_tree(place.tree))
    page.get_by_role("button", name="Close").click()
    expect(page.locator(".row.undo").first).to_contain_text("undo")
    expect(page.locator("#status")).to_contain_text("Restored “undo of fresh checkout”")


def test_a_restore_that_would_change_nothing_offers_nothing_to_confirm(place: Place, open_page: Open) -> None:
    place.create(name="same")
    page = open_page()
    page.keyboard.press("r")
    dialog = page.get_by_role("dialog", name="Restore “same”")
    expect(dialog).to_contain_text("Nothing would change")
    expect(dialog.get_by_role("button")).to_have_text(["Close"])


def test_one_path_is_restored_alone(place: Place, open_page: Open) -> None:
    three_backups(place)
    write(place.tree / "README.md", "spoilt\n")
    write(place.tree / "other.txt", "stays\n")
    page = open_page()
    page.get_by_role("tab", name="Until now").click()
    settled(page)
    readme = page.locator("details.file", has_text="README.md")
    readme.get_by_role("button", name="Restore this path").click()
    dialog = page.get_by_role("dialog", name="Restore README.md from")
    dialog.get_by_role("button", name="Restore 1 path", exact=True).click()
    expect(page.get_by_role("dialog", name="Restored")).to_be_visible()
    assert (place.tree / "README.md").read_text() == "# Shop\n\nA shop that sells.\n"
    assert (place.tree / "other.txt").read_text() == "stays\n"
    page.get_by_role("button", name="Close").click()
    expect(page.locator("details.file")).to_have_count(1)


def test_a_dialog_that_opens_as_another_closes_has_its_contents(open_page: Open) -> None:
    page = open_page()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.evaluate("() => { closeDialog(); openHelp(); return new Promise(done => setTimeout(done, 100)); }")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("restore: shows what would change, and asks")


def test_all_of_it_goes_by_keys_alone(place: Place, open_page: Open) -> None:
    wanted = list_tree(place.tree)
    three_backups(place)
    page = open_page()
    keys = page.keyboard
    selected = page.locator('.row[aria-selected="true"]')
    expect(selected).to_contain_text("no name")
    keys.press("j")
    keys.press("ArrowDown")
    expect(selected).to_contain_text("fresh checkout")
    keys.press("k")
    expect(selected).to_contain_text("before the migration")
    settled(page)
    keys.press("Enter")
    expect(page.locator("summary:focus")).to_contain_text("README.md")
    keys.press("j")
    expect(page.locator("summary:focus")).to_contain_text("discount.py")
    keys.press("Enter")
    expect(page.locator("details.file", has_text="discount.py")).not_to_have_attribute("open", "")
    keys.press("d")
    expect(page.get_by_role("tab", name="Until now")).to_have_attribute("aria-selected", "true")
    settled(page)
    keys.press("e")
    expect(page.locator("details.file[open]")).to_have_count(2)
    keys.press("e")
    expect(page.locator("details.file:not([open])")).to_have_count(2)
    keys.press("Escape")
    expect(page.locator("#list")).to_be_focused()
    keys.press("/")
    keys.type("fresh")
    expect(page.locator(".row")).to_have_count(1)
    keys.press("ArrowDown")
    expect(selected).to_contain_text("fresh checkout")
    keys.press("Escape")
    expect(page.locator(".row")).to_have_count(3)
    keys.press("Escape")
    keys.press("r")
    confirm = page.locator("#confirm")
    expect(confirm).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    keys.press("Tab")
    while not confirm.evaluate("button => button === document.activeElement"):
        keys.press("Tab")
    keys.press("Enter")
    expect(page.get_by_role("dialog", name="Restored")).to_be_visible()
    assert_same(wanted, list_tree(place.tree))
    keys.press("Enter")
    keys.press("u")
    expect(page.get_by_role("dialog", name="Restore “undo of fresh checkout”")).to_contain_text("Are deleted")
    keys.press("Escape")
    keys.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("restore: shows what would change, and asks")
    keys.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("key", ["r", "Enter", "Space", "u", "d", "b", "y"])
def test_no_single_key_restores_anything_even_when_it_is_pressed_again_and_again(
    key: str, place: Place, open_page: Open
) -> None:
    place.create(name="first")
    write(place.tree / "README.md", "changed\n")
    before = list_tree(place.tree)
    page = open_page()
    page.keyboard.press("r")
    expect(page.locator("#confirm")).to_be_visible()
    for _ in range(3):
        page.keyboard.press(key)
    page.keyboard.press("Escape")
    settled(page)
    assert_same(before, list_tree(place.tree))


def test_back_up_now_adds_the_backup_to_the_top_without_moving_the_rest(place: Place, open_page: Open) -> None:
    place.create(name="first")
    page = open_page()
    page.keyboard.press("b")
    page.keyboard.type("before the upgrade")
    page.keyboard.press("Enter")
    expect(page.locator('.row[aria-selected="true"]')).to_contain_text("before the upgrade")
    expect(page.locator("#status")).to_have_text("Backed up 3 files as “before the upgrade”.")
    expect(page.locator(".row")).to_have_count(2)


def test_a_directory_without_backups_says_so_and_how_to_make_the_first(place: Place, open_page: Open) -> None:
    other = place.base / "other"
    write(other / "file", "x")
    place.create(dir=other, name="elsewhere")
    page = open_page()
    expect(page.locator("#end")).to_contain_text(f"No backups of {place.tree} yet.")
    page.get_by_role("button", name="Show those of all directories").click()
    newest = page.locator(".row").first
    expect(newest).to_contain_text("elsewhere")
    expect(newest.locator(".dir")).to_have_text(str(other))
    expect(page.get_by_role("button", name="Back up now…")).to_be_hidden()


def test_the_first_backup_is_made_on_the_page(place: Place, open_page: Open) -> None:
    page = open_page()
    page.locator("#end").get_by_role("button", name="Back up now…").click()
    page.get_by_role("button", name="Back up", exact=True).click()
    expect(page.locator(".row")).to_have_count(1)
    expect(page.locator(".row")).to_contain_text("the first")


def test_a_backup_that_an_agent_takes_meanwhile_appears_by_itself(place: Place, open_page: Open) -> None:
    place.create(name="first")
    page = open_page()
    place.create(name="by an agent")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator(".row").first).to_contain_text("by an agent")
    expect(page.locator('.row[aria-selected="true"]')).to_contain_text("first")


HOSTILE = "<img src=x onerror=document.title='owned'>"


def test_hostile_names_paths_and_contents_are_shown_as_they_are_and_run_nothing(place: Place, open_page: Open) -> None:
    write(place.tree / "seed", "seed\n")
    place.create(name="first")
    write(place.tree / HOSTILE.replace("/", ""), f"{HOSTILE}\n<script>document.title='owned'</script>\n")
    write(place.tree / "a\nb", "newline in the name\n")
    write(place.tree / "right\u202etxt.exe", "x = 'admin\u202e \u2066// harmless\u2069'\nzero\u200bwidth\r\n")
    write(place.tree / os.fsdecode(b"bytes \xff"), "bytes\n")
    place.create(name=f"{HOSTILE} \u202etxt", description=f"{HOSTILE}\n\u202eother way", metadata={HOSTILE: HOSTILE})
    page = open_page()
    expect(page.locator(".row").first).to_contain_text(f"{HOSTILE} U+202Etxt")
    expect(page.locator("h2")).to_contain_text(HOSTILE)
    expect(page.locator(".facts")).to_contain_text("U+202Eother way")
    files = page.locator("details.file")
    expect(files).to_have_count(4)
    shown = page.locator("#changes").inner_text()
    for text in (
        HOSTILE,
        "<script>",
        "a\\nb",
        "bytes \\xff",
        "adminU+202E U+2066// harmlessU+2069",
        "zeroU+200Bwidth\\r",
    ):
        assert text in shown, shown
    for opened in files.all():
        expect(opened).to_have_attribute("open", "")
    page.keyboard.press("r")
    page.keyboard.press("Escape")
    assert page.locator("img, iframe, object, script[src]").count() == 0
    assert page.title() == f"{place.tree} · Sandpoint"
    everything = page.evaluate("document.body.innerText + document.title")
    assert not re.search("[\u200b\u202a-\u202e\u2066-\u2069]", everything)


def test_an_error_is_told_with_its_code_and_what_to_do(place: Place, open_page: Open) -> None:
    first, *_ = three_backups(place)
    page = open_page()
    place.run(place.service.delete, first)
    page.locator(".row", has_text="fresh checkout").click()
    page.keyboard.press("r")
    alert = page.get_by_role("dialog").get_by_role("alert")
    expect(alert).to_contain_text("BACKUP_NOT_FOUND")
    expect(alert.get_by_role("button", name="Try again")).to_be_visible()
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    page.keyboard.press("d")
    expect(page.locator("#changes").get_by_role("alert")).to_contain_text("BACKUP_NOT_FOUND")


def test_a_server_that_has_ended_is_told(tmp_path: Path, browser: Browser) -> None:
    place = PlaceBeside(tmp_path)
    write(place.tree / "file", "x")
    place.create(name="first")
    with Window(place.tree, store=place.store, state=place.state) as window, browser.new_page() as page:
        page.set_default_timeout(PATIENCE_MS)
        page.goto(window.link)
        settled(page)
        assert window.interrupt() == 0
        page.keyboard.press("d")
        expect(page.locator("#changes").get_by_role("alert")).to_contain_text("start it again with: sandpoint ui")


def test_a_reload_goes_on_and_a_link_that_was_used_is_refused(
    place: Place, window: Window, browser: Browser, open_page: Open
) -> None:
    place.create(name="first")
    used = f"{window.link}&dir={place.tree}"
    page = open_page()
    assert "token" not in page.url
    page.reload()
    settled(page)
    expect(page.locator(".row")).to_have_count(1)
    with browser.new_context() as other:
        stranger = other.new_page()
        stranger.set_default_timeout(PATIENCE_MS)
        stranger.goto(used)
        expect(stranger.get_by_role("alert")).to_contain_text("a link works once")
        expect(stranger.locator(".row")).to_have_count(0)
        stranger.goto("about:blank")
        stranger.goto(f"{window.link}&dir={place.tree}")
        expect(stranger.locator(".row")).to_have_count(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_easy_to_read(scheme: str, place: Place, open_page: Open) -> None:
    three_backups(place)
    page = open_page(scheme=scheme)
    page.locator(".row", has_text="before the migration").click()
    settled(page)
    assert page.evaluate(CONTRASTS) == []
    lightness = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (lightness == "rgb(255, 255, 255)") == (scheme == "light")
    page.locator(".row", has_text="fresh checkout").click()
    page.keyboard.press("r")
    expect(page.locator("#confirm")).to_be_visible()
    assert page.evaluate(CONTRASTS) == []


@pytest.mark.parametrize("width", [320, 400, 740, 1280, 3840])
def test_it_fits_from_a_narrow_pane_to_a_wide_screen(width: int, place: Place, open_page: Open) -> None:
    write(place.tree / ("a-long-name" * 20) / "deep", "x" * 3000 + "\n")
    three_backups(place)
    place.create(name="n" * 256)
    page = open_page(width=width, height=640)
    fits = "document.documentElement.scrollWidth <= innerWidth && document.documentElement.scrollHeight <= innerHeight"
    assert page.evaluate(fits)
    page.locator(".row").nth(3).click()
    page.keyboard.press("d")
    settled(page)
    expect(page.locator("h2")).to_contain_text("fresh checkout")
    assert page.evaluate(fits)
    assert page.locator("#detail").evaluate("node => node.scrollWidth <= node.clientWidth")
    page.keyboard.press("r")
    expect(page.locator("#confirm")).to_be_in_viewport()
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator(".row").first).to_be_in_viewport()


def test_nothing_jumps_while_it_loads_or_while_one_moves(place: Place, open_page: Open) -> None:
    three_backups(place)
    page = open_page()
    page.evaluate("""() => {
      window.shifts = [];
      new PerformanceObserver((list) => window.shifts.push(...list.getEntries().map((entry) => entry.value)))
        .observe({ type: "layout-shift", buffered: true });
    }""")
    for key in "jkjjkd":
        page.keyboard.press(key)
        settled(page)
    assert sum(page.evaluate("window.shifts")) < 0.05, "of the 0.1 that counts as good, half"


def test_a_screen_reader_finds_landmarks_the_list_and_its_choice(place: Place, open_page: Open) -> None:
    three_backups(place)
    page = open_page()
    for role in ("banner", "main", "contentinfo", "status", "tablist", "tabpanel"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("navigation", name="Backups")).to_be_visible()
    listbox = page.get_by_role("listbox", name="Backups, newest first")
    expect(listbox.get_by_role("option")).to_have_count(3)
    active = listbox.get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active}")).to_have_attribute("aria-selected", "true")
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, dialog[open], [role=tab]")]
        .filter((node) => !(node.innerText.trim() || node.ariaLabel)).map((node) => node.outerHTML)""")
    assert unnamed == []


def multiply(place: Place, times: int) -> None:
    """Give a backup as many older twins: each with an id and a time of its own, sharing its layer."""
    backup = place.create(name="newest")
    folder = place.store / "backups" / backup.id
    metadata = json.loads((folder / "meta.json").read_text())
    newest = datetime.now(UTC)
    for number in range(1, times + 1):
        made = newest - timedelta(seconds=7 * number)
        stamp = int(made.timestamp() * 1000) << 80
        twin = str(UUID(int=stamp | 0x7 << 76 | 0x2 << 62 | number))
        told = {"id": twin, "name": f"backup #{number}", "createdAt": made.isoformat().replace("+00:00", "Z")}
        target = folder.parent / twin
        target.mkdir()
        (target / "meta.json").write_text(json.dumps(metadata | told))


def test_of_ten_thousand_backups_only_as_many_are_read_as_are_looked_at_or_looked_for(
    tmp_path: Path, browser: Browser
) -> None:
    place = PlaceBeside(tmp_path)
    write(place.tree / "file", "x")
    multiply(place, 10_000)
    with Window(place.tree, store=place.store, state=place.state) as window, browser.new_page() as page:
        errors = watch(page)
        page.set_default_timeout(PATIENCE_MS)
        page.goto(window.link)
        expect(page.locator(".step > *").first).to_be_visible()
        assert page.locator(".row").count() <= 200
        scroll = page.locator("#scroll")
        for pages in (3, 5):
            while page.locator(".row").count() < pages * 100:
                scroll.evaluate("node => node.scrollTo(0, node.scrollHeight)")
                page.wait_for_function("() => document.querySelector('#list[aria-busy=false]')")
        page.keyboard.press("Home")
        expect(page.locator('.row[aria-selected="true"]')).to_contain_text("newest")
        page.keyboard.press("/")
        page.keyboard.type("backup #2999")
        expect(page.locator(".row")).to_have_count(1)
        expect(page.locator(".row")).to_contain_text("backup #2999")
        page.keyboard.press("Escape")
        page.wait_for_function("() => document.querySelectorAll('.row').length >= 3000")
        assert errors == []
