"""`modeldiff contrast`: what each model says that the other does not, and where."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from modeldiff.cli.differences import print_differences
from modeldiff.contrast.settings import ContinuationsSettings, ContrastSettings
from modeldiff.format import print_json

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


def _contrast(
    ctx: click.Context,
    name: str | None,
    force: bool,
    workspace_folder: Path | None,
    as_json: bool,
    numbers: bool,
    everything: bool,
    ref: str | None,
    **values: Any,
) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    if ref is not None:
        made_before = workspace.find("contrast", ref)
        show(made_before, as_json=as_json, numbers=numbers, everything=everything)
        return
    from modeldiff.contrast.continuations import run as run_continuations
    from modeldiff.contrast.run import run

    shared = {field.name for field in dataclasses.fields(ContinuationsSettings)}
    own = {field.name for field in dataclasses.fields(ContrastSettings)}
    made = make_settings(ContinuationsSettings, {key: value for key, value in values.items() if key in shared})
    settings = make_settings(ContrastSettings, {key: value for key, value in values.items() if key in own})
    if settings.continuations is None:
        continuations = run_continuations(made, workspace)
        settings = dataclasses.replace(settings, continuations=continuations.ref)
    artifact = run(settings, workspace, name=name, force=force)
    show(artifact, as_json=as_json, numbers=numbers, everything=everything)


def show(artifact: Artifact, *, as_json: bool, numbers: bool, everything: bool) -> None:
    """Print a contrast as the options ask for it."""
    from modeldiff.contrast.stored import read_contrast

    found = read_contrast(artifact)
    if as_json:
        more = found["not_verified"] if everything else []
        shown = {key: value for key, value in found.items() if key != "not_verified"}
        print_json({**artifact_json(artifact), **shown, "differences": found["differences"] + more})
    else:
        print_differences(found, artifact.ref, numbers=numbers, everything=everything)


def list_options() -> list[click.Parameter]:
    """How the list is printed."""
    return [
        click.Option(["--numbers"], is_flag=True, help="Print rates, intervals and how each is represented, too."),
        click.Option(["--all", "everything"], is_flag=True, help="Show the candidates that did not hold, too."),
    ]


def _options() -> list[click.Parameter]:
    options = settings_options(ContinuationsSettings)
    known = {option.name for option in options}
    return options + [option for option in settings_options(ContrastSettings) if option.name not in known]


command = Command(
    "contrast",
    params=[
        *_options(),
        click.Option(["--show", "ref"], metavar="REF", help="Print a contrast that was made before; `latest` will do."),
        *list_options(),
        *produce_options(),
    ],
    callback=click.pass_context(_contrast),
    help="What each model says that the other does not, where, and whether it holds.\n\n"
    "Both models continue the same texts from the same places. Where something is so (a word or a feature is there, a "
    "source, or everywhere) their continuations are compared with those from elsewhere: found on one half of the "
    "documents, verified on the other, at a stated false discovery rate. Needs two models and texts; a crosscoder of "
    "the two adds its features.",
    epilog=examples(
        "modeldiff contrast --model-a gpt2 --model-b distilgpt2 --texts corpus.jsonl",
        "modeldiff contrast",
        "modeldiff contrast --prompts questions.txt --model-a A --model-b B --draws 4",
        "modeldiff contrast --crosscoder 2 --smallest 0.1 --numbers",
        "modeldiff contrast --show latest --numbers",
    ),
)
