"""`modeldiff features`: measure the features of a crosscoder, list them, show one in context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import plain_command, references, stage_command
from modeldiff.cli.feature_list import listing_json, listing_rows, print_listing
from modeldiff.cli.feature_one import feature_json, print_feature
from modeldiff.console import say
from modeldiff.errors import InputError, ModeldiffError
from modeldiff.features.measures import Measure, measures
from modeldiff.features.settings import FeaturesSettings
from modeldiff.format import print_json
from modeldiff.records import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modeldiff.catalogue.table import FeatureRow, FeatureTable
    from modeldiff.features.missing import Evidence
    from modeldiff.workspace import Artifact, Workspace


def _checked(_settings: FeaturesSettings, _workspace: Workspace, *, as_json: bool, full: bool, **_: Any) -> bool:
    _check(full=full, as_json=as_json)
    return False


def _check(*, full: bool, as_json: bool) -> None:
    if full and not as_json:
        raise InputError("--full goes with --json")


def _show(artifact: Artifact, *, numbers: bool, **options: Any) -> None:
    table, chosen = _listed(artifact, **options)
    print_listing(table, _evidence(artifact), numbers=numbers, **chosen)


def _data(artifact: Artifact, *, full: bool, **options: Any) -> dict[str, Any]:
    table, chosen = _listed(artifact, **options)
    return {**listing_json(table, full=full, **chosen), "evidence": to_json(_evidence(artifact))}


def _rows(artifact: Artifact, **options: Any) -> Iterator[dict[str, Any]]:
    table, chosen = _listed(artifact, **options)
    return listing_rows(table, **chosen)


def _listed(
    artifact: Artifact, *, exclusive: str | None, shared: bool, **options: Any
) -> tuple[FeatureTable, dict[str, Any]]:
    """(the features, the options as `FeatureTable.select` takes them)."""
    from modeldiff.catalogue.table import FeatureTable

    if exclusive and shared:
        raise InputError("--exclusive and --shared name two parts: give one of them")
    chosen = {name: options[name] for name in ("top", "sort", "min_density", "anywhere")}
    return FeatureTable(artifact), {"partition": "shared" if shared else exclusive, **chosen}


def _evidence(artifact: Artifact) -> list[Evidence]:
    from modeldiff.features.missing import evidence_about
    from modeldiff.workspace import Workspace

    return evidence_about(Workspace(artifact.folder.parents[1]), artifact)


def _show_one(workspace: Workspace, *, feature: int, ref: str | None, top: int, full: bool, as_json: bool) -> None:
    from modeldiff.catalogue.table import FeatureTable

    _check(full=full, as_json=as_json)
    artifact = workspace.find("features", ref)
    table = FeatureTable(artifact)
    row = table.row(feature, examples=top)
    known = {one.name: _newest(workspace, artifact, row, one) for one in measures()}
    if as_json:
        print_json({"ref": artifact.ref, **feature_json(row, full=full), **known})
    else:
        print_feature(table, row, known)


def _newest(workspace: Workspace, features: Artifact, row: FeatureRow, measure: Measure) -> dict[str, Any] | None:
    """What the newest artifact of a measure that says something about a feature says, with its `ref`."""
    from modeldiff.features.missing import made_about

    for one in made_about(workspace, features, measure):
        try:
            found = measure.of_feature(one, row)
        except ModeldiffError as error:  # what is shown beside it is sound
            say(str(error))
            continue
        if found:
            return {"ref": one.ref, **found}
    return None


_FULL = click.Option(
    ["--full"],
    is_flag=True,
    help="With --json: all that is known of examples, both models' tokens and the activation at each.",
)
_ONE = plain_command(
    "show",
    _show_one,
    params=[
        click.Argument(["feature"], type=int, metavar="ID"),
        click.Option(
            ["--features", "ref"],
            metavar="REF",
            shell_complete=references("features"),
            help="The features artifact.  [default: the latest]",
        ),
        click.Option(["--top"], type=click.IntRange(min=0), default=8, show_default=True, help="Number of examples."),
        _FULL,
    ],
    short_help="One feature: its numbers, twins, sources and examples.",
    help="One feature: its numbers, twins, text sources, and its strongest examples in context.",
    lines=["modeldiff features show 17", "modeldiff features show 17 --top 20 --json"],
)


_MEASURES = [
    stage_command(
        one.name,
        one.settings,
        one.stage,
        show=one.show,
        data=one.data,
        options=one.options(),
        plan=one.plan if one.rehearsed else None,
        short_help=one.summary,
        help=one.about,
        lines=[f"modeldiff features {one.name} {arguments}".rstrip() for arguments in one.examples],
    )
    for one in measures()
]
command = stage_command(
    "features",
    FeaturesSettings,
    "modeldiff.features.run",
    show=_show,
    data=_data,
    rows=_rows,
    plan="modeldiff.features.run",
    instead=_checked,
    options=[
        click.Option(["--exclusive"], type=click.Choice(["A", "B"]), help="List the features of this model alone."),
        click.Option(["--shared"], is_flag=True, help="List the shared features.  [default: all features]"),
        click.Option(
            ["--anywhere"],
            is_flag=True,
            help="With --exclusive: also shared features that this model's activations explain better than "
            "the other's. Which partition a feature ends in is partly chance.",
        ),
        click.Option(
            ["--top"], type=click.IntRange(min=1), default=20, show_default=True, help="Number of features listed."
        ),
        click.Option(
            ["--sort"],
            type=click.Choice(["evidence", "gap", "density", "max", "relative_norm", "twin", "id"]),
            default="evidence",
            show_default=True,
            help="gap: R² from the owner minus R² from the other model, largest first; evidence: gap x (1 - other / "
            "own); twin: least similar twin first.",
        ),
        click.Option(["--min-density"], type=float, default=0.0, help="Leave out what fires on a smaller share."),
        click.Option(["--numbers"], is_flag=True, help="Print every number and what it means."),
        _FULL,
    ],
    subcommands=[_ONE, *_MEASURES],
    help="Crosscoder + activations -> features: measured in one pass, then listed.\n\n"
    "`modeldiff features show ID` shows one of them in context.\n\n"
    "With several GPUs: `torchrun --nproc-per-node N -m modeldiff features ...`; each process takes its share of the "
    "pairs.",
    lines=[
        "modeldiff features --exclusive A --top 20",
        "modeldiff features --exclusive A --anywhere",
        "modeldiff features --shared --sort density --json",
        "modeldiff features show 17",
    ],
)
