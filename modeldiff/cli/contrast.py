"""`modeldiff contrast`: what each model says that the other does not, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import references, stage_command
from modeldiff.cli.differences import difference_rows, print_differences
from modeldiff.contrast.settings import ContinuationsSettings, ContrastSettings
from modeldiff.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modeldiff.workspace import Artifact, Workspace


@settings
class _Settings(ContinuationsSettings, ContrastSettings):
    """Both stages of the command; what they have in common is given once."""

    def check(self) -> None:
        ContinuationsSettings.check(self)
        ContrastSettings.check(self)


def _run(asked: _Settings, workspace: Workspace, *, name: str | None, force: bool) -> Artifact:
    from modeldiff.contrast.continuations import run as run_continuations
    from modeldiff.contrast.run import run

    ref = asked.continuations
    if ref is None:
        ref = run_continuations(asked.part(ContinuationsSettings), workspace).ref
    return run(asked.part(ContrastSettings, continuations=ref), workspace, name=name, force=force)


def _plan(asked: _Settings, workspace: Workspace) -> dict[str, Any]:
    from modeldiff.contrast.continuations import plan

    return plan(asked.part(ContinuationsSettings), workspace)


def _made_before(_asked: _Settings, workspace: Workspace, *, ref: str | None, **_: Any) -> Artifact | bool:
    return workspace.find("contrast", ref) if ref is not None else False


def show(artifact: Artifact, *, numbers: bool, everything: bool, **_: Any) -> None:
    from modeldiff.catalogue.contrast import read_contrast

    print_differences(read_contrast(artifact), artifact.ref, numbers=numbers, everything=everything)


def data(artifact: Artifact, *, everything: bool, **_: Any) -> dict[str, Any]:
    """The content of contrast.json; candidates that did not hold only when asked for."""
    from modeldiff.catalogue.contrast import read_contrast

    found = read_contrast(artifact)
    not_verified = found.pop("not_verified")
    return {**found, "differences": found["differences"] + (not_verified if everything else [])}


def rows(artifact: Artifact, *, everything: bool, **_: Any) -> Iterator[dict[str, Any]]:
    from modeldiff.catalogue.contrast import read_contrast

    return difference_rows(read_contrast(artifact), everything=everything)


def list_options() -> list[click.Option]:
    return [
        click.Option(["--numbers"], is_flag=True, help="Print rates, intervals and how each is represented, too."),
        click.Option(["--all", "everything"], is_flag=True, help="Show the candidates that did not hold, too."),
    ]


command = stage_command(
    "contrast",
    _Settings,
    _run,
    show=show,
    data=data,
    rows=rows,
    options=[
        click.Option(
            ["--show", "ref"],
            metavar="REF",
            shell_complete=references("contrast"),
            help="Print a contrast that was made before; `latest` will do.",
        ),
        *list_options(),
    ],
    plan=_plan,
    instead=_made_before,
    help="What each model says that the other does not, where, and whether it holds.\n\n"
    "Both models continue the same texts from the same places. Where something is so (a word or a feature is there, a "
    "source, or everywhere) their continuations are compared with those from elsewhere: found on one half of the "
    "documents, verified on the other, at a stated false discovery rate. Needs two models and texts; a crosscoder of "
    "the two adds its features.\n\n"
    "With several GPUs: `torchrun --nproc-per-node N -m modeldiff contrast ...`; each process lets the models continue "
    "its share of the places.",
    lines=[
        "modeldiff contrast --model-a gpt2 --model-b distilgpt2 --texts corpus.jsonl",
        "modeldiff contrast",
        "modeldiff contrast --prompts questions.txt --model-a A --model-b B --draws 4",
        "modeldiff contrast --crosscoder 2 --smallest 0.1 --numbers",
        "modeldiff contrast --show latest --numbers",
    ],
)
