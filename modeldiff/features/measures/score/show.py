"""How scores are printed."""

from __future__ import annotations

from typing import Any

import click

from modeldiff.format import fixed, table

_GROUPS = {"A": "A-exclusive", "B": "B-exclusive", "shared": "shared", "random": "random"}
_COLUMNS = ("n", "not st.", "missing", "25 %", "median", "75 %", "≥ 4")


def print_groups(ref: str, score: dict[str, Any]) -> None:
    """The distribution of the scores in each group, the controls among them."""
    table(
        f"{ref} of {score['features']} by {score['judge_name']}",
        [("group", "left"), *((name, "right") for name in _COLUMNS)],
        [_group(group) for group in score["groups"]],
    )
    click.echo("score: 5 does not carry over to the other model, 1 does.")
    r2 = " and ".join(
        f"{'-' if score['stitch_r2'][way] is None else format(score['stitch_r2'][way], '.2f')} {title}"
        for way, title in (("a_to_b", "A -> B"), ("b_to_a", "B -> A"))
    )
    click.echo(f"{score['stitch']}: R² {r2} on held-out pairs.")
    click.echo("What the stitch loses raises scores: compare a group with shared, not with 1.")
    click.echo(f"not st.: rated below {score['min_steerability']:g} on its own model (features: no score).")
    click.echo(f"The {len(score['prompts'])} prompts' ratings are joined by their {score['aggregate']}.")
    click.echo("random: random directions of the features' usual norm, scored steerable or not.")
    click.echo("")


def _group(group: dict[str, Any]) -> list[str]:
    return [
        f"{_GROUPS[group['partition']]} {_route(group['source'])}",
        f"{group['n']:,}",
        f"{group['not_steerable']:,}",
        f"{group['missing']:,}",
        *(fixed(group[key]) for key in ("quartile_1", "median", "quartile_3")),
        "-" if group["share_high"] is None else f"{group['share_high']:.0%}",
    ]


def print_rows(score: dict[str, Any], top: int) -> None:
    """The features of the highest score."""
    rows = [row for row in score["rows"] if row["partition"] != "random" and row["score"] is not None]
    rows.sort(key=lambda row: (-row["score"], row["number"]))
    if not rows:
        click.echo("no feature has a score")
        return
    table(
        f"the {min(top, len(rows))} highest of {len(rows)}",
        [
            ("id", "right"),
            ("group", "left"),
            ("score", "right"),
            ("steer", "right"),
            ("R²", "right"),
            ("by prompt", "left"),
        ],
        [_row(row) for row in rows[:top]],
    )
    click.echo("R²: of the stitch on held-out pairs on which the feature is active.")
    click.echo("A high score: no counterpart was found by this stitch, not that there is none.")


def _row(row: dict[str, Any]) -> list[str]:
    steerability = row["steerability"]
    return [
        str(row["number"]),
        f"{row['partition']} {_route(row['source'])}",
        fixed(row["score"]),
        "-" if steerability is None else f"{steerability:.1f}",
        fixed(row["stitch_r2"]),
        " ".join(_by_prompt(one["similarity"]) for one in row["details"]["prompts"]),
    ]


def _by_prompt(similarity: int | None) -> str:
    return "-" if similarity is None else str(6 - similarity)


def _route(source: str) -> str:
    return f"{source} -> {'B' if source == 'A' else 'A'}"
