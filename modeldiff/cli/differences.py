"""The list of differences, printed: words first, numbers when asked for; 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modeldiff.catalogue import wording
from modeldiff.console import echo, echo_wrapped
from modeldiff.sides import SIDES

_WIDTH = 80
_EXCERPT = 56


def print_differences(found: dict[str, Any], ref: str, *, numbers: bool, everything: bool) -> None:
    """The list of a contrast (contrast.json), and the sentence that it ends with."""
    shown = found["differences"] + (found["not_verified"] if everything else [])
    for one in shown:
        _print_entry(one, numbers=numbers)
        echo()
    echo_wrapped(wording.verdict(found))
    hidden = 0 if everything else len(found["not_verified"])
    if hidden:
        echo(f"{hidden} more candidates of the first half did not hold on the second: --all shows them.")
    if not numbers and shown:
        echo(f"`modeldiff contrast --show {ref.split(':')[-1]} --numbers` adds rates.")
    name_a, name_b = (str(found["models"][side]).rstrip("/").rsplit("/", 1)[-1] for side in SIDES)
    places = f"{found['places']:,} places in {found['documents']:,} documents"
    _line(f"{ref}: {places}, A {name_a}, B {name_b}", first=0, indent=4)


def difference_rows(found: dict[str, Any], *, everything: bool) -> Iterator[dict[str, Any]]:
    """What `--csv` prints: a row for each entry of the list."""
    for one in found["differences"] + (found["not_verified"] if everything else []):
        represented, together = one["represented"] or {}, (one.get("cause") or {}).get("together") or {}
        yield {
            "rank": one["rank"],
            "verified": one["verified"],
            "where": wording.where(one),
            **{f"{side}_says": ", ".join(row["word"] for row in one[f"{side}_says"]) for side in SIDES},
            **{name: one[name] for name in ("side", "effect", "low", "high", "p")},
            **{f"any_word_{name}": share for name, share in one["any_word"].items()},
            **{name: one[name] for name in ("places", "documents", "feature")},
            "represented": represented.get("where"),
            "cause": together.get("verdict"),
            "gap_closed": (together.get("closed") or {}).get("value"),
        }


def _print_entry(one: dict[str, Any], *, numbers: bool) -> None:
    mark = "" if one["verified"] else "  (did not hold on the other documents)"
    _line(f"{one['rank']:>2}. {wording.where(one)}{mark}", first=0, indent=4)
    for side in SIDES:
        if says := one[f"{side}_says"]:
            _line(f"{side.upper()} says  {', '.join(wording.said(row, side, numbers) for row in says)}", indent=12)
    _line(wording.any_word(one), indent=4)
    for text in one["texts"][: 2 if numbers else 1]:
        _line(f"…{text['before'][-_EXCERPT:]}", indent=4)
        for side in SIDES:
            _line(f"{side.upper()}: {text[side].strip(' ')[:_WIDTH]}", first=6, indent=9)
    if one["represented"]:
        _line(f"feature {one['feature']}: {wording.represented(one['represented'], numbers)}")
    if one.get("cause"):
        _line(wording.cause(one["cause"], numbers))
    if numbers:
        _print_numbers(one)
    _line(f"steer: {wording.steer_command(one)}")


def _print_numbers(one: dict[str, Any]) -> None:
    sources = ", ".join(f"{name} {share:.0%}" for name, share in list(one["sources"].items())[:4])
    _line(f"places {one['places']} in {one['documents']} documents: {sources}")
    _line(f"p {one['p']:.2g}, effect {one['effect']:.1%}, 95 % interval {one['low']:.1%} to {one['high']:.1%}")
    if one["also"]:
        _line(f"says the same: {', '.join(map(wording.context_name, one['also'][:6]))}")


def _line(text: str, *, first: int = 4, indent: int = 6) -> None:
    echo_wrapped(text, first, indent)
