"""`modeldiff features`: measure the features of a crosscoder, list them, show one in context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import (
    examples,
    json_option,
    make_settings,
    open_workspace,
    produce_options,
    settings_options,
    stage_command,
    workspace_option,
)
from modeldiff.cli.feature_list import listing_json, print_feature, print_listing
from modeldiff.console import say
from modeldiff.errors import ModeldiffError
from modeldiff.features.measures import Measure, measures
from modeldiff.features.settings import FeaturesSettings
from modeldiff.format import print_json
from modeldiff.records import to_json

if TYPE_CHECKING:
    from modeldiff.features.table import FeatureRow
    from modeldiff.workspace import Artifact, Workspace

SORTS = ("evidence", "gap", "density", "max", "relative_norm", "twin", "id")


def _features(
    ctx: click.Context,
    name: str | None,
    force: bool,
    workspace_folder: Path | None,
    as_json: bool,
    exclusive: str | None,
    top: int,
    sort: str,
    min_density: float,
    anywhere: bool,
    **values: Any,
) -> None:
    ctx.meta["modeldiff.workspace"] = workspace_folder
    if ctx.invoked_subcommand is not None:
        return
    workspace = open_workspace(ctx, workspace_folder)
    settings = make_settings(FeaturesSettings, values)
    from modeldiff.features.missing import evidence_about
    from modeldiff.features.run import run
    from modeldiff.features.table import FeatureTable

    table = FeatureTable(run(settings, workspace, name=name, force=force))
    evidence = evidence_about(workspace, table.artifact)
    chosen: Any = {
        "exclusive": exclusive,
        "top": top,
        "sort": sort,
        "min_density": min_density,
        "anywhere": anywhere,
    }
    if as_json:
        print_json({**listing_json(table, **chosen), "evidence": [to_json(one) for one in evidence]})
    else:
        print_listing(table, evidence, **chosen)


def _show(
    ctx: click.Context,
    feature: int,
    ref: str | None,
    shown: int,
    workspace_folder: Path | None,
    as_json: bool,
) -> None:
    workspace = open_workspace(ctx, workspace_folder or ctx.meta.get("modeldiff.workspace"))
    artifact: Artifact = workspace.find("features", ref)
    from modeldiff.features.table import FeatureTable

    table = FeatureTable(artifact)
    row = table.row(feature, examples=shown)
    known = _known_about(workspace, artifact, row)
    if as_json:
        print_json({"ref": artifact.ref, **row.to_json(), **known})
    else:
        print_feature(table, row, known)


def _known_about(workspace: Workspace, features: Artifact, row: FeatureRow) -> dict[str, dict[str, Any] | None]:
    """By measure, what its newest artifact about this feature says, with the `ref`; None: there is none that does."""
    return {one.name: _newest(workspace, features, row, one) for one in measures()}


def _newest(workspace: Workspace, features: Artifact, row: FeatureRow, measure: Measure) -> dict[str, Any] | None:
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


command = click.Group(
    "features",
    params=[
        *settings_options(FeaturesSettings),
        click.Option(["--exclusive"], type=click.Choice(["A", "B", "shared"]), help="Only this part.  [default: all]"),
        click.Option(
            ["--anywhere"],
            is_flag=True,
            help="With --exclusive A or B: also shared features (marked s) that this model's activations explain "
            "better than the other's. Which partition a feature ends in is partly chance.",
        ),
        click.Option(["--top"], type=int, default=20, show_default=True, help="Number of features listed."),
        click.Option(
            ["--sort"],
            type=click.Choice(SORTS),
            default="evidence",
            show_default=True,
            help="gap: R² from the owner minus R² from the other model, largest first; evidence: gap x (1 - other / "
            "own); twin: least similar twin first.",
        ),
        click.Option(["--min-density"], type=float, default=0.0, help="Leave out what fires on a smaller share."),
        *produce_options(),
    ],
    callback=click.pass_context(_features),
    invoke_without_command=True,
    help="Crosscoder + activations -> features: measured in one pass, then listed.\n\n"
    "`modeldiff features show ID` shows one of them in context.",
    epilog=examples(
        "modeldiff features --exclusive A --top 20",
        "modeldiff features --exclusive A --anywhere",
        "modeldiff features --exclusive B --sort density --json",
        "modeldiff features show 17",
    ),
)
command.add_command(
    click.Command(
        "show",
        params=[
            click.Argument(["feature"], type=int, metavar="ID"),
            click.Option(["--features", "ref"], metavar="REF", help="The features artifact.  [default: the latest]"),
            click.Option(["--top", "shown"], type=int, default=8, show_default=True, help="Number of examples."),
            workspace_option(),
            json_option(),
        ],
        callback=click.pass_context(_show),
        short_help="One feature: its numbers, twins, sources and examples.",
        help="One feature: its numbers, twins, text sources, and its strongest examples in context.",
        epilog=examples("modeldiff features show 17", "modeldiff features show 17 --top 20 --json"),
    )
)
for _measure in measures():
    command.add_command(
        stage_command(
            _measure.name,
            _measure.settings,
            _measure.stage,
            show=_measure.show,
            data=_measure.data,
            options=_measure.options(),
            short_help=_measure.summary,
            help=_measure.about,
            lines=[f"modeldiff features {_measure.name} {arguments}".rstrip() for arguments in _measure.examples],
        )
    )
