"""`modeldiff toy`: the benchmark on worlds whose truth is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.cli.common import stage_command
from modeldiff.console import echo
from modeldiff.format import table
from modeldiff.toy.settings import ToySettings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


def _summary(artifact: Artifact) -> list[dict[str, Any]]:
    from modeldiff.toy.run import SUMMARY_NAME
    from modeldiff.workspace.files import read_json

    rows: list[dict[str, Any]] = read_json(artifact.file(SUMMARY_NAME))["rows"]
    return rows


def _show(artifact: Artifact) -> None:
    from modeldiff.toy.table import printed_tables

    legends: set[tuple[str, ...]] = set()
    for one in printed_tables(_summary(artifact)):
        table(one.title, one.columns, one.rows)
        if one.legend not in legends:
            echo(*one.legend)
        echo()
        legends.add(one.legend)
    echo(f"cells:   {artifact.folder / 'cells.csv'}")
    echo(f"figures: {artifact.folder / 'figures'}")


command = stage_command(
    "toy",
    ToySettings,
    "modeldiff.toy.run",
    show=_show,
    plan="modeldiff.toy.plan",
    data=lambda artifact: {"summary": _summary(artifact)},
    help="How well does a dictionary find what only one model has? Measured on worlds whose truth is known.\n\n"
    "Draws sparse concepts, some of them in one model alone, trains dictionaries on the two models' activations, and "
    "counts which exclusive concepts they recover and what their exclusive features really are. The tables: `sizes`, "
    "every architecture at every dictionary size; `dial`, from models without anything in common to models that a "
    "linear map stitches (real pairs lie in between); `selection`, scores and dead windows of the training; "
    "`self-diff`, two models with the same concepts, where nothing should be called exclusive.\n\n"
    "Each cell (world, dictionary, seed) is kept when it is done: an interrupted benchmark continues with the same "
    "command, and a larger one computes only what is new. `modeldiff workspace clean` drops them.",
    lines=[
        "modeldiff toy --preset quick",
        "modeldiff toy --sizes 0.2 0.5 1 --architectures standard dfc dfc-audited --tables sizes",
        "modeldiff toy --map rotation --exclusive-ratio 0 --tables sizes",
        "modeldiff toy --preset paper --sizes 0.2 0.5 1 --steps 20000 --device cuda",
    ],
)
