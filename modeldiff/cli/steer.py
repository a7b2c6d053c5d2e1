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
    console,
    examples,
    make_settings,
    open_workspace,
    print_json,
    produce_options,
    settings_options,
)
from modeldiff.steer.settings import SteerSettings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


def _steer(
    ctx: click.Context, name: str | None, force: bool, workspace_folder: Path | None, as_json: bool, **values: Any
) -> None:
    ctx.meta["modeldiff.workspace"] = workspace_folder
    if ctx.invoked_subcommand is not None:
        return
    workspace = open_workspace(ctx, workspace_folder)
    settings = make_settings(SteerSettings, values)
    from modeldiff.steer.run import run

    artifact = run(settings, workspace, name=name, force=force)
    generations = read_generations(artifact)
    if as_json:
        print_json({**artifact_json(artifact), "generations": generations})
    else:
        print_generations(generations)


def read_generations(artifact: Artifact) -> list[dict[str, Any]]:
    """The records of generations.jsonl: prompt, strength (0 = unsteered), text."""
    text = artifact.file("generations.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def print_generations(generations: list[dict[str, Any]]) -> None:
    """For each prompt the unsteered text beside the steered one, strength by strength."""
    from rich.table import Table
    from rich.text import Text

    for prompt in dict.fromkeys(one["prompt"] for one in generations):
        mine = [one for one in generations if one["prompt"] == prompt]
        plain = next(one["text"] for one in mine if one["strength"] == 0)
        table = Table(title=Text(f"prompt: {prompt!r}"), title_justify="left", show_lines=True)
        table.add_column("unsteered", ratio=1, overflow="fold")
        table.add_column("steered", ratio=1, overflow="fold")
        for one in (one for one in mine if one["strength"] != 0):
            steered = Text.assemble((f"[{one['strength']:+g}] ", "bold"), one["text"].strip())
            # The same unsteered text stands beside every strength: print it once.
            table.add_row(Text("" if table.row_count else plain.strip()), steered)
        console().print(table)


command = Group(
    "steer",
    params=[*settings_options(SteerSettings), *produce_options()],
    callback=click.pass_context(_steer),
    invoke_without_command=True,
    help="Push a feature in one of the models and compare what it writes.\n\nAdds STRENGTH x the feature's maximum "
    "activation x its decoder direction to the residual stream at the harvested layer, at every position (B.4.3). "
    "Strength 1 means: as strong as ever seen.\n\n`modeldiff steer transfer` moves a direction to the other model.",
    epilog=examples(
        'modeldiff steer --model A --feature 17 --strength 1 2 4 --prompt "I think"',
        "modeldiff steer --model B --feature 1020 --strength -2 2 --prompts prompts.txt --json",
        "modeldiff steer transfer --from A --from-prompts positive.txt negative.txt",
    ),
)
command.add_command(steer_transfer.command)
