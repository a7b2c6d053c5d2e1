"""`modeldiff steer`: what a model writes when a feature is pushed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli import steer_transfer
from modeldiff.cli.common import stage_command
from modeldiff.cli.steer_tables import print_dose, print_generations, read_generations
from modeldiff.console import echo
from modeldiff.steer.settings import SteerSettings, parse_strengths

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


def _data(artifact: Artifact) -> dict[str, Any]:
    from modeldiff.workspace.files import read_json

    figure = artifact.folder / "figures" / "dose.png"
    return {
        **read_json(artifact.file("steering.json")),
        "figure": str(figure) if figure.exists() else None,
        "generations": read_generations(artifact),
    }


def _show(artifact: Artifact) -> None:
    steering = _data(artifact)
    print_generations(steering["generations"])
    print_dose(steering)
    if steering["figure"]:
        echo(f"figure: {steering['figure']}")


def _strengths(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(strength for text in given for strength in parse_strengths(text))


command = stage_command(
    "steer",
    SteerSettings,
    "modeldiff.steer.run",
    show=_show,
    data=_data,
    plan="modeldiff.steer.run",
    subcommands=[steer_transfer.command],
    help="Push a feature in one of the models and compare what it writes.\n\nAdds STRENGTH x the feature's maximum "
    "activation x its decoder direction to the residual stream at the harvested layer, at every position (B.4.3). "
    "Strength 1 means: as strong as ever seen.\n\nBeside it random directions of the same norm and, with --both, the "
    "other model; a table and a figure of effect and coherence by strength say where to stop.\n\n"
    "`modeldiff steer transfer` moves a direction to the other model.",
    lines=[
        'modeldiff steer --model A --feature 17 --strength 1 2 4 --prompt "I think"',
        "modeldiff steer --model B --feature 1020 --strength -2 2 --prompts prompts.txt --json",
        "modeldiff steer --model B --feature 1020 --both --strength -4:4:0.5 --prompts prompts.txt",
        "modeldiff steer transfer --from A --from-prompts positive.txt negative.txt",
    ],
)
for _option in command.params:
    if _option.name == "strength":
        _option.type, _option.metavar, _option.callback = click.STRING, "NUMBER|FROM:TO:STEP...", _strengths
