"""`modeldiff sweep`: activations -> several crosscoders, and a table of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import config_option, plain_command, settings_options
from modeldiff.console import muted
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.errors import MachineError
from modeldiff.format import NONE, Columns, fixed, plain, print_json, table

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact, Workspace

_SEVERAL = [field.name for field in dataclasses.fields(TrainSettings) if field.metadata["result"]]


def _sweep(workspace: Workspace, *, force: bool, as_json: bool, **values: Any) -> None:
    from modeldiff.crosscoder.training.sweep import combined, differing, run

    several = {name: values.pop(name) for name in _SEVERAL}
    trainings = combined(several, **values)
    made = run(trainings, workspace, force=force)
    if muted():
        return
    names = differing(trainings)
    rows = [
        {**_found(artifact), "settings": {name: getattr(one, name) for name in names}}
        for one, artifact in zip(trainings, made, strict=True)
    ]
    if as_json:
        print_json({"workspace": str(workspace.folder), "trainings": rows})
    else:
        _print(rows, names)
    if failed := [one for one in made if isinstance(one, str)]:
        raise MachineError(f"{len(failed)} of {len(made)} trainings failed, the first one: {failed[0]}")


def _found(made: Artifact | str) -> dict[str, Any]:
    if isinstance(made, str):
        return {"ref": None, "failed": made}
    figures = {name: made.metrics[name] for name in ("features", "k", "steps", "dead", "held_out")}
    return {"ref": made.ref, "folder": str(made.folder), "seconds": made.manifest.seconds, **figures}


def _print(rows: list[dict[str, Any]], names: list[str]) -> None:
    columns: Columns = [("crosscoder", "left"), *((name.replace("_", "-"), "right") for name in names)]
    columns += [(name, "right") for name in ("FVE A", "FVE B", "L0", "dead")]
    lines = []
    for row in rows:
        figures = [NONE] * 4
        if row["ref"]:
            held_out = row["held_out"]
            figures = [*(fixed(held_out["fve"][side], 3) for side in "ab"), fixed(held_out["l0"], 1)]
            figures.append(str(sum(row["dead"].values())))
        lines.append([row["ref"] or "failed", *(plain(row["settings"][name]) for name in names), *figures])
    table(f"{len(rows)} crosscoders, on held-out pairs", columns, lines)


command = plain_command(
    "sweep",
    _sweep,
    params=[
        *settings_options(TrainSettings, several=_SEVERAL),
        click.Option(["--force"], is_flag=True, help="Train even those that are up to date."),
        config_option(TrainSettings, several=_SEVERAL),
    ],
    help="Activations -> several crosscoders, and a table of them: how good, for which settings.\n\n"
    "The options are those of `modeldiff train`, with one value or several; every combination is trained. Each is the "
    "artifact that `modeldiff train` makes of its settings, to the bit: what is there already answers at once, and an "
    "interrupted sweep continues with the same command. One that fails does not stop the others.\n\n"
    "They are trained one after the other, and each reads the pairs anew, in the order of its seed: on a processor "
    "that is 1 to 3 % of the time, also of small dictionaries.",
    lines=[
        "modeldiff sweep --seed 0 1 2",
        "modeldiff sweep --features 4096 16384 --k 32 64 128 --json",
        "modeldiff sweep --architecture dfc standard --seed 0 1 --config mine.toml",
    ],
)
