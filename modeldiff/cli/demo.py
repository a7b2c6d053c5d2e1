"""`modeldiff demo`: the diff of the bundled pair, held against the truth."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import Command, examples, json_option, open_workspace, workspace_option
from modeldiff.format import print_json, table

if TYPE_CHECKING:
    from modeldiff.demo.pipeline import Demo, Rank


def _demo(
    ctx: click.Context,
    quick: bool,
    seed: int,
    device: str,
    force: bool,
    workspace_folder: Path | None,
    as_json: bool,
) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    from modeldiff.demo.pipeline import FULL, QUICK, demo

    done = demo(workspace, QUICK if quick else FULL, seed=seed, device=device, force=force)
    if as_json:
        print_json(_json(done))
    else:
        _print(done, workspace.folder)


def _print(done: Demo, folder: Path) -> None:
    from modeldiff.cli.differences import print_differences
    from modeldiff.cli.steer import read_generations
    from modeldiff.cli.steer_tables import print_generations
    from modeldiff.contrast.stored import read_contrast

    print_differences(read_contrast(done.diff.contrast), done.diff.contrast.ref, numbers=False, everything=False)
    click.echo()
    table(
        "Where the planted differences stand",
        [("planted in", "left"), ("difference", "left"), ("rank", "right"), ("feature", "right"), ("share", "right")],
        [_row(one) for one in done.ranks],
    )
    click.echo("share: of the entry's places, where the text before names the trigger; half match.")
    missed = [one.habit.id for one in done.ranks if one.rank is None]
    other = ", ".join(map(str, done.other)) or "none"
    found = f"found {len(done.ranks) - len(missed)} of {len(done.ranks)}"
    found += f", missed {', '.join(missed)}" if missed else ""
    click.echo(textwrap.fill(f"{found}; entries about none of them: {other}", 80, break_on_hyphens=False))
    if done.steered and done.steering:
        click.echo()
        side, feature = done.steering.settings["model"], done.steering.settings["feature"]
        click.echo(f"Model {side} with its feature {feature} pushed, planted: {done.steered.habit.description}")
        print_generations(read_generations(done.steering))
    workspace_option = "" if str(folder) == "modeldiff-workspace" else f" --workspace {folder}"
    click.echo(f"curves:    {done.diff.crosscoder.folder / 'figures' / 'training.png'}")
    click.echo(f"next:      modeldiff{workspace_option} contrast --show latest --numbers")
    click.echo("your own:  modeldiff diff --model-a NAME --model-b NAME --texts FILE...")


def _row(one: Rank) -> list[str]:
    return [
        one.habit.side,
        one.habit.id,
        str(one.rank) if one.rank else "missed",
        "-" if one.feature is None else str(one.feature),
        f"{one.share:.0%}",
    ]


def _json(done: Demo) -> dict[str, Any]:
    from modeldiff.contrast.stored import read_contrast

    made = done.diff
    artifacts = (made.activations, made.crosscoder, made.features, made.stitch, made.continuations, made.contrast)
    found = read_contrast(made.contrast)
    return {
        "artifacts": {a.kind: a.ref for a in artifacts},
        "differences": found["differences"],
        "found": found["found"],
        "expected_by_chance": found["expected_by_chance"],
        "rate": found["rate"],
        "planted": [
            {
                "id": one.habit.id,
                "side": one.habit.side,
                "rank": one.rank,
                "listed": len(found["differences"]),
                "feature": one.feature,
                "share": one.share,
            }
            for one in done.ranks
        ],
        "not_planted": done.other,
        "steered_feature": done.steering.settings["feature"] if done.steering else None,
    }


command = Command(
    "demo",
    params=[
        click.Option(["--quick"], is_flag=True, help="A reduced size that only shows that every stage runs."),
        click.Option(
            ["--seed"], default=0, show_default=True, help="Of the training, the places and the sampling.",
            type=click.IntRange(min=0),
        ),
        click.Option(["--device"], default="auto", show_default=True, help="auto, cpu, cuda or mps."),
        click.Option(["--force"], is_flag=True, help="Run every stage even when it is up to date."),
        workspace_option(),
        json_option(),
    ],
    callback=click.pass_context(_demo),
    help="`modeldiff diff` on the bundled pair: two small models with four planted differences, two in each.\n\n"
    "Prints the list of differences, says at which rank each planted one stands and which entries are about none of "
    "them, and steers one. A few minutes on two CPU cores; no network.",
    epilog=examples("modeldiff demo", "modeldiff demo --quick --workspace /tmp/demo", "modeldiff demo --seed 1"),
)  # fmt: skip
