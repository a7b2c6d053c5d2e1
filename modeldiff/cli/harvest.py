"""`modeldiff harvest`: texts + two models -> activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
from modeldiff.console import muted
from modeldiff.format import flat, print_json, table
from modeldiff.harvest.settings import HarvestSettings


def _harvest(
    ctx: click.Context,
    name: str | None,
    force: bool,
    workspace_folder: Path | None,
    as_json: bool,
    dry_run: bool,
    **values: Any,
) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    settings = make_settings(HarvestSettings, values)
    if dry_run:
        from modeldiff.harvest.run import estimate

        planned = estimate(settings, workspace)
        if as_json:
            print_json(planned)
        else:
            table("dry run: nothing was written", COLUMNS, flat(planned))
        return
    from modeldiff.harvest.run import run

    artifact = run(settings, workspace, name=name, force=force)
    if muted():  # one process of the run speaks
        return
    if as_json:
        print_json(artifact_json(artifact))
        return
    table(artifact.ref, COLUMNS, flat(artifact.metrics))
    click.echo("next: modeldiff train")


COLUMNS: list[tuple[str, Literal["left", "right"]]] = [("measured", "left"), ("value", "right")]

command = Command(
    "harvest",
    params=[
        *settings_options(HarvestSettings),
        click.Option(["--dry-run"], is_flag=True, help="Say what would be read and written, and stop."),
        *produce_options(),
    ],
    callback=click.pass_context(_harvest),
    help="Texts + two models -> paired activations.\n\nReads the texts with both models, pairs the tokens that end at "
    "the same character, and stores both residual streams. An interrupted harvest continues with the same command.\n\n"
    "With several GPUs: `torchrun --nproc-per-node N -m modeldiff harvest ...`; each process captures its share.",
    epilog=examples(
        "modeldiff harvest --model-a gpt2 --model-b EleutherAI/pythia-160m \\",
        "    --texts news=cnn.jsonl chats.jsonl@0.5 --pairs 1000000",
        "modeldiff harvest --model-a ./model-a --model-b ./model-b.gguf \\",
        "    --texts book.txt --pairs 20000 --dry-run",
        "modeldiff harvest --import-a a.npy --import-b b.npy",
    ),
)
