"""How `modeldiff features show` prints one feature, in 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.catalogue.facts import facts
from modeldiff.cli.feature_list import PARTITIONS
from modeldiff.console import echo
from modeldiff.features.measures import measures
from modeldiff.format import echo_styled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modeldiff.catalogue.example import Example, Piece
    from modeldiff.catalogue.table import FeatureRow, FeatureTable


def feature_json(row: FeatureRow, *, full: bool) -> dict[str, Any]:
    """What `--json` prints; full: examples with both models' tokens and the activation at each."""
    found = row.to_json()
    for one in [] if full else found["examples"]:
        for name in ("pieces", "centre", "tokens"):
            del one[name]
    return found


def print_feature(
    table: FeatureTable, row: FeatureRow, known: Mapping[str, dict[str, Any] | None] | None = None
) -> None:
    """One feature with everything that is known about it; `known`: what measures say, by name."""
    echo(f"feature {row.id} of {table.artifact.ref} ({table.info['crosscoder']}): {PARTITIONS[row.partition]}")
    for name, fact in facts(table, row).items():
        echo(f"{name:<13} {fact}")
    for measure in measures():
        if found := (known or {}).get(measure.name):
            for line in measure.lines(found):
                echo_styled(line)
    for model in ("A", "B"):
        if row.partition in (model, "shared"):
            echo(f'push it       modeldiff steer --model {model} --feature {row.id} --strength 1 --prompt "..."')
    echo("", f"{len(row.examples)} strongest examples; [word]: fires there, [[word]]: the example itself")
    for number, example in enumerate(row.examples, start=1):
        _print_example(number, example)


def _print_example(number: int, example: Example) -> None:
    where = f"document {example.document}, {example.source}" if example.source is not None else f"row {example.row}"
    where += ", tokens differ" if example.tokens_differ else ""
    echo()
    echo_styled(f"{number}. activation {example.activation:.2f}  ({where})", "bold")
    if example.pieces is None or example.tokens is None:
        return
    echo_styled([
        (f"[[{piece.text}]]", "bold reverse") if index == example.centre
        else (_marked(piece), "bold" if piece.activation > 0 else "")
        for index, piece in enumerate(example.pieces)
    ])  # fmt: skip
    for side, tokens in example.tokens.items():
        firing = [i for i, one in enumerate(tokens) if one.activation > 0]
        centre = max(firing, key=lambda i: (tokens[i].activation == example.activation, -i), default=len(tokens) // 2)
        around = "|".join(map(_marked, tokens[max(0, centre - 6) : centre + 5]))
        echo_styled(f"   {side.upper()}: {around}", "dim")


def _marked(piece: Piece) -> str:
    return f"[{piece.text}]" if piece.activation > 0 else piece.text
