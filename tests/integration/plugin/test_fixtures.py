"""`sandbox_checkpoint`, what it returns, and fixtures made to order by `checkpoint_fixture`."""

import os
import shutil
from pathlib import Path

import pytest

from helpers import pytest_runs
from helpers.pytest_runs import ROOT, USER_WORKERS, WAYS, Way, run, save_backup
from helpers.trees import assert_same, build_zoo, list_tree, write

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="overlays, owners and another user need root")

STRATEGIES = ("overlay", "copy")
HELPERS = ("-o", f"pythonpath={Path(pytest_runs.__file__).parents[1]}")


def for_workers(way: Way) -> tuple[str, ...]:
    """Return what an ordinary user sets in the ini-file, so that workers can mount overlays."""
    return ("-o", "sandbox_namespace=always") if way is USER_WORKERS else ()


def contents(root: Path) -> dict[str, str]:
    return {os.path.relpath(path, root): path.read_text() for path in root.rglob("*") if path.is_file()}


# -- the end of the scope --


@pytest.mark.parametrize(("asked_for", "strategy"), [("auto", "overlay"), ("copy", "copy")])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_directory_comes_back_when_the_test_ends_and_not_before(
    pytester: pytest.Pytester, data: Path, way: Way, asked_for: str, strategy: str
) -> None:
    pytester.makepyfile(f"""
        import os
        from contextlib import contextmanager

        import pytest
        from pytest_sandpoint.turn import SharedTurn

        def names():
            return sorted(os.listdir("data"))

        @contextmanager
        def undisturbed(config):
            if {strategy!r} != "copy" or not hasattr(config, "workerinput"):
                yield
                return
            # Before and after this test's turn at the directory another worker may have its own, and write.
            turn = SharedTurn(config.workerinput["sandpoint_queue"])
            turn.take()
            try:
                yield
            finally:
                turn.give_back()

        @pytest.fixture
        def outlives_it(pytestconfig):
            with undisturbed(pytestconfig):
                assert names() == ["kept", "sub"]
            yield
            with undisturbed(pytestconfig):
                assert names() == ["kept", "sub"]
                assert open("data/kept").read() == "kept\\n"
                assert open("data/sub/inner").read() == "inner\\n"

        @pytest.fixture
        def checkpoint(outlives_it, sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            yield checkpoint
            assert names() == ["kept", "new"]
            assert open("data/kept").read() == "written"

        @pytest.mark.parametrize("number", range(5))
        def test_it(checkpoint, number):
            assert checkpoint.strategy == {strategy!r}
            assert names() == ["kept", "sub"]
            (checkpoint.path / "kept").write_text("written")
            (checkpoint.path / "new").write_text(str(number))
            os.unlink("data/sub/inner")
            os.rmdir("data/sub")
            assert names() == ["kept", "new"]
    """)
    before = contents(data)
    run(pytester, way, f"--sandbox-strategy={asked_for}", *for_workers(way)).assert_outcomes(passed=5)
    assert contents(data) == before
    assert str(data) not in Path("/proc/self/mountinfo").read_text()


WRECK = """
    import os
    import shutil
    from pathlib import Path

    import pytest
    from helpers.trees import ACL_ACCESS, assert_same, differences, list_tree, make_acl, write

    DATA = Path("data")

    def wreck():
        os.rename(DATA / "names", DATA / "names moved")
        shutil.rmtree(DATA / "dirs")
        shutil.rmtree(DATA / "nest" / "level0" / "level1" / "level2")
        write(DATA / "nest" / "level0" / "level1" / "level2", "a file now")
        (DATA / "contents" / "one").unlink()
        write(DATA / "contents" / "one" / "in a directory", "now")
        shutil.rmtree(DATA / "empty")
        (DATA / "empty").symlink_to("contents")
        times = os.stat(DATA / "contents" / "block")
        (DATA / "contents" / "block").write_bytes(b"x" * 131_072)
        os.utime(DATA / "contents" / "block", ns=(times.st_atime_ns, times.st_mtime_ns))
        os.truncate(DATA / "contents" / "sparse", 7)
        with open(DATA / "contents" / "random", "ab") as file:
            file.write(b"more")
        for name in ("file644", "dir755"):
            os.chmod(DATA / "modes" / name, 0o4711)
            os.chown(DATA / "modes" / name, 7, 8)
        os.setxattr(DATA / "xattrs" / "user.note", "user.note", b"another")
        os.removexattr(DATA / "xattrs" / "trusted.note", "trusted.note")
        os.setxattr(DATA / "acls" / "file", ACL_ACCESS, make_acl(user=99))
        os.removexattr(DATA / "acls" / "both", ACL_ACCESS)
        os.utime(DATA / "times" / "1970", ns=(0, 5))
        os.utime(DATA / "times" / "dir 1970", ns=(0, 5))
        os.unlink(DATA / "nodes" / "fifo")
        os.unlink(DATA / "nodes" / "char")
        os.mkfifo(DATA / "nodes" / "char")
        for path in sorted((DATA / "links").rglob("*")):
            if path.is_file() and not path.is_symlink():
                path.write_text("no longer what its links hold")
                break
        os.link(DATA / "contents" / "random", DATA / "linked anew")
        os.rename(DATA / "acls", DATA / "acls away")
        (DATA / "acls").mkdir()
        os.setxattr(DATA, "user.root", b"changed")
        os.setxattr(DATA, "user.more", b"added")
        os.chown(DATA, 5, 6)
        DATA.chmod(0o700)

    @pytest.fixture
    def checkpoint(sandbox_checkpoint):
        before = list_tree(DATA)
        checkpoint = sandbox_checkpoint("data")
        assert_same(before, list_tree(DATA))
        for _ in range(2):
            wreck()
            assert len(differences(before, list_tree(DATA))) > 150
            checkpoint.restore()
            assert_same(before, list_tree(DATA))
        assert not checkpoint.changes()
        wreck()
        return checkpoint

    @pytest.fixture
    def written_to(sandbox_checkpoint):
        sandbox_checkpoint("data")
        write(DATA / "contents" / "one", "another one")
        write(DATA / "layer" / "below", "layer")
        os.rename(DATA / "nodes", DATA / "nodes moved")
        os.mkdir(DATA / "nodes")
        for name in ("fifo", "char"):
            os.rename(DATA / "nodes moved" / name, DATA / "nodes" / name)

    @pytest.fixture
    def outlives_it():
        before = list_tree(DATA)
        yield
        assert_same(before, list_tree(DATA))
"""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_kind_of_thing_comes_back_as_it_was(pytester: pytest.Pytester, strategy: str) -> None:
    data = pytester.path / "data"
    build_zoo(data)
    pytester.makeconftest(WRECK)
    pytester.makepyfile(
        test_zoo=f"""
        def test_as_it_lies(outlives_it, checkpoint):
            assert checkpoint.strategy == {strategy!r}

        def test_upon_another_that_was_written_to(outlives_it, written_to, checkpoint):
            pass
    """
    )
    before = list_tree(data)
    run(pytester, ROOT, f"--sandbox-strategy={strategy}", *HELPERS, "test_zoo.py").assert_outcomes(passed=2)
    assert_same(before, list_tree(data))


def test_what_one_strategy_lays_upon_the_other_comes_back_in_order(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile("""
        import os
        import pytest

        def states(sandbox_checkpoint, strategies):
            made = []
            for number, strategy in enumerate(strategies):
                checkpoint = sandbox_checkpoint("data", strategy=strategy)
                assert checkpoint.strategy == strategy
                made.append((checkpoint, open("data/kept").read()))
                open("data/kept", "w").write(f"level {number}")
                open(f"data/new{number}", "w").write("new")
            return made

        @pytest.fixture
        def outlives_it():
            yield
            assert sorted(os.listdir("data")) == ["kept", "sub"]
            assert open("data/kept").read() == "kept\\n"

        @pytest.mark.parametrize("strategies", [
            ["copy", "overlay"], ["overlay", "copy"], ["copy", "overlay", "copy", "overlay"],
            ["overlay", "copy", "copy", "overlay", "overlay", "copy"],
        ])
        def test_it(outlives_it, sandbox_checkpoint, strategies):
            made = states(sandbox_checkpoint, strategies)
            checkpoint, content = made[-1]
            checkpoint.restore()
            assert open("data/kept").read() == content
            assert sorted(os.listdir("data")) == ["kept", *(f"new{n}" for n in range(len(made) - 1)), "sub"]
    """)
    run(pytester, ROOT).assert_outcomes(passed=4)


# -- the directory --


def test_the_path_is_the_directory_as_it_was_named_wherever_pytest_was_started(
    pytester: pytest.Pytester, data: Path
) -> None:
    (pytester.path / "link").symlink_to("data")
    pytester.mkdir("elsewhere")
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(f"""
        import os
        from pathlib import Path

        import pytest

        @pytest.mark.parametrize("named", ["data", "./elsewhere/../data", "link", {str(data)!r}, Path("data"),
                                           Path({str(data)!r}), "data/"])
        def test_it(sandbox_checkpoint, named):
            checkpoint = sandbox_checkpoint(named)
            assert isinstance(checkpoint.path, Path)
            assert checkpoint.path == Path({str(pytester.path)!r}, named)
            (checkpoint.path / "new").write_text("new")
            assert os.listdir({str(data)!r}).count("new") == 1
            checkpoint.restore()
            assert not (checkpoint.path / "new").exists()
    """)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(pytester.path / "elsewhere")
        run(pytester, ROOT, "..").assert_outcomes(passed=7)


def test_several_directories_come_back_together(pytester: pytest.Pytester, data: Path) -> None:
    shutil.copytree(data, pytester.path / "other")
    pytester.makepyfile("""
        import os

        def test_writes(sandbox_checkpoint):
            first, second = sandbox_checkpoint("data"), sandbox_checkpoint("other", strategy="copy")
            os.rename("data/kept", "other/moved") if first.strategy == second.strategy else None
            (first.path / "new").write_text("1")
            (second.path / "new").write_text("2")
            second.restore()
            assert os.path.exists("data/new") and not os.path.exists("other/new")

        def test_sees_nothing_of_it():
            assert sorted(os.listdir("data")) == sorted(os.listdir("other")) == ["kept", "sub"]
    """)
    run(pytester, ROOT).assert_outcomes(passed=2)


# -- restore() and changes() --


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_restore_brings_it_back_as_often_as_wanted(pytester: pytest.Pytester, data: Path, strategy: str) -> None:
    pytester.makepyfile("""
        import os

        def test_it(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            for number in range(20):
                (checkpoint.path / "kept").write_text(f"{number}")
                (checkpoint.path / f"new{number}").write_text("new")
                assert checkpoint.changes().added == (f"new{number}",)
                checkpoint.restore()
                assert (checkpoint.path / "kept").read_text() == "kept\\n"
                assert sorted(os.listdir("data")) == ["kept", "sub"]
                assert not checkpoint.changes()
    """)
    run(pytester, ROOT, f"--sandbox-strategy={strategy}").assert_outcomes(passed=1)


CHANGES = """
    import os
    import shutil
    from pathlib import Path

    import pytest

    DATA = Path("data")
    # To an ordinary user the kernel says of an overlay's folders that they cannot be renamed, as between filesystems.
    rename = shutil.move if os.geteuid() else os.rename

    def nothing():
        pass

    def new_file():
        (DATA / "new").write_text("new")

    def new_folder():
        (DATA / "folder" / "below").mkdir(parents=True)
        (DATA / "folder" / "below" / "file").write_text("new")

    def rewritten():
        (DATA / "kept").write_text("other, and longer")

    def rewritten_with_the_same_size_and_time():
        times = os.stat(DATA / "kept")
        (DATA / "kept").write_text("KEPT\\n")
        os.utime(DATA / "kept", ns=(times.st_atime_ns, times.st_mtime_ns))

    def rewritten_to_the_same():
        times, text = os.stat(DATA / "kept"), (DATA / "kept").read_text()
        (DATA / "kept").unlink()
        (DATA / "kept").write_text(text)
        os.utime(DATA / "kept", ns=(times.st_atime_ns, times.st_mtime_ns))

    def touched():
        os.utime(DATA / "kept")

    def other_mode():
        (DATA / "kept").chmod(0o600)

    def other_mode_of_a_folder():
        (DATA / "sub").chmod(0o700)

    def other_mode_of_itself():
        DATA.chmod(0o700)

    def other_attribute():
        os.setxattr(DATA / "kept", "user.note", b"x")

    def removed():
        (DATA / "kept").unlink()

    def folder_removed():
        shutil.rmtree(DATA / "sub")

    def folder_emptied_and_filled():
        shutil.rmtree(DATA / "sub")
        (DATA / "sub").mkdir()
        (DATA / "sub" / "other").write_text("other")

    def folder_renamed():
        rename(DATA / "sub", DATA / "moved")

    def folder_renamed_and_written_to():
        rename(DATA / "sub", DATA / "moved")
        (DATA / "moved" / "inner").write_text("written to")
        (DATA / "moved" / "more").write_text("more")

    def folder_renamed_and_another_made():
        rename(DATA / "sub", DATA / "moved")
        (DATA / "sub").mkdir()

    def folder_renamed_and_back():
        rename(DATA / "sub", DATA / "moved")
        rename(DATA / "moved", DATA / "sub")

    def came_and_went():
        new_folder()
        shutil.rmtree(DATA / "folder")

    def file_to_folder():
        (DATA / "kept").unlink()
        (DATA / "kept").mkdir()
        (DATA / "kept" / "inside").write_text("x")

    def folder_to_file():
        shutil.rmtree(DATA / "sub")
        (DATA / "sub").write_text("x")

    def folder_to_link():
        rename(DATA / "sub", DATA / "moved")
        (DATA / "sub").symlink_to("moved")

    def odd_names():
        open(b"data/not utf-8 \\xff", "w").close()
        open("data/new\\nline", "w").close()

    CASES = [
        (nothing, [], [], []),
        (new_file, ["new"], [], []),
        (new_folder, ["folder", "folder/below", "folder/below/file"], [], []),
        (rewritten, [], ["kept"], []),
        (rewritten_with_the_same_size_and_time, [], ["kept"], []),
        (rewritten_to_the_same, [], [], []),
        (touched, [], ["kept"], []),
        (other_mode, [], ["kept"], []),
        (other_mode_of_a_folder, [], ["sub"], []),
        (other_mode_of_itself, [], ["."], []),
        (other_attribute, [], ["kept"], []),
        (removed, [], [], ["kept"]),
        (folder_removed, [], [], ["sub", "sub/inner"]),
        (folder_emptied_and_filled, ["sub/other"], [], ["sub/inner"]),
        (folder_renamed, ["moved", "moved/inner"], [], ["sub", "sub/inner"]),
        (folder_renamed_and_written_to, ["moved", "moved/inner", "moved/more"], [], ["sub", "sub/inner"]),
        (folder_renamed_and_another_made, ["moved", "moved/inner"], [], ["sub/inner"]),
        (folder_renamed_and_back, [], [], []),
        (came_and_went, [], [], []),
        (file_to_folder, ["kept/inside"], ["kept"], []),
        (folder_to_file, [], ["sub"], ["sub/inner"]),
        (folder_to_link, ["moved", "moved/inner"], ["sub"], ["sub/inner"]),
        (odd_names, ["new\\\\nline", "not utf-8 \\\\xff"], [], []),
    ]

    @pytest.mark.parametrize(("change", "added", "modified", "removed"), CASES, ids=lambda value: getattr(
        value, "__name__", ""))
    def test_it(sandbox_checkpoint, change, added, modified, removed):
        checkpoint = sandbox_checkpoint("data")
        change()
        changes = checkpoint.changes()
        assert [*map(list, (changes.added, changes.modified, changes.removed))] == [added, modified, removed]
        assert bool(changes) == bool(added or modified or removed)
        upon_it = sandbox_checkpoint("data")
        assert not upon_it.changes()
        (DATA / "later").write_text("later")
        assert upon_it.changes().added == ("later",)
"""
CASES = 23


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_changes_tells_what_was_added_modified_and_removed(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile(CHANGES)
    run(pytester, ROOT, f"--sandbox-strategy={strategy}").assert_outcomes(passed=CASES)


def test_an_ordinary_user_sees_the_same_changes(pytester: pytest.Pytester, data: Path) -> None:
    pytester.makepyfile(CHANGES)
    run(pytester, pytest_runs.USER, "--sandbox-strategy=overlay").assert_outcomes(passed=CASES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_changes_are_told_whatever_later_checkpoints_they_were_made_in(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    pytester.makepyfile("""
        import os
        import shutil

        def test_it(sandbox_checkpoint):
            outer = sandbox_checkpoint("data")
            (outer.path / "first").write_text("first")
            middle = sandbox_checkpoint("data")
            (outer.path / "kept").write_text("written to")
            inner = sandbox_checkpoint("data/sub")
            (inner.path / "more").write_text("more")
            os.unlink("data/sub/inner")
            assert (inner.changes().added, inner.changes().removed) == (("more",), ("inner",))
            assert middle.changes().modified == outer.changes().modified == ("kept",)
            assert middle.changes().added == ("sub/more",)
            assert outer.changes().added == ("first", "sub/more")
            assert middle.changes().removed == outer.changes().removed == ("sub/inner",)
    """)
    run(pytester, ROOT, f"--sandbox-strategy={strategy}").assert_outcomes(passed=1)


# -- backups --


SAVED = """
    import os
    import pytest

    IDS = []

    def test_saves(sandbox_checkpoint):
        checkpoint = sandbox_checkpoint("data")
        (checkpoint.path / "seeded").write_text("seeded")
        (checkpoint.path / "sub" / "inner").unlink()
        (checkpoint.path / "left.log").write_text("log")
        backup = checkpoint.save(
            name="a seed", description="for tests", ttl=600, excludes=["*.log"], metadata={"ticket": "7"}
        )
        assert (backup.name, backup.description, backup.metadata) == ("a seed", "for tests", {"ticket": "7"})
        assert backup.dir == os.path.realpath("data")
        assert backup.expires_at is not None
        IDS.append(backup.id)
        checkpoint.restore()
        assert sorted(os.listdir("data")) == ["kept", "sub"]

    @pytest.fixture
    def outlives_it():
        yield
        assert sorted(os.listdir("data")) == ["kept", "sub"]
        assert not os.path.exists("new")

    @pytest.mark.parametrize("named", ["data", None])
    def test_starts_from_it(outlives_it, sandbox_checkpoint, named):
        checkpoint = sandbox_checkpoint(named, backup_id=IDS[0])
        assert os.fspath(checkpoint.path) == os.path.realpath("data") or named
        for _ in range(2):
            assert not checkpoint.changes()
            assert sorted(os.listdir("data")) == ["kept", "seeded", "sub"]
            assert os.listdir("data/sub") == []
            (checkpoint.path / "seeded").write_text("written to")
            assert checkpoint.changes().modified == ("seeded",)
            checkpoint.restore()
        (checkpoint.path / "seeded").unlink()

    def test_starts_from_it_elsewhere(outlives_it, sandbox_checkpoint):
        checkpoint = sandbox_checkpoint("new/place/for it", backup_id=IDS[0])
        assert sorted(os.listdir("new/place/for it")) == ["kept", "seeded", "sub"]
        (checkpoint.path / "more").write_text("more")
        assert checkpoint.changes().added == ("more",)

    def test_saves_again_from_there(sandbox_checkpoint):
        checkpoint = sandbox_checkpoint("data", backup_id=IDS[0])
        (checkpoint.path / "second").write_text("second")
        IDS.append(checkpoint.save().id)
        checkpoint.restore()
        assert sorted(os.listdir("data")) == ["kept", "seeded", "sub"]

    def test_starts_from_the_second(outlives_it, sandbox_checkpoint):
        sandbox_checkpoint("data", backup_id=IDS[1])
        assert sorted(os.listdir("data")) == ["kept", "second", "seeded", "sub"]
"""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("way", [ROOT, pytest_runs.USER], ids=lambda way: way.name)
def test_a_state_is_saved_as_a_backup_and_started_from(
    pytester: pytest.Pytester, data: Path, way: Way, strategy: str
) -> None:
    pytester.makepyfile(SAVED)
    before = contents(data)
    run(pytester, way, f"--sandbox-strategy={strategy}").assert_outcomes(passed=6)
    assert contents(data) == before


def test_backups_go_to_the_store_that_is_named(pytester: pytest.Pytester, data: Path) -> None:
    store = (pytester.path / "a store").as_uri()
    pytester.makepyfile(f"""
        import os
        import pytest
        from sandpoint import BackupNotFoundError

        STORE = {store!r}

        def test_it(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            (checkpoint.path / "seeded").write_text("seeded")
            backup = checkpoint.save(store=STORE)
            checkpoint.restore()
            with pytest.raises(BackupNotFoundError, match=backup.id):
                sandbox_checkpoint("data", backup_id=backup.id)
            assert not checkpoint.changes()
            sandbox_checkpoint("data", backup_id=backup.id, store=STORE)
            assert os.path.exists("data/seeded")
    """)
    run(pytester, ROOT).assert_outcomes(passed=1)
    assert len(list((pytester.path / "a store" / "backups").iterdir())) == 1


@pytest.mark.parametrize("way", [ROOT, USER_WORKERS], ids=lambda way: way.name)
def test_every_saved_state_is_that_of_its_own_test(pytester: pytest.Pytester, data: Path, way: Way) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("number", range(12))
        def test_it(sandbox_checkpoint, number):
            checkpoint = sandbox_checkpoint("data")
            assert checkpoint.strategy == "overlay"
            (checkpoint.path / "kept").write_text(f"{number:05}")
            (checkpoint.path / "sub" / "inner").write_text(f"{number:05}")
            backup = checkpoint.save()
            checkpoint.restore()
            sandbox_checkpoint("data", backup_id=backup.id)
            assert (checkpoint.path / "kept").read_text() == f"{number:05}"
            assert (checkpoint.path / "sub" / "inner").read_text() == f"{number:05}"
    """)
    run(pytester, way, *for_workers(way)).assert_outcomes(passed=12)


# -- made to order --


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fixtures_made_to_order_have_their_scope_strategy_name_and_use(
    pytester: pytest.Pytester, data: Path, strategy: str
) -> None:
    shutil.copytree(data, pytester.path / "other")
    pytester.makeconftest(f"""
        import os
        import pytest
        from pytest_sandpoint import checkpoint_fixture

        for_session = checkpoint_fixture("data", scope="session", strategy={strategy!r})
        for_package = checkpoint_fixture("data", scope="package", strategy={strategy!r})
        for_module = checkpoint_fixture("data", scope="module", strategy={strategy!r})
        for_class = checkpoint_fixture("data", scope="class", strategy={strategy!r})
        for_function = checkpoint_fixture("data", strategy={strategy!r})
        _hidden = checkpoint_fixture("data", name="by_another_name")
        everywhere = checkpoint_fixture("other", autouse=True)
    """)
    tests = f"""
        import os

        def names():
            return sorted(os.listdir("data"))

        def test_the_session(for_session):
            assert for_session.strategy == {strategy!r}
            assert names() == SESSION
            (for_session.path / "session").touch()
            (for_session.path.parent / "other" / "new").touch()

        def test_the_package_and_the_module(for_package, for_module):
            assert "new" not in os.listdir("other")
            assert names() == ["kept", "session", "sub"]
            (for_module.path / "module").touch()

        class TestClass:
            def test_begins(self, for_class):
                assert names() == ["kept", "module", "session", "sub"]
                (for_class.path / "class").touch()

            def test_goes_on(self, for_class, for_function):
                assert names() == ["class", "kept", "module", "session", "sub"]
                (for_function.path / "function").touch()

            def test_goes_further(self, by_another_name):
                assert names() == ["class", "kept", "module", "session", "sub"]

        def test_the_class_is_over():
            assert names() == ["kept", "module", "session", "sub"]
    """
    pytester.makepyfile(
        test_first=tests.replace("SESSION", '["kept", "sub"]'),
        test_second=tests.replace("SESSION", '["kept", "session", "sub"]'),
    )
    run(pytester, ROOT).assert_outcomes(passed=12)


def test_a_fixture_made_to_order_starts_from_a_backup(pytester: pytest.Pytester, data: Path) -> None:
    backup_id, store = save_backup(pytester)
    pytester.makeconftest(f"""
        from pytest_sandpoint import checkpoint_fixture

        seeded = checkpoint_fixture(backup_id={backup_id!r}, store={store!r}, scope="module")
        elsewhere = checkpoint_fixture("elsewhere", backup_id={backup_id!r}, store={store!r}, strategy="copy")
    """)
    pytester.makepyfile(
        test_starts="""
        import os

        def test_where_it_was(seeded):
            assert str(seeded.path) == os.path.realpath("data")
            assert seeded.strategy == "overlay"
            assert sorted(os.listdir("data")) == ["kept", "seeded", "sub"]

        def test_elsewhere(elsewhere):
            assert elsewhere.strategy == "copy"
            assert sorted(os.listdir("elsewhere")) == ["kept", "seeded", "sub"]

        def test_goes_on(seeded):
            assert os.path.exists("data/seeded")
            assert not os.path.exists("elsewhere")
    """
    )
    run(pytester, ROOT, "test_starts.py").assert_outcomes(passed=3)
    assert sorted(os.listdir(data)) == ["kept", "sub"]


def test_modules_of_tests_can_write_types_of_the_plugin(pytester: pytest.Pytester, data: Path) -> None:
    write(data / "more", "more")
    pytester.makepyfile("""
        import pytest
        import pytest_sandpoint
        from pytest_sandpoint import Checkpoint, SandboxCheckpointWarning, UsageError

        def test_it(sandbox_checkpoint):
            checkpoint = sandbox_checkpoint("data")
            assert type(checkpoint) is Checkpoint
            assert issubclass(SandboxCheckpointWarning, UserWarning)
            with pytest.raises(UsageError, match="does not exist"):
                sandbox_checkpoint("nowhere")
            with pytest.raises(AttributeError, match="nothing_of_this_name"):
                pytest_sandpoint.nothing_of_this_name
            for name in pytest_sandpoint.__all__:
                assert getattr(pytest_sandpoint, name) is not None
    """)
    run(pytester, ROOT).assert_outcomes(passed=1)
