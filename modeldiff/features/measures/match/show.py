"""How matches are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.format import fixed, table

if TYPE_CHECKING:
    from modeldiff.features.measures.match.table import MatchRow, MatchTable

_NAMES = {"A": "A-exclusive", "shared": "shared", "B": "B-exclusive"}
_PLACES = ("A", "shared", "B", "one-sided", "none")


def print_match(found: MatchTable, partitions: list[str], top: int) -> None:
    """For each partition how many features came back where, then the features, the most stable first."""
    info = found.info
    others = info["others"]
    where = others[0] if len(others) == 1 else f"{len(others)} other crosscoders"
    click.echo(f"{found.artifact.ref}: the features of {info['reference']} in {where}, on {info['pairs']:,} pairs")
    for partition in partitions:
        if partition not in info["summary"]:
            click.echo(f"\n{info['reference']} has no {_NAMES[partition]} features")
            continue
        _print_summary(info["summary"][partition], partition)
        _print_features(found.rows(partition, top), partition, info["summary"][partition]["alive"], info["threshold"])
    click.echo(f"\nback: the best match correlates (r) {info['threshold']:g} or more, and is mutual. one-sided: it")
    click.echo("prefers another feature. (In brackets): with the pairs permuted, by chance.")


def _print_summary(summary: dict[str, Any], partition: str) -> None:
    rows = []
    for one in summary["against"]:
        medians = [fixed(figures["correlation"]["median"]) for figures in (one, one["chance"])]
        counts = _counts(one["came_back"], one["chance"]["came_back"], "d")
        rows.append([one["crosscoder"], *counts, f"{medians[0]} ({medians[1]})"])
    if len(rows) > 1:
        rows.append(["mean", *_counts(summary["mean"], summary["mean"]["chance"], ".1f"), ""])
        rows.append(["alike in all", *_counts(summary["in_all"], summary["in_all"]["chance"], "d"), ""])
    sizes = f"{summary['features']} features, {summary['alive']} alive"
    click.echo()
    table(
        f"{_NAMES[partition]}: {sizes}; back in",
        [("in", "left"), *((place, "right") for place in _PLACES), ("median r", "right")],
        rows,
    )
    if summary["alive"]:
        chance = [one["chance"]["correlation"] for one in summary["against"]]
        most, all_of_them = (max(one[name] for one in chance) for name in ("99%", "max"))
        click.echo(f"by chance 99% of the best matches correlate below {most:.2f}, all up to {all_of_them:.2f}")


def _counts(found: dict[str, Any], chance: dict[str, Any], form: str) -> list[str]:
    counts = [f"{found[place]:{form}} ({chance[place]:g})" for place in _PLACES if place != "none"]
    return [*counts, f"{found['none']:{form}}"]


def _print_features(rows: list[MatchRow], partition: str, alive: int, threshold: float) -> None:
    if not rows:
        return
    cells = []
    for row in rows:
        for index, one in enumerate(row.found):
            first = [str(row.id), f"{row.density:.2%}"] if not index else ["", ""]
            place = "none" if one.id is None else f"{one.partition} {one.id}"
            cosines = [fixed(cosine) for cosine in (one.cosine_a, one.cosine_b) if cosine is not None]
            back = "yes" if one.came_back else "one-sided" if one.correlation >= threshold else "no"
            r = f"{one.correlation:.2f} ({one.chance:.2f})"
            cells.append([*first, one.crosscoder, place, r, " ".join(cosines), back])
    names = {"A": "cos A", "shared": "cos A, B", "B": "cos B"}
    click.echo()
    table(
        f"{_NAMES[partition]} features, {len(rows)} of {alive} alive, the most stable first",
        [
            ("id", "right"),
            ("fires", "right"),
            ("in", "left"),
            ("best match", "left"),
            ("r", "right"),
            (names[partition], "right"),
            ("back", "left"),
        ],
        cells,
    )
