"""`modeldiff toy`: the benchmark on worlds whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modeldiff.cli.common import (
    Command,
    artifact_json,
    examples,
    make_settings,
    open_workspace,
    produce_options,
    settings_options,
)
from modeldiff.format import print_json, table
from modeldiff.toy.settings import ToySettings


def _toy(
    ctx: click.Context, name: str | None, force: bool, workspace_folder: Path | None, as_json: bool, **values: Any
) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    settings = make_settings(ToySettings, values)
    from modeldiff.toy.run import SUMMARY_NAME, run
    from modeldiff.toy.table import printed_tables
    from modeldiff.workspace.files import read_json

    artifact = run(settings, workspace, name=name, force=force)
    rows = read_json(artifact.file(SUMMARY_NAME))["rows"]
    if as_json:
        print_json({**artifact_json(artifact), "summary": rows})
        return
    said: set[tuple[str, ...]] = set()
    for one in printed_tables(rows):
        table(one.title, one.columns, one.rows)
        if one.legend not in said:
            click.echo("\n".join(one.legend))
        click.echo()
        said.add(one.legend)
    click.echo(f"cells:   {artifact.folder / 'cells.csv'}")
    click.echo(f"figures: {artifact.folder / 'figures'}")


command = Command(
    "toy",
    params=[*settings_options(ToySettings), *produce_options()],
    callback=click.pass_context(_toy),
    help="How well does a dictionary find what only one model has? Measured on worlds whose truth is known.\n\n"
    "Draws sparse concepts, some of them in one model alone, trains dictionaries on the two models' activations, and "
    "counts which exclusive concepts they recover and what their exclusive features really are. The tables: `sizes`, "
    "every architecture at every dictionary size; `dial`, from models without anything in common to models that a "
    "linear map stitches (real pairs lie in between); `selection`, scores and dead windows of the training; "
    "`self-diff`, two models with the same concepts, where nothing should be called exclusive.\n\n"
    "Each cell (world, dictionary, seed) is kept when it is done: an interrupted benchmark continues with the same "
    "command, and a larger one computes only what is new. `modeldiff workspace clean` drops them.",
    epilog=examples(
        "modeldiff toy --preset quick",
        "modeldiff toy --sizes 0.2 0.5 1 --architectures standard dfc dfc-audited --tables sizes",
        "modeldiff toy --map rotation --exclusive-ratio 0 --tables sizes",
        "modeldiff toy --preset paper --sizes 0.2 0.5 1 --steps 20000 --device cuda",
    ),
)
