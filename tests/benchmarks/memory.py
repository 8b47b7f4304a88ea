"""One operation in a process of its own, which then tells the most memory it held: `memory.py create|again DIR`,
`memory.py restore ID [DIR]`, `memory.py overlay ID`."""

import asyncio
import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

from sandpoint.models import Mode
from sandpoint.service import open_service


async def operate(operation: str, subject: str, directory: str | None = None) -> dict[str, Any]:
    service = open_service()
    if operation in {"create", "again"}:
        backup = await service.create(subject, full=operation == "create")
        return {"backup": backup.model_dump(mode="json")}
    mode: Mode = "overlay" if operation == "overlay" else "copy"
    await service.restore(subject, dir=directory, mode=mode, undo=mode == "copy" and directory is None)
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
    answer = asyncio.run(operate(*sys.argv[1:]))
    print(json.dumps({**answer, "peak_bytes": peak(), "tools_peak_bytes": tools_peak()}))
