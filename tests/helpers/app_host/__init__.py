"""A host of MCP Apps to show a page in; its packages are installed beside this file by the Makefile."""

import subprocess
from pathlib import Path

HERE = Path(__file__).parent
ESBUILD = HERE / "node_modules" / ".bin" / "esbuild"


def bundle(output: Path) -> str:
    """Return the host's script as one that loads nothing."""
    assert ESBUILD.exists(), "the host's packages are not there; install them with: make pytest"
    arguments = ["host.js", "--bundle", "--format=iife", "--log-level=warning", f"--outfile={output}"]
    subprocess.run([ESBUILD, *arguments], cwd=HERE, check=True)
    return output.read_text()
