"""`modeldiff features match`: which features of a crosscoder come back in others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import (
    examples,
    make_settings,
    open_workspace,
    print_json,
    produce_options,
    settings_options,
    table,
)
from modeldiff.errors import InputError
from modeldiff.features.match_settings import MatchSettings

if TYPE_CHECKING:
    from modeldiff.features.match_table import MatchRow, MatchTable

_NAMES = {"A": "A-exclusive", "shared": "shared", "B": "B-exclusive"}
_PLACES = ("A", "shared", "B", "one-sided", "none")


def _match(
    ctx: click.Context,
    name: str | None,
    force: bool,
    workspace_folder: Path | None,
    as_json: bool,
    exclusive: str | None,
    top: int,
    **values: Any,
) -> None:
    workspace = open_workspace(ctx, workspace_folder or ctx.meta.get("modeldiff.workspace"))
    settings = make_settings(MatchSettings, values)
    if exclusive == "shared" and not settings.all_features:
        raise InputError("--exclusive shared needs --all-features: by default only exclusive features are looked for")
    from modeldiff.features.match import run
    from modeldiff.features.match_table import MatchTable

    found = MatchTable(run(settings, workspace, name=name, force=force))
    partitions = [exclusive] if exclusive else list(found.info["summary"])
    if as_json:
        print_json(match_json(found, partitions, top))
    else:
        print_match(found, partitions, top)


def match_json(found: MatchTable, partitions: list[str], top: int) -> dict[str, Any]:
    """What `--json` prints: match.json, and one object per feature listed."""
    rows = [row.to_json() for partition in partitions for row in found.rows(partition, top)]
    return {"ref": found.artifact.ref, "folder": str(found.artifact.folder), **found.info, "features": rows}


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
        medians = [_number(figures["correlation"]["median"]) for figures in (one, one["chance"])]
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
            cosines = [_number(cosine) for cosine in (one.cosine_a, one.cosine_b) if cosine is not None]
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


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


command = click.Command(
    "match",
    params=[
        click.Argument(["crosscoders"], nargs=-1, metavar="CROSSCODER CROSSCODER..."),
        *(option for option in settings_options(MatchSettings) if option.name != "crosscoders"),
        click.Option(["--exclusive"], type=click.Choice(["A", "B", "shared"]), help="List this part.  [default: all]"),
        click.Option(["--top"], type=int, default=20, show_default=True, help="Features listed of each part."),
        *produce_options(),
    ],
    callback=click.pass_context(_match),
    help="Which features of the first crosscoder come back in the others: other seeds, sizes, partitions.\n\n"
    "Features are compared by the correlation of their activations on the same pairs, beside what permuted pairs give.",
    epilog=examples(
        "modeldiff features match crosscoder:1 crosscoder:2 crosscoder:3",
        "modeldiff features match crosscoder:1 crosscoder:2 --exclusive A --top 10",
        "modeldiff features match seed-0 seed-1 --all-features --json",
    ),
)
