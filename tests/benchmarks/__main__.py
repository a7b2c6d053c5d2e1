"""All speed targets in one table: `python -m tests.benchmarks [--only step store] [--peers FOLDER] [--json FILE]`.

Every row is a median of interleaved runs in one process. Peers are imported from checkouts in FOLDER (see peers.py);
without them their rows say so. Run it on a quiet machine. Exit code 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.rows import Options, Row

# Modules of this package, each with `rows(options)`.
GROUPS = ("step", "partition", "selection", "train", "harvest", "store", "checks", "features", "startup", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS)
    parser.add_argument("--peers", type=Path, help="folder with checkouts of the peers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the rows into this file, too")
    arguments = parser.parse_args()
    console = Console(width=100)
    console.print(machine())
    found: dict[str, list[Row]] = {}
    for group in arguments.only:
        module = importlib.import_module(f"tests.benchmarks.{group}")
        with tempfile.TemporaryDirectory() as folder:
            options = Options(arguments.peers, arguments.rounds, Path(folder))
            found[group] = list(module.rows(options))
        console.print(_table(group, found[group]))
    if arguments.json:
        data = {"machine": machine(), "rows": {group: [asdict(row) for row in rows] for group, rows in found.items()}}
        arguments.json.write_text(json.dumps(data, indent=1) + "\n")
    return 1 if any(row.met is False for rows in found.values() for row in rows) else 0


def machine() -> str:
    """The machine and what runs on it, in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    parts = [f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _table(group: str, rows: list[Row]) -> Table:
    table = Table(title=group, title_justify="left", box=None, pad_edge=False)
    for name, justify in (("what", "left"), ("measured", "right"), ("target", "right"), ("", "left"), ("note", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        measured = "-" if row.measured is None else f"{row.measured:.3g} {row.unit}".strip()
        target = f"{'>=' if row.at_least else '<='} {row.target:g} {row.unit}".strip()
        mark = {True: "", False: "MISSED", None: "skipped"}[row.met]
        table.add_row(row.what, measured, target, mark, row.note)
    return table


if __name__ == "__main__":
    sys.exit(main())
