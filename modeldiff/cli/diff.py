"""`modeldiff diff`: two models and texts in, the list of differences out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.cli.common import stage_command
from modeldiff.cli.contrast import data, list_options, rows, show
from modeldiff.cli.report import page
from modeldiff.cli.report import show as print_page
from modeldiff.diff.settings import DiffSettings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact, Workspace


def _run(settings: DiffSettings, workspace: Workspace, **how: Any) -> Artifact:
    from modeldiff.diff.run import run

    return run(settings, workspace, **how).contrast


def _show(artifact: Artifact, **options: Any) -> None:
    show(artifact, **options)
    print_page(_page_of(artifact))


def _data(artifact: Artifact, **options: Any) -> dict[str, Any]:
    return {**data(artifact, **options), "page": str(page(_page_of(artifact)))}


def _page_of(contrast: Artifact) -> Artifact:
    """The newest page about a list of differences."""
    from modeldiff.workspace import Workspace

    pages = Workspace(contrast.folder.parents[1]).users_of(contrast)
    return [one for one in pages if one.kind == "report"][-1]


command = stage_command(
    "diff",
    DiffSettings,
    _run,
    show=_show,
    data=_data,
    rows=rows,
    plan="modeldiff.diff.plan",
    options=list_options(),
    help="What does one model do that the other does not? All stages, from two models and texts to the list.\n\n"
    "Reads the texts with both models, trains a crosscoder, lets both models continue the texts, and lists what they "
    "say differently where a word, a feature or a source is there, or everywhere: found on one half of the documents, "
    "verified on the other, with the share of each difference that removing its feature closes; at the end, one page "
    "holds all of it. Every stage is kept; the same command goes on where it stopped.",
    lines=[
        "modeldiff diff --model-a gpt2 --model-b distilgpt2 --texts corpus.jsonl",
        "modeldiff diff --model-a ./a --model-b ./b --texts corpus.jsonl --plan",
        "modeldiff diff --model-a A --model-b B --texts chats.jsonl web=web.parquet --pairs 10000000",
    ],
)
