"""How impacts are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.format import fixed, number, table

if TYPE_CHECKING:
    from modeldiff.features.measures.impact.result import Impact, ImpactRow


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
        number(row.own),
        number(row.own_error),
        number(row.other),
        fixed(row.asymmetry),
        fixed(row.surface),
        number(row.nats_per_firing),
        number(row.score),
    ]


def _print_controls(info: dict[str, Any], side: str) -> None:
    control, shared = info["controls"][side.lower()], info["shared"][side.lower()]
    click.echo(
        f"random directions ({control['directions']}): nats {number(control['own']['50%'])}, other "
        f"{number(control['other']['50%'])}, asym. {_range(control['asymmetry'])}"
    )
    click.echo(
        f"shared features ({shared['features']}): asym. {_range(shared['asymmetry'])};\n"
        f"  moved through the stitch, as exclusive ones are: {_range(shared['asymmetry_stitched'])}"
    )
    exact = info["exact"][side.lower()]
    click.echo(
        f"really removed ({exact['features']}): second order / exact {_range(exact['ratio'])},\n"
        f"  rank correlation {fixed(exact['rank_correlation'])}"
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


def _range(one: dict[str, float | None]) -> str:
    return f"{fixed(one['50%'])} [{fixed(one['5%'])} to {fixed(one['95%'])}]"
