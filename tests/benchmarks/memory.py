"""One operation in a process of its own, which then tells the most memory it held: `memory.py create DIR`,
`memory.py restore ID [DIR]`."""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

from sandpoint.service import open_service


async def operate(operation: str, subject: str, directory: str | None = None) -> dict[str, Any]:
    service = open_service()
    if operation == "create":
        backup = await service.create(subject, full=True)
        return {"backup": backup.model_dump(mode="json")}
    await service.restore(subject, dir=directory, mode="copy", undo=directory is None)
    return {}


def peak() -> int:
    # Not ru_maxrss: that of a new process begins with the peak of the process that started it.
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


if __name__ == "__main__":
    print(json.dumps({**asyncio.run(operate(*sys.argv[1:])), "peak_bytes": peak()}))
