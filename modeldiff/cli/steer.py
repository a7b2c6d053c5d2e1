"""`modeldiff steer`: what a model writes when a feature is pushed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli import steer_transfer
from modeldiff.cli.common import (
    Group,
    artifact_json,
    examples,
    make_settings,
    open_workspace,
    produce_options,
    settings_options,
)
from modeldiff.cli.steer_tables import print_dose, print_generations
from modeldiff.format import print_json
from modeldiff.steer.settings import SteerSettings, parse_strengths

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


def _steer(
    ctx: click.Context, name: str | None, force: bool, workspace_folder: Path | None, as_json: bool, **values: Any
) -> None:
    ctx.meta["modeldiff.workspace"] = workspace_folder
    if ctx.invoked_subcommand is not None:
        return
    workspace = open_workspace(ctx, workspace_folder)
    values["strength"] = tuple(one for text in values["strength"] for one in parse_strengths(text))
    settings = make_settings(SteerSettings, values)
    from modeldiff.steer.run import run
    from modeldiff.workspace.files import read_json

    artifact = run(settings, workspace, name=name, force=force)
    generations, steering = read_generations(artifact), read_json(artifact.file("steering.json"))
    if as_json:
        figure = str(artifact.file("figures/dose.png"))
        print_json({**artifact_json(artifact), **steering, "figure": figure, "generations": generations})
    else:
        print_generations(generations)
        print_dose(steering)
        click.echo(f"figure: {artifact.file('figures/dose.png')}")


def _options() -> list[click.Parameter]:
    options = settings_options(SteerSettings)
    for option in options:
        if option.name == "strength":
            option.type, option.metavar = click.STRING, "NUMBER|FROM:TO:STEP..."
    return options


def read_generations(artifact: Artifact) -> list[dict[str, Any]]:
    """The records of generations.jsonl, see modeldiff/steer/run.py; strength 0 is unsteered."""
    text = artifact.file("generations.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


command = Group(
    "steer",
    params=[*_options(), *produce_options()],
    callback=click.pass_context(_steer),
    invoke_without_command=True,
    help="Push a feature in one of the models and compare what it writes.\n\nAdds STRENGTH x the feature's maximum "
    "activation x its decoder direction to the residual stream at the harvested layer, at every position (B.4.3). "
    "Strength 1 means: as strong as ever seen.\n\nBeside it random directions of the same norm and, with --both, the "
    "other model; a table and a figure of effect and coherence by strength say where to stop.\n\n"
    "`modeldiff steer transfer` moves a direction to the other model.",
    epilog=examples(
        'modeldiff steer --model A --feature 17 --strength 1 2 4 --prompt "I think"',
        "modeldiff steer --model B --feature 1020 --strength -2 2 --prompts prompts.txt --json",
        "modeldiff steer --model B --feature 1020 --both --strength -4:4:0.5 --prompts prompts.txt",
        "modeldiff steer transfer --from A --from-prompts positive.txt negative.txt",
    ),
)
command.add_command(steer_transfer.command)
