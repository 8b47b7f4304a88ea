"""The table: for a terminal, as Markdown and as JSON."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

from rich.console import Console
from rich.table import Table

from benchmarks.rows import Measured, Unit
from benchmarks.tree import Tree

_COLUMNS = ("what", "measured", "ratio", "limit", "")


class Report(TypedDict):
    """One run: the machine, what was measured on, and the rows."""

    machine: dict[str, Any]
    filesystem: str
    versions: dict[str, str]
    tree: dict[str, int] | None
    compression: str | None
    rounds: int
    rows: list[Measured]


def build(
    *,
    filesystem: str,
    versions: dict[str, str],
    tree: Tree | None,
    compression: str | None,
    rounds: int,
    rows: list[Measured],
) -> Report:
    """Describe one run; of the machine, the cores and the kernel only."""
    return Report(
        machine={
            "cores": len(os.sched_getaffinity(0)),
            "kernel": f"{platform.system()} {platform.release()}",
        },
        filesystem=filesystem,
        versions=versions,
        tree=asdict(tree) if tree is not None else None,
        compression=compression,
        rounds=rounds,
        rows=rows,
    )


def write_json(report: Report, path: Path) -> None:
    """Write a run to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


def read_json(path: Path) -> Report:
    """Read a run from a file."""
    report: Report = json.loads(path.read_text())
    return report


def missed(report: Report) -> list[Measured]:
    """Return the rows that do not keep their limit."""
    return [row for row in report["rows"] if row["met"] is False]


def print_table(report: Report, console: Console) -> None:
    """Print a run for a person."""
    table = Table(title="Sandpoint, side by side", title_justify="left", caption=heading(report))
    for number, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if 0 < number < 4 else "left")
    group = None
    for row in report["rows"]:
        if row["group"] != group:
            table.add_section()
            group = row["group"]
            table.add_row(f"[bold]{group}")
        table.add_row(*_cells(row, report), style="red" if row["met"] is False else None)
    console.print(table)


def print_markdown(report: Report) -> None:
    """Print a run for the README."""
    print(f"| {' | '.join(_COLUMNS)} |\n| --- | ---: | ---: | ---: | --- |")
    group = None
    for row in report["rows"]:
        if row["group"] != group:
            group = row["group"]
            print(f"| *{group}* | | | | |")
        cells = [row["what"], *_cells(row, report)[1:]]
        print(f"| {' | '.join(cells)} |")
    print(f"\n{heading(report)}")


def heading(report: Report) -> str:
    """Return what was measured, where, in a sentence or two."""
    machine = report["machine"]
    most = max(len(row["samples"]) for row in report["rows"])
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"Medians of up to {most} rounds ({report['rounds']} of the slow contenders), ratios round by round, "
        f"on {machine['cores']} cores, {machine['kernel']}, {report['filesystem']}, page cache warm. "
        f"{_tree(report)}{versions}."
    )


def _tree(report: Report) -> str:
    tree = report["tree"]
    if tree is None:
        return ""
    return (
        f"The tree: {tree['files']:,} files in {tree['directories']:,} directories, "
        f"{tree['bytes'] / 1e6:.0f} MB; squashfs with {report['compression']}. "
    )


def _cells(row: Measured, report: Report) -> list[str]:
    verdict = {True: "met", False: "MISSED", None: ""}[row["met"]]
    if row["median"] is None:
        return [_plain(row), "not on this machine", "", _limit(row), verdict]
    return [_plain(row), _figure(row["median"], row["unit"]), _compared(row, report), _limit(row), verdict]


def _compared(row: Measured, report: Report) -> str:
    if row["ratio"] is None or row["difference"] is None:
        return ""
    if row["held"] == "difference":
        sign = "-" if row["difference"] < 0 else "+"
        return f"{row['against']} {sign} {_figure(abs(row['difference']), row['unit'])}"
    names = {other["key"]: other for other in report["rows"]}
    return f"{_times(row['ratio'])} x {_short(names[row['against'] or ''])}"


def _plain(row: Measured) -> str:
    return row["what"].replace("**", "")


def _short(row: Measured) -> str:
    return "Sandpoint" if "Sandpoint" in row["what"] else row["key"]


def _times(ratio: float) -> str:
    if ratio >= 100:
        return f"{ratio:,.0f}"
    return f"{ratio:.3f}" if abs(ratio - 1) < 0.1 else f"{ratio:.2f}"


def _limit(row: Measured) -> str:
    for sign, limit in (("≤", row["at_most"]), ("≥", row["at_least"])):
        if limit is not None:
            plus = "+ " if row["held"] == "difference" else ""
            return f"{sign} {limit:,g} x" if row["held"] == "ratio" else f"{sign} {plus}{_figure(limit, row['unit'])}"
    return ""


def _figure(value: float, unit: Unit) -> str:
    if unit == "bytes":
        return f"{value / 1e6:.0f} MB" if value >= 1e6 else f"{value / 1e3:.0f} KB"
    if unit == "requests":
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.2f} s"
    digits = 0 if value >= 0.01 else 1 if value >= 0.001 else 2
    return f"{value * 1000:.{digits}f} ms"
