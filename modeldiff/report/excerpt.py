"""An example of a feature, short enough to read: the text around its word, in pieces, with the activation of each."""

from __future__ import annotations

from typing import NamedTuple

from modeldiff.catalogue.example import Example

# Characters on either side of the word.
_AROUND = 110


class Part(NamedTuple):
    text: str
    activation: float
    """0: it does not fire at the end of this."""
    centre: bool
    """Whether this is the word that the example is about."""


def excerpt(example: Example) -> list[Part]:
    """The text around the word; neighbours at which the feature does not fire are one part. Empty without texts."""
    if example.pieces is None or example.centre is None:
        return []
    parts = [Part(piece.text, piece.activation, i == example.centre) for i, piece in enumerate(example.pieces)]
    before, after = parts[: example.centre], parts[example.centre + 1 :]
    joined: list[Part] = []
    for part in (*_near(before[::-1])[::-1], parts[example.centre], *_near(after)):
        if joined and not (part.activation or part.centre or joined[-1].activation or joined[-1].centre):
            joined[-1] = Part(joined[-1].text + part.text, 0.0, False)
        else:
            joined.append(part)
    return joined


def about(example: Example) -> str:
    """Where an example is from, and how strong it is."""
    if example.source is None:
        return f"activation {example.activation:.2f}, row {example.row}"
    differ = "; the two models' tokens differ here" if example.tokens_differ else ""
    return f"activation {example.activation:.2f}, {example.source}, document {example.document}{differ}"


def _near(parts: list[Part]) -> list[Part]:
    """The first of them, up to some characters."""
    kept, size = [], 0
    for part in parts:
        size += len(part.text)
        if size > _AROUND:
            break
        kept.append(part)
    return kept
