"""One operation in a process of its own, which then tells the most memory it held: `memory.py create|again DIR`,
`memory.py restore ID [DIR]`, `memory.py overlay ID`, `memory.py fork ID DIR SANDBOX...`,
`memory.py upload|download FILE INTO`."""

import asyncio
import json
import os
import re
import resource
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from uuid6 import uuid7

from sandpoint.engine.checked import digest
from sandpoint.engine.removal import remove_tree
from sandpoint.engine.state import State
from sandpoint.engine.transfer import fetch, send
from sandpoint.models import Mode, Source, StoredLayer
from sandpoint.service import open_service
from sandpoint.services import Services, fork_to
from sandpoint.settings import read_settings
from sandpoint.stores import open_store


async def operate(operation: str, subject: str, directory: str | None = None) -> dict[str, Any]:
    service = open_service()
    if operation in {"create", "again"}:
        backup = await service.create(subject, full=operation == "create")
        return {"backup": backup.model_dump(mode="json")}
    mode: Mode = "overlay" if operation == "overlay" else "copy"
    await service.restore(subject, dir=directory, mode=mode, undo=mode == "copy" and directory is None)
    return {}


async def fork(_operation: str, backup_id: str, directory: str, *sandboxes: str) -> dict[str, Any]:
    async with Services(read_settings()) as services:
        await fork_to(services, backup_id, [(name, directory) for name in sandboxes], mode="overlay", undo=False)
    return {}


async def transfer(operation: str, path: str, into: str) -> dict[str, Any]:
    """Send a file through the grants of a store, or fetch it: both begin with the sending, for there is no other."""
    state = State(f"{into}.state")
    store = open_store(read_settings().store)
    stored = digest(path, lambda: None)
    backup_id = str(uuid7())
    key = (await store.begin(backup_id)).layer_key
    sent = os.path.join(os.path.dirname(into), "sent")
    os.link(path, sent)
    try:
        grant = await store.grant_put(key, stored)
        await store.accept(key, send(sent, stored, grant, state, lambda: None))
        if operation == "download":
            remove_tree(state.path)
            grant_get = store.grant_get(StoredLayer(key=key, **dict(stored)))
            fetch(Source(**dict(stored), grant=grant_get), state, lambda: None)
    finally:
        await store.abandon(backup_id)
        remove_tree(state.path)
    return {}


def peak() -> int:
    # Not ru_maxrss: that of a new process begins with the peak of the process that started it.
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def tools_peak() -> int:
    """Return the most that a program held which was run, or this process when it started one."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


if __name__ == "__main__":
    work: Callable[..., Coroutine[Any, Any, dict[str, Any]]] = operate
    if sys.argv[1] in {"upload", "download"}:
        work = transfer
    elif sys.argv[1] == "fork":
        work = fork
    answer = asyncio.run(work(*sys.argv[1:]))
    print(json.dumps({**answer, "peak_bytes": peak(), "tools_peak_bytes": tools_peak()}))
