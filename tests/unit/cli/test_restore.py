import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from helpers.cli import ID, OTHER_ID, UNDO_ID, FakeService
from sandpoint.cli import main
from sandpoint.models import Changes, ForkResult, RestoreResult

Answer = Callable[..., FakeService]

CHANGES = Changes(added=("b",), modified=("a\\x1b", "c"), removed=("[red]d",))


def make_result(**changes: Any) -> RestoreResult:
    values: dict[str, Any] = {
        "success": True,
        "id": ID,
        "dir": "/work",
        "mode": "copy",
        "changes": CHANGES,
        "undo_id": UNDO_ID,
    }
    return RestoreResult(**(values | changes))


def test_every_option_reaches_the_service(answer: Answer) -> None:
    service = answer(restore=make_result())
    arguments = f"restore {ID} --to /other --mode overlay --path a --path b/c --dry-run --no-undo"
    assert main(arguments.split()) == 0
    assert service.calls == [
        (
            "restore",
            {
                "backup_id": ID,
                "dir": "/other",
                "mode": "overlay",
                "paths": ["a", "b/c"],
                "dry_run": True,
                "undo": False,
            },
        )
    ]


def test_without_options_the_undo_is_kept(answer: Answer) -> None:
    service = answer(restore=make_result())
    assert main(["restore", ID]) == 0
    assert service.calls[0][1] == {
        "backup_id": ID,
        "dir": None,
        "mode": "auto",
        "paths": (),
        "dry_run": False,
        "undo": True,
    }


def test_a_person_is_told_the_changes_and_the_way_back(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(restore=make_result())
    assert main(["restore", ID]) == 0
    out, err = capsys.readouterr()
    first, *rest = out.splitlines()
    assert re.fullmatch(rf"Restored /work from backup {ID} by copy in \d+ ms: 1 added, 2 modified, 1 removed\.", first)
    assert rest == [
        f"The state before is backup {UNDO_ID}.",
        f"Go back to it with: sandpoint restore {UNDO_ID}",
    ]
    assert err == ""


def test_a_dry_run_prints_the_plan_in_order_and_that_nothing_was_changed(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(restore=make_result(dry_run=True, undo_id=None))
    assert main(["restore", ID, "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "- [red]d",
        "~ a\\x1b",
        "+ b",
        "~ c",
        f"A restore of /work from backup {ID} by copy would give: 1 added, 2 modified, 1 removed.",
        "Nothing was changed.",
    ]


def test_a_dry_run_without_changes_says_so(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(restore=make_result(dry_run=True, undo_id=None, changes=Changes()))
    assert main(["restore", ID, "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        f"A restore of /work from backup {ID} by copy would give: no change.\nNothing was changed.\n"
    )


def test_a_dry_run_of_an_overlay_has_no_plan(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(restore=make_result(dry_run=True, undo_id=None, mode="overlay", changes=None))
    assert main(["restore", ID, "--dry-run"]) == 0
    assert capsys.readouterr().out == f"Backup {ID} would be mounted on /work by overlay. Nothing was changed.\n"


def test_nothing_to_do_is_said(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(restore=make_result(changes=Changes(), undo_id=None))
    assert main(["restore", ID]) == 0
    assert capsys.readouterr().out == f"/work was the same as backup {ID} already. Nothing was changed.\n"


def test_an_undo_of_times_alone_is_told_of(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(restore=make_result(changes=Changes()))
    assert main(["restore", ID]) == 0
    assert "but for times of directories: they are put right." in capsys.readouterr().out


def test_an_overlay_that_was_taken_down_is_told_of(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(restore=make_result(changes=Changes(), unmounted=True))
    assert main(["restore", ID]) == 0
    assert capsys.readouterr().out.startswith("The overlay on /work was taken down; below it, all was the same")


def test_an_overlay_says_how_to_take_it_down(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(restore=make_result(mode="overlay", changes=None, dir="/work dir"))
    assert main(["restore", ID]) == 0
    out = capsys.readouterr().out
    assert re.match(rf"Restored /work dir from backup {ID} by overlay in \d+ ms\.\n", out)
    assert out.endswith("Take the overlay down with: sandpoint unmount '/work dir'\n")


def test_what_was_left_alone_is_a_warning(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(restore=make_result(kept_paths=("extra",), skipped_mounts=("data",)))
    assert main(["restore", ID]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: extra directories stay because they hold excluded paths: extra",
        "warning: mounts inside the directory were left alone: data",
    ]


def make_fork(*restores: RestoreResult) -> ForkResult:
    return ForkResult(success=True, id=ID, restores=restores)


def test_several_directories_are_a_fork_with_the_same_options(answer: Answer) -> None:
    service = answer(fork=make_fork(make_result(dir="/a"), make_result(dir="/b")))
    assert main(f"restore {ID} --to /a --to /b --mode copy --path p --dry-run --no-undo".split()) == 0
    assert service.calls == [
        (
            "fork",
            {
                "backup_id": ID,
                "dirs": ["/a", "/b"],
                "mode": "copy",
                "paths": ["p"],
                "dry_run": True,
                "undo": False,
            },
        )
    ]


def test_a_fork_is_told_directory_by_directory_with_the_ways_back(
    answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(
        fork=make_fork(
            make_result(dir="/work/a"),
            make_result(dir="/work/b", changes=Changes(), undo_id=None),
            make_result(dir="/work/c\x1b", mode="overlay", changes=None, unmounted=True, undo_id=OTHER_ID),
            make_result(dir="/work/d e", mode="overlay", changes=None, undo_id=None),
        )
    )
    assert main(["restore", ID, "--to", "/work/a", "--to", "/work/b", "--store", "file:///s"]) == 0
    out, err = capsys.readouterr()
    first, *rest = out.splitlines()
    assert re.fullmatch(rf"Restored 4 directories from backup {ID} in \d+ ms:", first)
    assert rest == [
        "  /work/a by copy: 1 added, 2 modified, 1 removed",
        "  /work/b by copy: no change",
        "  /work/c\\x1b by overlay; an overlay was taken down",
        "  /work/d e by overlay",
        "Go back to the state before with:",
        f"  sandpoint restore {UNDO_ID} --store file:///s  # /work/a",
        f"  sandpoint restore {OTHER_ID} --store file:///s  # /work/c\\x1b",
        "Take the overlays down with:",
        "  sandpoint unmount $'/work/c\\x1b' --store file:///s",
        "  sandpoint unmount '/work/d e' --store file:///s",
    ]
    assert err == ""


def test_a_single_way_back_of_a_fork_is_a_line(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = make_result(dir="/b", mode="overlay", changes=None, undo_id=None)
    answer(fork=make_fork(make_result(dir="/a"), overlay))
    assert main(["restore", ID, "--to", "/a", "--to", "/b"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"Go back to the state before with: sandpoint restore {UNDO_ID}  # /a",
        "Take the overlay down with: sandpoint unmount /b",
    ]


def test_a_dry_run_of_a_fork_counts_what_would_change(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    planned = [make_result(dir=dir, dry_run=True, undo_id=None) for dir in ("/a", "/b")]
    answer(fork=make_fork(*planned))
    assert main(["restore", ID, "--to", "/a", "--to", "/b", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"A restore of 2 directories from backup {ID} would give:",
        "  /a by copy: 1 added, 2 modified, 1 removed",
        "  /b by copy: 1 added, 2 modified, 1 removed",
        "Nothing was changed.",
    ]


def test_a_warning_of_a_fork_names_the_directory(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    answer(fork=make_fork(make_result(dir="/a", kept_paths=("extra",)), make_result(dir="/b", skipped_mounts=("m",))))
    assert main(["restore", ID, "--to", "/a", "--to", "/b"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: /a: extra directories stay because they hold excluded paths: extra",
        "warning: /b: mounts inside the directory were left alone: m",
    ]


def test_a_program_gets_the_fork(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    result = make_fork(make_result(dir="/a"), make_result(dir="/b"))
    answer(fork=result)
    assert main(["restore", ID, "--to", "/a", "--to", "/b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result.model_dump(mode="json")


def test_several_sandboxes_are_restored_in_and_each_command_names_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    async def fork_to(
        services: object, backup_id: str, targets: Iterable[tuple[str, str]], **options: Any
    ) -> ForkResult:
        asked.update(options, backup_id=backup_id, targets=list(targets))
        restores = [
            make_result(dir=folder, sandbox=name, mode="overlay", changes=None) for name, folder in asked["targets"]
        ]
        return ForkResult(success=True, id=ID, restores=tuple(restores))

    monkeypatch.setattr("sandpoint.services.fork_to", fork_to)
    where = ["--sandbox", "docker:a", "--sandbox", "docker:b", "--to", "/w"]
    assert main(["restore", ID, *where]) == 0
    assert asked["targets"] == [("docker:a", "/w"), ("docker:b", "/w")]
    out = capsys.readouterr().out
    assert "  docker:a /w by overlay\n  docker:b /w by overlay\n" in out
    assert f"  sandpoint restore {UNDO_ID} --sandbox docker:b  # docker:b /w\n" in out
    assert "  sandpoint unmount /w --sandbox docker:a\n" in out
    assert main(["restore", ID, *where[:4]]) == 2
    assert "several --sandbox need --to DIR" in capsys.readouterr().err


def test_one_sandbox_reaches_the_settings(answer: Answer, capsys: pytest.CaptureFixture[str]) -> None:
    service = answer(restore=make_result(taken_in="docker:abc"))
    assert main(["restore", ID, "--sandbox", "docker:web"]) == 0
    out = capsys.readouterr().out
    assert "The backup was taken in another sandbox, docker:abc.\n" in out
    assert f"sandpoint restore {UNDO_ID} --sandbox docker:web\n" in out
    assert service.closed
