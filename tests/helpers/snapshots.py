"""Snapshots: what a test found once and somebody read, committed, and compared from then on.

Renew them all with `SNAPSHOTS=renew make pytest`, or one with `SNAPSHOTS=renew pytest FILE`; read the difference
before it is committed.
"""

import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "snapshots"
VARIABLE = "SNAPSHOTS"


def check_snapshot(name: str, found: Any) -> None:
    """Compare with a snapshot, as JSON."""
    path = FOLDER / f"{name}.json"
    if os.environ.get(VARIABLE) == "renew":
        path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    assert found == json.loads(path.read_text()), f"{path.name} says otherwise; if this is meant: {VARIABLE}=renew"
