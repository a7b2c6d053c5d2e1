"""How explanations are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.format import console

if TYPE_CHECKING:
    from rich.text import Text

    from modeldiff.features.measures.explain.stored import Explained

_NAMES = 3


def print_explanations(ref: str, info: dict[str, Any], explained: list[Explained]) -> None:
    """The features in 80 columns: how well they are detected, then what they respond to."""
    from rich.table import Table
    from rich.text import Text

    judge = info["judge"]
    by = f"by {judge}" if judge else "from the texts, no judge"
    title = f"{ref}: {len(explained)} features of {info['features']}, {by}"
    listing = Table(title=Text(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in ("id", "told", "flag") if judge else ("id",):
        listing.add_column(column, justify="right", no_wrap=True)
    listing.add_column("what it fires on (lift)", ratio=1)
    for one in explained:
        cells = [_told(one.judge.detection, one.judge.null), _flag(one)] if one.judge is not None else []
        listing.add_row(f"{one.id} {one.partition[0]}", *cells, words_of(one))
    console().print(listing)
    _print_notes(info, explained)


def words_of(one: Explained) -> Text:
    """What a feature responds to, the most telling evidence first; what the texts hold is text, never markup."""
    from rich.text import Text

    lines: list[str] = []
    if one.judge is not None:
        lines.append(one.judge.explanation or f"no explanation: {one.judge.missing}")
    described = one.description
    if described.missing:
        lines.append(described.missing)
    else:
        lines += described.lines(_NAMES, chance=True)
    return Text("\n".join(lines))


def _told(share: float | None, null: float | None) -> str:
    """A share told right, with what chance gives in brackets."""
    if share is None:
        return "-"
    return f"{share:.2f}" if null is None else f"{share:.2f} ({null:.2f})"


def _flag(one: Explained) -> str:
    return {True: "YES", False: "no", None: "-"}[one.concerning]


def _print_notes(info: dict[str, Any], explained: list[Explained]) -> None:
    from modeldiff.features.measures.explain.describe import CONTEXT
    from modeldiff.features.measures.explain.judged import INTERPRETABLE
    from modeldiff.features.measures.explain.lift import SHIFTS

    click.echo(
        f"{info['pairs']:,} pairs ({info['outliers']:,} outliers) in {info['documents']:,} documents of "
        f"{info['activations']};\n{info['held_out_documents']:,} of them are held out."
    )
    click.echo("lift: share of the activation there / share of the pairs there; only what beats")
    click.echo(f"(in brackets) the highest of {SHIFTS} times with activations moved along the texts.")
    click.echo(f"after: among the {CONTEXT} words before.")
    if info["judge"]:
        said = [one.judge for one in explained if one.judge is not None]
        tried = [one.detection for one in said if one.detection is not None]
        click.echo(
            "told: share of active and inactive held-out texts told right by its explanation;\n"
            f"{sum(one >= INTERPRETABLE for one in tried)} of {len(tried)} interpretable (at least {INTERPRETABLE:g})."
        )
        _print_flagged(explained)
    if explained:
        click.echo(f"next: modeldiff features show {explained[0].id}")


def _print_flagged(explained: list[Explained]) -> None:
    from rich.text import Text

    for one in explained:
        if one.concerning and one.judge is not None:
            console().print(Text(f"flagged {one.id}: {one.judge.reason}"))
        elif one.judge is not None and one.judge.missing:
            console().print(Text(f"missing {one.id}: {one.judge.missing}"))
        elif one.judge is not None and one.judge.detection is None:
            console().print(Text(f"not detected {one.id}: {one.judge.detection_missing}"))
