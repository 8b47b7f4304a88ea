"""An agent that takes a checkpoint before a risky edit, and goes back when its check fails.

The agent is an MCP client of a real `sandpoint serve`. What a model would decide is scripted, so this runs
without a network: the edit renames a function but not its caller, and deletes a file it takes for unused.

    python examples/agent_checkpoint.py
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp_types import TextContent

PROJECT = {
    "shop/__init__.py": "",
    "shop/price.py": (
        "def total(prices):\n    return sum(prices)\n\n\ndef subtotal(prices):\n    return total(prices)\n"
    ),
    "shop/currency.py": "SYMBOL = '€'\n",
    "check.py": (
        "from shop.currency import SYMBOL\n"
        "from shop.price import subtotal\n\n"
        "assert subtotal([1, 2]) == 3\n"
        "print(f'the check passes: {SYMBOL}3')\n"
    ),
}


async def main() -> None:
    """Run the agent on a project of its own."""
    with tempfile.TemporaryDirectory(prefix="sandpoint-example-") as temporary:
        project = Path(temporary, "project")
        write_project(project)
        server = StdioServerParameters(
            command=str(Path(sys.executable).with_name("sandpoint")),
            args=["serve"],
            cwd=project,
            env={
                "SANDPOINT_STORE": Path(temporary, "store").as_uri(),
                "SANDPOINT_STATE_DIR": str(Path(temporary, "state")),
            },
        )
        async with Client(server) as client:
            await edit_with_a_way_back(client, project)


async def edit_with_a_way_back(client: Client, project: Path) -> None:
    """Checkpoint, edit, check; keep the edit if the check passes, and go back if not."""
    backup = await call(client, "create_backup", dir=str(project), name="before renaming total()")
    print(f"checkpoint {backup['id']}: {backup['file_count']} files")

    risky_edit(project)
    if check(project):
        print("the edit is good; the checkpoint expires by itself")
        return

    changes = await call(client, "diff_backup", backup_id=backup["id"])
    print(f"the check fails; changed: {changes.get('modified', [])}, deleted: {changes.get('removed', [])}")

    restored = await call(client, "restore_backup", backup_id=backup["id"])
    print(f"went back; the failed attempt is kept as {restored['undo_id']}")
    if not check(project):
        raise SystemExit("the project is not as it was")


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool and return its result; an error ends the program with the text that a model would read."""
    result = await client.call_tool(tool, arguments)
    if result.is_error or result.structured_content is None:
        raise SystemExit("\n".join(part.text for part in result.content if isinstance(part, TextContent)))
    return dict(result.structured_content)


def write_project(project: Path) -> None:
    """Write the files that the agent is to change."""
    for name, text in PROJECT.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def risky_edit(project: Path) -> None:
    """Do what seemed a good idea: it breaks `subtotal`, and `currency` was not unused."""
    price = project / "shop" / "price.py"
    price.write_text(price.read_text().replace("def total(", "def sum_of("))
    (project / "shop" / "currency.py").unlink()


def check(project: Path) -> bool:
    """Return whether the project's own check passes."""
    command = [sys.executable, "check.py"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    print((done.stdout or done.stderr).strip().splitlines()[-1])
    return done.returncode == 0


if __name__ == "__main__":
    anyio.run(main)
