"""Which sandboxes may be asked for, and how long each stays open."""

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from helpers.mcp import FakeService
from sandpoint.errors import InvalidBackupConfigError, SandboxUnavailableError
from sandpoint.models import ForkResult, RestoreResult
from sandpoint.sandboxes import AllowedSandboxes
from sandpoint.service import BackupService
from sandpoint.services import MAX_SIDE_BY_SIDE, Services, fork_to
from sandpoint.settings import Settings
from sandpoint.stores import Store

pytestmark = pytest.mark.anyio
ID = "0192f0c1-2a3b-7c4d-8e5f-60718293a4b5"


class Opened(FakeService):
    """A service that counts how it is used."""

    def __init__(self, name: str, log: "Log") -> None:
        super().__init__()
        self.name = name
        self.log = log

    async def close(self) -> None:
        self.log.open.remove(self.name)

    async def fork(self, backup_id: str, dirs: object, **options: object) -> ForkResult:
        self.log.running += 1
        self.log.most = max(self.log.most, self.log.running)
        try:
            await anyio.sleep(0.01)
            if self.name in self.log.broken:
                raise SandboxUnavailableError("it is gone")
        finally:
            self.log.running -= 1
        assert isinstance(dirs, list)
        restores = [
            RestoreResult(success=True, id=backup_id, dir=each, mode="overlay", changes=None, undo_id=ID)
            for each in dirs
        ]
        return ForkResult(success=True, id=backup_id, restores=tuple(restores))


class Log:
    """What was opened, and is still open."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.open: list[str] = []
        self.broken: tuple[str, ...] = ()
        self.running = 0
        self.most = 0

    def opener(
        self, settings: Settings, *, allowed: AllowedSandboxes | None = None, store: Store | None = None
    ) -> BackupService:
        self.opened.append(settings.sandbox)
        self.open.append(settings.sandbox)
        return Opened(settings.sandbox, self)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def make(tmp_path: Path, log: Log) -> Callable[..., Services]:
    def made(*patterns: str, sandbox: str = "local", max_open: int = 64) -> Services:
        settings = Settings(store=(tmp_path / "store").as_uri(), sandbox=sandbox, sandboxes=patterns or None)
        return Services(settings, opener=log.opener, max_open=max_open)

    return made


@pytest.mark.parametrize("name", ["docker:web", "docker:agent-1", "docker:agent-", "local"])
def test_a_name_that_a_pattern_matches_as_a_whole_is_allowed(name: str) -> None:
    assert AllowedSandboxes(("docker:agent-*", "docker:web", "local")).check(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "docker:web2",
        "docker:my-web",
        "docker:WEB",
        "web",
        "docker:",
        "",
        "docker:web\n",
        "docker:web\ndocker:agent-1",
        "docker:agent-1\x00",
        "docker:agent-" + "1" * 300,
        "docker:label=role=web",
        "DOCKER:web",
        " docker:web",
        "local",
        "kubernetes:web",
    ],
)
def test_any_other_name_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(InvalidBackupConfigError, match=r"^sandbox: "):
        AllowedSandboxes(("docker:agent-*", "docker:web")).check(name)


def test_a_container_is_refused_by_its_own_name() -> None:
    allowed = AllowedSandboxes(("docker:abc*",))
    assert allowed.check("docker:abc123") == "docker:abc123"
    with pytest.raises(InvalidBackupConfigError, match="'docker:abc123' is a container whose name"):
        allowed.check_container("abc123", "secret")
    with pytest.raises(InvalidBackupConfigError) as caught:
        allowed.check_container("abc123", "secret")
    assert "secret" not in str(caught.value)


def test_nothing_is_opened_for_a_name_that_is_refused(make: Callable[..., Services], log: Log) -> None:
    async def ask() -> None:
        async with make("docker:web") as services:
            for name in ("docker:other", "local", None):
                with pytest.raises(InvalidBackupConfigError):
                    async with services.use(name):
                        pass
            async with services.use_store() as service:
                await service.list()
            with pytest.raises(InvalidBackupConfigError):
                await fork_to(services, ID, [("docker:web", "/a"), ("docker:other", "/a")])

    anyio.run(ask)
    assert log.opened == ["local"]  # for the store


async def test_a_sandbox_stays_open_until_the_end(make: Callable[..., Services], log: Log) -> None:
    async with make("docker:*", sandbox="docker:a") as services:
        for name in (None, "docker:a", "docker:b", "docker:a"):
            async with services.use(name):
                pass
        assert log.opened == log.open == ["docker:a", "docker:b"]
    assert log.open == []


async def test_of_too_many_that_which_was_not_used_for_longest_is_closed(
    make: Callable[..., Services], log: Log
) -> None:
    async with make("docker:*", max_open=2) as services:
        async with services.use("docker:a"), services.use("docker:b"):
            pass
        async with services.use("docker:a"), services.use("docker:c"):
            assert sorted(log.open) == ["docker:a", "docker:c"]
        async with services.use("docker:b"):
            assert sorted(log.open) == ["docker:b", "docker:c"]


async def test_one_in_use_is_waited_for_where_no_more_may_be_open(make: Callable[..., Services], log: Log) -> None:
    async with make("docker:*", max_open=1) as services, anyio.create_task_group() as tasks:
        entered = anyio.Event()

        async def other() -> None:
            async with services.use("docker:b"):
                entered.set()

        async with services.use("docker:a"):
            tasks.start_soon(other)
            await anyio.wait_all_tasks_blocked()
            assert not entered.is_set()
        await entered.wait()
        assert log.opened == ["docker:a", "docker:b"]


async def test_a_fork_goes_on_in_several_sandboxes_at_once_and_tells_them_in_order(
    make: Callable[..., Services], log: Log
) -> None:
    names = [f"docker:{number}" for number in range(20)]
    async with make("docker:*") as services:
        result = await fork_to(services, ID, [(name, folder) for name in names for folder in ("/a", "/b")])
    assert [(each.sandbox, each.dir) for each in result.restores] == [(n, d) for n in names for d in ("/a", "/b")]
    assert log.most == MAX_SIDE_BY_SIDE


async def test_a_failed_fork_begins_nothing_more_and_names_what_is_done(
    make: Callable[..., Services], log: Log
) -> None:
    log.broken = ("docker:1",)
    async with make("docker:*") as services:
        with pytest.raises(SandboxUnavailableError) as caught:
            await fork_to(services, ID, [(f"docker:{number}", "/a") for number in range(20)])
    assert len(log.opened) == MAX_SIDE_BY_SIDE
    assert str(caught.value).startswith("docker:1: it is gone. Done, and not undone: /a in docker:0 (undo ")


async def test_a_fork_names_something(make: Callable[..., Services]) -> None:
    async with make() as services:
        with pytest.raises(InvalidBackupConfigError, match="targets"):
            await fork_to(services, ID, [])
