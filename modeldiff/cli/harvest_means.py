"""`modeldiff harvest means`: activations averaged along their texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modeldiff.cli.common import (
    Command,
    artifact_json,
    examples,
    flat,
    make_settings,
    open_workspace,
    print_json,
    produce_options,
    settings_options,
    table,
)
from modeldiff.harvest.means_settings import MeansSettings


def _means(
    ctx: click.Context, name: str | None, force: bool, workspace_folder: Path | None, as_json: bool, **values: Any
) -> None:
    workspace = open_workspace(ctx, workspace_folder or ctx.meta.get("modeldiff.workspace"))
    settings = make_settings(MeansSettings, values)
    from modeldiff.harvest.means import run

    artifact = run(settings, workspace, name=name, force=force)
    if as_json:
        print_json(artifact_json(artifact))
        return
    table(artifact.ref, [("measured", "left"), ("value", "right")], flat(artifact.metrics))
    click.echo(f"next: modeldiff train --activations {artifact.ref}")


command = Command(
    "means",
    params=[*settings_options(MeansSettings), *produce_options()],
    callback=click.pass_context(_means),
    help="Activations -> means of each text's last pairs, for what lasts along a text.\n\n"
    "Reads no model. Train a crosscoder of the means and list its features like any other's; `features evaluate` needs "
    "single activations.",
    epilog=examples(
        "modeldiff harvest means --over 24",
        "modeldiff harvest means --activations activations:1 --over 8 --name slow",
    ),
)
