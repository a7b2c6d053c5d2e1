"""How a stitch is printed."""

from __future__ import annotations

from typing import Any

import click

from modeldiff.format import fixed, table

_TITLES = {"a_to_b": "A -> B", "b_to_a": "B -> A"}


def print_stitch(ref: str, info: dict[str, Any]) -> None:
    """R² of both maps, overall and by the target's norm, in 80 columns."""
    rows = []
    for direction, title in _TITLES.items():
        found = info["maps"][direction]
        rows.append([title, "all", f"{info['pairs']['report']:,}", _r2(found["r2"]), _r2(found["null_r2"])])
        rows += [
            [
                "",
                f"{one['from']:.3g} to {one['to']:.3g}",
                f"{one['pairs']:,}",
                _r2(one["r2"]),
                _r2(one["null_r2"]),
            ]
            for one in found["by_norm"]
        ]
    widths = " and ".join(f"{info['sides'][side]['width']:,}" for side in ("a", "b"))
    table(
        f"{ref} of {info['activations']}, widths {widths}",
        [("map", "left"), ("norm of the target", "left"), ("pairs", "right"), ("R²", "right"), ("permuted", "right")],
        rows,
    )
    trip = info["round_trip"]
    click.echo(f"There and back: R² {_r2(trip['a'])} for A by way of B, {_r2(trip['b'])} for B by way of A.")
    if info["identity"]:
        same = info["identity"]
        click.echo(f"Without a map (widths are equal): R² {_r2(same['a_to_b'])} A -> B, {_r2(same['b_to_a'])} B -> A.")
    ridges = [info["maps"][direction]["ridge"] for direction in _TITLES]
    pairs = info["pairs"]
    click.echo(f"Fitted on {pairs['fit']:,} pairs; {info['outliers']:,} of outlying norm were left out.")
    click.echo(f"Ridge {ridges[0]:g} A -> B, {ridges[1]:g} B -> A, chosen on {pairs['choose']:,} other pairs.")
    click.echo("R²: share of these pairs' variance, about their own mean, that the map")
    click.echo("explains; neither the fit nor the choice of the ridge has seen them.")
    click.echo("permuted: the same for a map that was fitted on wrong pairs.")


def _r2(value: float | None) -> str:
    return fixed(value, 3)
