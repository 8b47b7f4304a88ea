"""What the doors make of containers: several at once, stopped and removed ones, and what is kept for them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client

from helpers.cli import Program
from helpers.docker import Engine, Target, of
from helpers.dockerd import daemon_apart
from helpers.mcp import sandpoint_server, text
from sandpoint import Services
from sandpoint.errors import BackupRestoreError, InvalidBackupConfigError, SandboxUnavailableError, SandpointError
from sandpoint.models import PruneResult
from sandpoint.sandboxes.docker import upkeep
from sandpoint.sandboxes.docker.host import ROLE_LABEL, VOLUME
from sandpoint.service import BackupService, open_service
from sandpoint.services import fork_to
from sandpoint.settings import Settings

Start = Callable[..., Target]
NOWHERE = "unix:///no/such/socket"

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(store=(tmp_path / "store").as_uri(), state_dir=str(tmp_path / "state"), docker_way="direct")


@pytest.fixture
def sandpoint(tmp_path: Path) -> Program:
    return Program(
        SANDPOINT_STORE=(tmp_path / "store").as_uri(),
        SANDPOINT_STATE_DIR=str(tmp_path / "state"),
        SANDPOINT_DOCKER_WAY="direct",
    )


def of_sandbox(settings: Settings, name: str) -> BackupService:
    return open_service(settings.model_copy(update={"sandbox": name}))


def visitors() -> set[int]:
    """The processes that this one has in containers."""
    return {each.pid for each in psutil.Process().children() if "sandpoint.engine.visiting" in " ".join(each.cmdline())}


async def test_what_was_started_for_a_container_ends_with_the_service(
    settings: Settings, start_container: Start
) -> None:
    target = start_container()
    before = visitors()

    async def fail() -> None:
        async with of_sandbox(settings, target.sandbox) as service:
            await service.create("/workspace")
            assert len(visitors() - before) == 1
            await service.create("/no/such/directory")

    with pytest.raises(InvalidBackupConfigError):
        await fail()
    assert visitors() == before


async def test_a_cancelled_use_ends_it_too(settings: Settings, start_container: Start) -> None:
    target = start_container()
    before = visitors()
    with anyio.CancelScope() as scope:
        async with of_sandbox(settings, target.sandbox) as service:
            await service.create("/workspace")
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert visitors() == before


async def test_a_fork_gives_each_container_a_tree_of_its_own(settings: Settings, start_container: Start) -> None:
    source, *others = [start_container() for _ in range(4)]
    source.write("/workspace/of", "the backup")
    others[0].write("/workspace/other", "goes")
    async with Services(settings) as services:
        async with services.use(source.sandbox) as service:
            backup = await service.create("/workspace")
        result = await fork_to(services, backup.id, [(each.sandbox, "/workspace") for each in others])
        assert [each.sandbox for each in result.restores] == [each.sandbox for each in others]
        assert {each.mode for each in result.restores} == {"overlay"}
        assert {each.taken_in for each in result.restores} == {backup.sandbox_id}
        for each in others:
            assert each.run("ls", "-A", "/workspace") == b"of\n"
            each.write("/workspace/of", each.name)
        for each in (*others, source):
            assert each.read("/workspace/of").decode() == ("the backup" if each is source else each.name)
        async with services.use(others[0].sandbox) as service:
            again = await service.create("/workspace")
            assert (again.kind, again.parent_id) == ("delta", backup.id)


async def test_a_fork_that_fails_in_one_container_names_what_is_done(
    settings: Settings, start_container: Start
) -> None:
    first, gone = start_container(), start_container()
    async with Services(settings) as services:
        async with services.use(first.sandbox) as service:
            backup = await service.create("/workspace")
        gone.container.stop()
        with pytest.raises(SandboxUnavailableError) as caught:
            await fork_to(services, backup.id, [(first.sandbox, "/workspace/a"), (gone.sandbox, "/workspace/a")])
    assert str(caught.value).startswith(f"{gone.sandbox}: container {gone.name} is not running")
    assert f"Done, and not undone: /workspace/a in {first.sandbox}" in str(caught.value)
    assert not isinstance(caught.value, BackupRestoreError)


async def test_a_container_counts_by_its_name_however_it_is_asked_for(
    settings: Settings, start_container: Start
) -> None:
    agent = start_container(labels={"role": "agent"})
    secret = start_container(labels={"role": "secret"})
    patterns = (agent.sandbox, f"docker:{agent.id[:6]}*", f"docker:{secret.id[:6]}*", "docker:label=*")
    async with Services(settings.model_copy(update={"sandboxes": patterns})) as services:
        for name in (agent.sandbox, f"docker:{agent.id}", "docker:label=role=agent"):
            async with services.use(name) as service:
                assert (await service.create("/workspace")).sandbox_id == f"docker:{agent.id[:12]}"
        for name in (f"docker:{secret.id}", f"docker:{secret.id[:12]}", "docker:label=role=secret"):
            async with services.use(name) as service:
                with pytest.raises(InvalidBackupConfigError, match="whose name is not among"):
                    await service.create("/workspace")
                with pytest.raises(InvalidBackupConfigError, match="whose name is not among"):
                    await service.sandbox_id()


async def test_hostile_names_are_no_containers(settings: Settings, docker_engine: Engine) -> None:
    for name in ("../images/json", "a b", "a;reboot", "$(reboot)", "a/../b", "a?all=1", "ä", "-a"):
        async with of_sandbox(settings, f"docker:{name}") as service:
            with pytest.raises(InvalidBackupConfigError, match="no container can be called"):
                await service.create("/workspace")
    async with of_sandbox(settings, "docker:label=a b=;$(reboot)") as service:
        with pytest.raises(InvalidBackupConfigError, match="is that of 0"):
            await service.create("/workspace")


async def test_the_store_is_served_whatever_became_of_the_container(settings: Settings, start_container: Start) -> None:
    target = start_container()
    async with of_sandbox(settings, target.sandbox) as service:
        ids = [(await service.create("/workspace")).id for _ in range(3)]
    target.container.stop()
    await check_store_part(of_sandbox(settings, target.sandbox), ids, f"docker start {target.name}")
    target.container.remove()
    await check_store_part(of_sandbox(settings, target.sandbox), ids[:-1], "docker ps")
    confined = settings.model_copy(update={"allowed_dirs": ("/elsewhere",)})
    async with of_sandbox(confined, target.sandbox) as service:
        assert (await service.list()).backups == ()


async def check_store_part(service: BackupService, ids: list[str], problem: str) -> None:
    async with service:
        assert {each.id for each in (await service.list()).backups} == set(ids)
        assert (await service.verify(ids[0])).ok
        await service.delete(ids[-1])
        pruned = await service.prune(dry_run=True)
        assert problem in (pruned.sandbox_problem or "")
        assert {each.id for each in pruned.decisions} == set(ids[:-1])
        with pytest.raises(SandpointError, match=problem):
            await service.restore(ids[0])
        told = await service.capabilities()
        assert [item.name for item in told.items if not item.available and item.needed_for.startswith("every ")]
        assert problem in " ".join(item.detail for item in told.items)


def test_the_store_is_served_where_no_engine_answers(sandpoint: Program, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    backup_id = sandpoint("create", str(tmp_path / "tree"), "--json").json["id"]
    without = {"DOCKER_HOST": NOWHERE, "SANDPOINT_SANDBOX": "docker:web"}
    assert [each["id"] for each in sandpoint("list", "--json", **without).json["backups"]] == [backup_id]
    assert sandpoint("verify", backup_id, **without).status == 0
    pruned = sandpoint("prune", **without)
    assert pruned.status == 0
    assert "only the store was pruned, not the sandbox: no Docker engine answers" in pruned.err
    restored = sandpoint("restore", backup_id, **without)
    assert (restored.status, "no Docker engine answers" in restored.err) == (9, True)
    told = sandpoint("doctor", **without)
    assert (told.status, "missing  Docker engine" in told.out) == (9, True)
    assert sandpoint("delete", backup_id, **without).status == 0


def test_an_overlay_that_a_restart_took_away_is_told_and_comes_back(sandpoint: Program, start_container: Start) -> None:
    target = start_container()
    target.write("/workspace/file", "kept")
    at = ("--sandbox", target.sandbox)
    backup = sandpoint("create", "/workspace", "--json", *at).json
    target.write("/workspace/file", "changed")
    restored = sandpoint("restore", backup["id"], *at)
    assert f"sandpoint unmount /workspace --sandbox {target.sandbox}" in restored.out
    assert target.read("/workspace/file") == b"kept"
    target.container.restart()
    assert target.read("/workspace/file") == b"changed"

    told = sandpoint("doctor", *at)
    assert "missing  overlay on /workspace" in told.out
    way_back = f"sandpoint restore {backup['id']} --to /workspace --mode overlay --sandbox {target.sandbox}"
    assert way_back in sandpoint("list", *at).err
    (line,) = [line.strip() for line in told.out.splitlines() if "sandpoint restore" in line]
    words = line.split()
    assert words[0] == "sandpoint"
    again = sandpoint(*words[1:])
    assert again.status == 0, again.err
    assert target.read("/workspace/file") == b"kept"
    assert sandpoint("list", *at).err == ""


def test_a_container_that_could_alter_what_is_kept_for_others_is_refused(
    sandpoint: Program, start_container: Start
) -> None:
    target = start_container(volumes={VOLUME: {"bind": "/state", "mode": "rw"}})
    told = sandpoint("create", "/workspace", "--sandbox", target.sandbox)
    assert told.status == 3
    assert f"Sandpoint's own volume {VOLUME}" in told.err


def test_doctor_says_which_way_would_be_used_and_why_not_the_others(sandpoint: Program, start_container: Start) -> None:
    target = start_container()
    sandpoint("create", "/workspace", "--sandbox", target.sandbox)
    told = sandpoint("doctor", "--sandbox", target.sandbox, "--json").json
    items = {item["name"]: item for item in told["items"]}
    assert told["sandbox"] == f"container {target.name} ({target.id[:12]}), direct way"
    assert items["direct way"]["detail"].startswith("would be used: ")
    for way in ("helper way", "archive way"):
        assert (items[way]["available"], items[way]["detail"]) == (False, "not asked for: SANDPOINT_DOCKER_WAY=direct")
    assert "state of " in items[f"volume {VOLUME}"]["detail"]
    stopped = sandpoint("doctor", "--sandbox", "docker:no-such-container")
    assert stopped.status == 9
    assert "container no-such-container is not there" in stopped.out


async def test_a_server_serves_the_containers_of_its_list_and_no_others(tmp_path: Path, start_container: Start) -> None:
    first, second, other = [start_container() for _ in range(3)]
    first.write("/workspace/file", "1")
    variables = {
        "DOCKER_HOST": os.environ["DOCKER_HOST"],
        "SANDPOINT_SANDBOX": first.sandbox,
        "SANDPOINT_SANDBOXES": f"{first.sandbox},{second.sandbox}",
        "SANDPOINT_DOCKER_WAY": "direct",
    }
    parameters = sandpoint_server(tmp_path, store=tmp_path / "store", state=tmp_path / "state", **variables)
    async with Client(parameters) as client:

        async def call(tool: str, **arguments: Any) -> Any:
            result = await client.call_tool(tool, arguments)
            assert not result.is_error, text(result)
            return result.structured_content

        assert first.sandbox in (client.instructions or "")
        backup = await call("create_backup", dir="/workspace")
        await call("restore_backup", backup_id=backup["id"], sandbox=second.sandbox)
        assert second.read("/workspace/file") == b"1"
        forks = await call(
            "fork_backup", backup_id=backup["id"], dirs=["/workspace/a"], sandboxes=[first.sandbox, second.sandbox]
        )
        assert [each["sandbox"] for each in forks["forks"]] == [first.sandbox, second.sandbox]
        listed = await call("list_backups", sandbox=first.sandbox)
        assert backup["id"] in {each["id"] for each in listed["backups"]}
        for sandbox in (other.sandbox, "local", f"docker:{other.id}"):
            refused = await client.call_tool("create_backup", {"dir": "/workspace", "sandbox": sandbox})
            assert text(refused).startswith("INVALID_BACKUP_CONFIG: sandbox: ")


@pytest.fixture(scope="module")
def own_engine() -> Iterator[Engine]:
    """An engine of this module's own: what is left there is nobody else's."""
    with daemon_apart() as daemon, of(daemon) as engine:
        yield engine


@pytest.mark.parametrize("volume_from", [upkeep.open_on_host, upkeep.open_in_container])
async def test_a_prune_removes_what_is_kept_for_containers_that_are_no_more(
    settings: Settings, own_engine: Engine, monkeypatch: pytest.MonkeyPatch, volume_from: upkeep.OpenVolume
) -> None:
    monkeypatch.setenv("DOCKER_HOST", own_engine.url)
    monkeypatch.setattr(upkeep, "OPENERS", (volume_from,))
    if volume_from is upkeep.open_in_container:
        with own_engine.container(own_engine.debian_image()) as base:
            base.container.commit("sandpoint-helper", "test", changes=f"LABEL {ROLE_LABEL}=helper")
    image = own_engine.busybox_image()
    with own_engine.container(image) as stays:
        with own_engine.container(image) as goes:
            for target in (stays, goes):
                async with of_sandbox(settings, target.sandbox) as service:
                    backup = await service.create("/workspace")
                    await service.restore(backup.id, mode="overlay")
        stays.container.stop()
        folder = Path(own_engine.client.volumes.get(VOLUME).attrs["Mountpoint"])
        before = listing(folder)
        expected = f"state of container {goes.id[:12]}, which is no more"
        assert (await prune(settings, stays, dry_run=True)).leftovers == (expected,)
        assert listing(folder) == before
        assert (await prune(settings, stays)).leftovers == (expected,)
        assert os.listdir(folder / "sandboxes") == [stays.id]
        stays.container.start()
        assert (await prune(settings, stays, dry_run=True)).abandoned == ("/workspace",)
    assert (await prune(settings, stays)).leftovers[-1].startswith(f"volume {VOLUME}")
    assert own_engine.client.volumes.list() == []
    assert (await prune(settings, stays)).leftovers == ()


async def test_helpers_that_nobody_needs_go_with_a_prune(
    settings: Settings, own_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", own_engine.url)
    image = own_engine.busybox_image()
    with own_engine.container(image) as target, own_engine.container(image) as gone:
        helpers = [
            own_engine.client.containers.run(
                image,
                name=f"sandpoint-test-helper-{number}",
                detach=True,
                labels={"sandpoint.role": "helper", "sandpoint.target": each.id},
            )
            for number, each in enumerate((target, gone))
        ]
        gone.container.stop()
        async with of_sandbox(settings, target.sandbox) as service:
            items = {item.name: item.detail for item in (await service.capabilities()).items}
        assert items["helper container sandpoint-test-helper-0"].endswith(": in use")
        assert items["helper container sandpoint-test-helper-1"].endswith("a prune removes it")
        assert "helper container sandpoint-test-helper-1" in (await prune(settings, target)).leftovers
        assert {each.name for each in own_engine.client.containers.list(filters={"label": "sandpoint.role"})} == {
            "sandpoint-test-helper-0"
        }
        for helper in helpers[:1]:
            helper.remove(force=True)


async def prune(settings: Settings, target: Target, **options: Any) -> PruneResult:
    async with of_sandbox(settings, target.sandbox) as service:
        return await service.prune(**options)


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if "trial" not in path.name)
