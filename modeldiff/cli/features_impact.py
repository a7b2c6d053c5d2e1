"""`modeldiff features impact`: what each feature does to its model's predictions, and to the other's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import (
    artifact_json,
    examples,
    make_settings,
    open_workspace,
    print_json,
    produce_options,
    settings_options,
    table,
)
from modeldiff.features.impact.settings import ImpactSettings

if TYPE_CHECKING:
    from modeldiff.features.impact.result import Impact, ImpactRow


def _impact(
    ctx: click.Context,
    name: str | None,
    force: bool,
    workspace_folder: Path | None,
    as_json: bool,
    exclusive: str | None,
    min_windows: int,
    top: int,
    **values: Any,
) -> None:
    workspace = open_workspace(ctx, workspace_folder or ctx.meta.get("modeldiff.workspace"))
    settings = make_settings(ImpactSettings, values)
    from modeldiff.features.impact.result import read_impact
    from modeldiff.features.impact.run import run

    artifact = run(settings, workspace, name=name, force=force)
    impact = read_impact(artifact)
    listed = {
        side: impact.rows(side, exclusive=exclusive is not None, min_windows=min_windows, top=top)
        for side in ([exclusive] if exclusive else ["A", "B"])
    }
    if as_json:
        rows = {side: [dataclasses.asdict(row) for row in found] for side, found in listed.items()}
        print_json({**artifact_json(artifact), "impact": impact.info, "features": rows})
    else:
        print_impact(impact, listed, exclusive=exclusive is not None)


def print_impact(impact: Impact, listed: dict[str, list[ImpactRow]], *, exclusive: bool) -> None:
    """A table of each side's features, the controls beneath it."""
    info = impact.info
    for side, rows in listed.items():
        which = f"{side}-exclusive features" if exclusive else f"features of {side}"
        table(
            f"{impact.artifact.ref}: {which} of {info['crosscoder']}, by score",
            [
                (column, "left" if column == "part" else "right")
                for column in ("id", "part", "fires", "in", "nats", "±", "other", "asym.", "surf.", "/firing", "score")
            ],
            [_row(row) for row in rows],
        )
        if not rows:
            click.echo("none that fires in so many windows")
        _print_controls(info, side)
        click.echo()
    _print_notes(info)


def _row(row: ImpactRow) -> list[str]:
    return [
        str(row.id),
        row.partition,
        f"{row.firings:,}",
        f"{row.windows:,}",
        _number(row.own),
        _number(row.own_error),
        _number(row.other),
        _two(row.asymmetry),
        _two(row.surface),
        _number(row.nats_per_firing),
        _number(row.score),
    ]


def _print_controls(info: dict[str, Any], side: str) -> None:
    control, shared = info["controls"][side.lower()], info["shared"][side.lower()]
    click.echo(
        f"random directions ({control['directions']}): nats {_number(control['own']['50%'])}, other "
        f"{_number(control['other']['50%'])}, asym. {_range(control['asymmetry'])}"
    )
    click.echo(
        f"shared features ({shared['features']}): asym. {_range(shared['asymmetry'])};\n"
        f"  moved through the stitch, as exclusive ones are: {_range(shared['asymmetry_stitched'])}"
    )
    exact = info["exact"][side.lower()]
    click.echo(
        f"really removed ({exact['features']}): second order / exact {_range(exact['ratio'])},\n"
        f"  rank correlation {_two(exact['rank_correlation'])}"
    )


def _print_notes(info: dict[str, Any]) -> None:
    surface = info["surface"]
    click.echo(
        f"{info['pairs']:,} pairs in {info['windows']:,} windows of {info['activations']}; "
        f"{info['outliers']:,} outliers left alone.\n{info['samples']} draws of every next token."
    )
    click.echo("nats: KL(unchanged || without the feature), to second order, summed over a")
    click.echo("window in which it fires (in: so many). other: the same in the other model, of")
    click.echo(f"shared features by their own decoder row, else moved by {info['stitch']}.")
    click.echo("asym.: (nats - other) / (nats + other); near 1: no linear analogue was found")
    click.echo("that the other model minds losing.")
    click.echo("surf.: held-out R² of the activation from the last word or the last two; all")
    click.echo(f"features {_range(surface['r2'])}, wrong words {_range(surface['null_r2'])}.")
    click.echo("score: nats per firing x asym. x (1 - surf.). Medians [5 % to 95 %].")


def _number(value: float | None) -> str:
    """At most seven characters, whatever the size."""
    if value is None:
        return "-"
    if not 1e-3 <= abs(value) < 1e5:
        return "0" if value == 0 else f"{value:.0e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _range(one: dict[str, float | None]) -> str:
    return f"{_two(one['50%'])} [{_two(one['5%'])} to {_two(one['95%'])}]"


command = click.Command(
    "impact",
    params=[
        *settings_options(ImpactSettings),
        click.Option(
            ["--exclusive"], type=click.Choice(["A", "B"]), help="Only this model's exclusive features.  [default: all]"
        ),
        click.Option(
            ["--min-windows"], type=int, default=10, show_default=True, help="Leave out what fires in fewer windows."
        ),
        click.Option(["--top"], type=int, default=20, show_default=True, help="Features listed of each model."),
        *produce_options(),
    ],
    callback=click.pass_context(_impact),
    help="Crosscoder + activations + stitch + models -> impact: for every feature at once, what removing it costs each "
    "model's own predictions, and how much of its activation the last words alone explain.\n\n"
    "Listed are the features that do most to their own model, little to the other one, and are not mere words.",
    epilog=examples(
        "modeldiff features impact",
        "modeldiff features impact --exclusive A --top 10",
        "modeldiff features impact --crosscoder 2 --pairs 20000 --samples 10 --json",
    ),
)
