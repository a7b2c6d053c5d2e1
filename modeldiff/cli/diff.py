"""`modeldiff diff`: two models and texts in, the list of differences out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modeldiff.cli.common import Command, examples, make_settings, open_workspace, produce_options, settings_options
from modeldiff.cli.contrast import list_options, show
from modeldiff.diff.settings import DiffSettings


def _diff(
    ctx: click.Context,
    name: str | None,
    force: bool,
    workspace_folder: Path | None,
    as_json: bool,
    numbers: bool,
    everything: bool,
    **values: Any,
) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    settings = make_settings(DiffSettings, values)
    from modeldiff.diff.run import run

    done = run(settings, workspace, name=name, force=force)
    show(done.contrast, as_json=as_json, numbers=numbers, everything=everything)


command = Command(
    "diff",
    params=[*settings_options(DiffSettings), *list_options(), *produce_options()],
    callback=click.pass_context(_diff),
    help="What does one model do that the other does not? All stages, from two models and texts to the list.\n\n"
    "Reads the texts with both models, trains a crosscoder, lets both models continue the texts, and lists what they "
    "say differently where a word, a feature or a source is there, or everywhere: found on one half of the documents, "
    "verified on the other, with the share of each difference that removing its feature closes. Every stage is kept; "
    "the same command goes on where it stopped.",
    epilog=examples(
        "modeldiff diff --model-a gpt2 --model-b distilgpt2 --texts corpus.jsonl",
        "modeldiff diff --model-a A --model-b B --texts chats.jsonl web=web.parquet --pairs 10000000",
    ),
)
