"""`modeldiff demo`: the diff of the bundled pair, held against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import plain_command
from modeldiff.console import echo, echo_wrapped
from modeldiff.format import NONE, Columns, percent, print_json, table

if TYPE_CHECKING:
    from modeldiff.demo.pipeline import Demo
    from modeldiff.workspace import Workspace


def _demo(workspace: Workspace, *, quick: bool, seed: int, device: str, force: bool, as_json: bool) -> None:
    from modeldiff.demo.pipeline import FULL, QUICK, demo

    done = demo(workspace, QUICK if quick else FULL, seed=seed, device=device, force=force)
    if as_json:
        print_json(_json(done))
    else:
        _print(done, workspace.folder)


def _print(done: Demo, folder: Path) -> None:
    from modeldiff.catalogue.contrast import read_contrast
    from modeldiff.cli.differences import print_differences
    from modeldiff.cli.report import show as print_page
    from modeldiff.cli.steer_tables import print_generations, read_generations

    ranks = done.ranks
    print_differences(read_contrast(done.diff.contrast), done.diff.contrast.ref, numbers=False, everything=False)
    echo()
    columns: Columns = [("planted in", "left"), ("difference", "left")]
    columns += [(name, "right") for name in ("rank", "feature", "share")]
    rows = []
    for one in ranks:
        feature = NONE if one.feature is None else str(one.feature)
        rows.append([one.habit.side, one.habit.id, str(one.rank or "missed"), feature, percent(one.share)])
    table("Where the planted differences stand", columns, rows)
    echo("share: of the entry's places, where the text before names the trigger; half match.")
    missed = [one.habit.id for one in ranks if one.rank is None]
    found = f"found {len(ranks) - len(missed)} of {len(ranks)}" + (f", missed {', '.join(missed)}" if missed else "")
    other = ", ".join(map(str, done.other)) or "none"
    echo_wrapped(f"{found}; entries about none of them: {other}")
    if done.steered and done.steering:
        side, feature = done.steering.settings["model"], done.steering.settings["feature"]
        echo("", f"Model {side} with its feature {feature} pushed, planted: {done.steered.habit.description}")
        print_generations(read_generations(done.steering))
    print_page(done.diff.report)
    option = "" if str(folder) == "modeldiff-workspace" else f" --workspace {folder}"
    if (curves := done.diff.crosscoder.folder / "figures" / "training.png").exists():
        echo(f"curves:    {curves}")
    echo(f"next:      modeldiff{option} contrast --show latest --numbers")
    echo("your own:  modeldiff diff --model-a NAME --model-b NAME --texts FILE...")


def _json(done: Demo) -> dict[str, Any]:
    from modeldiff.catalogue.contrast import read_contrast

    found = read_contrast(done.diff.contrast)
    return {
        "artifacts": {artifact.kind: artifact.ref for artifact in vars(done.diff).values()},
        **{name: found[name] for name in ("differences", "found", "expected_by_chance", "rate")},
        "planted": [
            {"id": one.habit.id, "side": one.habit.side, "rank": one.rank, "listed": len(found["differences"])}
            | {"feature": one.feature, "share": one.share}
            for one in done.ranks
        ],
        "not_planted": done.other,
        "steered_feature": done.steering.settings["feature"] if done.steering else None,
    }


command = plain_command(
    "demo",
    _demo,
    params=[
        click.Option(["--quick"], is_flag=True, help="A reduced size that only shows that every stage runs."),
        click.Option(
            ["--seed"], type=click.IntRange(0), default=0, show_default=True, help="Of training, places and sampling."
        ),
        click.Option(["--device"], default="auto", show_default=True, help="auto, cpu, cuda or mps."),
        click.Option(["--force"], is_flag=True, help="Run every stage even when it is up to date."),
    ],
    help="`modeldiff diff` on the bundled pair: two small models with four planted differences, two in each.\n\n"
    "Prints the list of differences, says at which rank each planted one stands and which entries are about none of "
    "them, and steers one. A few minutes on two CPU cores; no network.",
    lines=["modeldiff demo", "modeldiff demo --quick --workspace /tmp/demo", "modeldiff demo --seed 1"],
)
