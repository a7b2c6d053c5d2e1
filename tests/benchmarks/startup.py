"""How long a person waits for help and for the list of a workspace: whole processes, from start to exit."""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import modeldiff
from tests.benchmarks.rows import Options, Row, interleaved
from tests.cli.commands import command_paths
from tests.made_workspace import make_manifests

_CODE = Path(modeldiff.__file__).parents[1]
_ARTIFACTS = 200
# Seconds: of the program's own help, of a command's, of the list.
_HELP, _COMMAND_HELP, _LIST = 0.3, 0.5, 0.6


def rows(options: Options) -> Iterator[Row]:
    """One row for the program's help, one for the list, one for the help of each command."""
    workspace = make_manifests(options.folder / "ws", _ARTIFACTS)
    variants = {f"modeldiff {' '.join([*path, '--help'])}": [*path, "--help"] for path in command_paths()}
    program_help = next(iter(variants))
    listing = f"modeldiff workspace list, {_ARTIFACTS} artifacts"
    variants |= {listing: ["--workspace", str(workspace.folder), "workspace", "list"]}
    runs = {what: functools.partial(_python, "-m", "modeldiff", *args) for what, args in variants.items()}
    bare = "the bare interpreter"
    seconds = interleaved({bare: functools.partial(_python, "-c", ""), **runs}, options.rounds)
    targets = {program_help: _HELP, listing: _LIST}
    for what in sorted(runs, key=lambda one: one not in targets):  # those with a target of their own come first
        note = f"{options.rounds} processes, fastest {min(seconds[what]):.3f} s"
        if what == program_help:
            note += f"; {bare} {statistics.median(seconds[bare]):.3f} s"
        yield Row(what, statistics.median(seconds[what]), targets.get(what, _COMMAND_HELP), "s", False, note)


def _python(*args: str) -> None:
    # From the folder that this package comes from: with -m, it is looked up there first.
    subprocess.run([sys.executable, *args], cwd=_CODE, stdout=subprocess.DEVNULL, check=True)
