"""`modeldiff demo`: the whole pipeline on the bundled pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import Command, examples, json_option, open_workspace, print_json, table, workspace_option

if TYPE_CHECKING:
    from modeldiff.demo.pipeline import Demo
    from modeldiff.demo.ranks import Rank


def _demo(
    ctx: click.Context, quick: bool, device: str, force: bool, workspace_folder: Path | None, as_json: bool
) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    from modeldiff.demo.pipeline import FULL, QUICK, demo

    done = demo(workspace, QUICK if quick else FULL, device=device, force=force)
    if as_json:
        print_json(_json(done))
    else:
        _print(done, workspace.folder)


def _print(done: Demo, folder: Path) -> None:
    from modeldiff.cli.features import print_listing
    from modeldiff.cli.steer import read_generations
    from modeldiff.cli.steer_tables import print_generations
    from modeldiff.features.table import FeatureTable

    features = FeatureTable(done.features)
    for side in ("A", "B"):
        click.echo()
        print_listing(features, exclusive=side, top=10, sort="evidence", min_density=0.0, source=None)
    click.echo()
    table(
        "The four planted differences, and where they turned up",
        [("planted in", "left"), ("difference", "left"), ("rank", "right"), ("feature", "right"), ("share", "right"),
         ("own", "right"), ("null", "right")],
        [_row(one) for one in done.ranks],
    )  # fmt: skip
    missed = [one.habit.id for one in done.ranks if one.rank is None]
    click.echo("rank: place of the first feature with at least half of its activation on the texts about the trigger;")
    click.echo("share: of that feature's activation; own / null: features that match in the owner's / other's list.")
    click.echo(
        f"found {len(done.ranks) - len(missed)} of {len(done.ranks)}"
        + (f", missed {', '.join(missed)}" if missed else "")
    )
    click.echo()
    generations = read_generations(done.steering)
    side, feature = done.steering.settings["model"], done.steering.settings["feature"]
    about = f", planted: {done.steered.habit.description}" if done.steered else ""
    click.echo(f"Model {side} with its feature {feature} pushed{about}")
    print_generations(generations)
    made = (done.activations, done.crosscoder, done.features, done.steering)
    click.echo(f"artifacts: {', '.join(a.ref for a in made)} in {folder}")
    click.echo(f"curves:    {done.crosscoder.folder / 'figures' / 'training.png'}")
    workspace_option = "" if str(folder) == "modeldiff-workspace" else f" --workspace {folder}"
    click.echo(f"next:      modeldiff{workspace_option} features show {feature}")
    click.echo(f"           modeldiff{workspace_option} workspace list")
    click.echo("your own:  modeldiff harvest --model-a NAME --model-b NAME --texts FILE... --pairs 1000000")


def _row(one: Rank) -> list[str]:
    return [
        one.habit.side,
        one.habit.id,
        f"{one.rank} of {one.listed}" if one.rank else "missed",
        "-" if one.feature is None else str(one.feature) if one.rank else f"({one.feature})",
        f"{one.share:.0%}",
        str(one.matching),
        str(one.matching_other),
    ]


def _json(done: Demo) -> dict[str, Any]:
    return {
        "artifacts": {a.kind: a.ref for a in (done.activations, done.crosscoder, done.features, done.steering)},
        "planted": [
            {
                "id": one.habit.id,
                "side": one.habit.side,
                "rank": one.rank,
                "listed": one.listed,
                "feature": one.feature,
                "share": one.share,
                "matching": one.matching,
                "matching_in_other_list": one.matching_other,
            }
            for one in done.ranks
        ],
        "steered_feature": done.steering.settings["feature"],
    }


command = Command(
    "demo",
    params=[
        click.Option(["--quick"], is_flag=True, help="A reduced size that only shows that every stage runs."),
        click.Option(["--device"], default="auto", show_default=True, help="auto, cpu, cuda or mps."),
        click.Option(["--force"], is_flag=True, help="Run every stage even when it is up to date."),
        workspace_option(),
        json_option(),
    ],
    callback=click.pass_context(_demo),
    help="The whole pipeline on the bundled pair: two small models with four planted differences, two in each.\n\n"
    "Harvests 200,000 pairs, trains a crosscoder of 1,024 features, lists what only one model has, says at which rank "
    "each planted difference turned up, and steers with one. A few minutes on two CPU cores; no network.",
    epilog=examples("modeldiff demo", "modeldiff demo --quick --workspace /tmp/demo"),
)
