"""One feature, and a list of them, as plain data: for the terminal, JSON, Python and notebooks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from modeldiff import notebook
from modeldiff.catalogue.example import Example
from modeldiff.catalogue.words import WordShare
from modeldiff.format import fixed, percent
from modeldiff.notebook import escaped

if TYPE_CHECKING:
    import pandas

STRONG = 0.7
"""From this correlation on, twins share half of their variance: probably one concept that is there twice."""


@dataclasses.dataclass(frozen=True)
class Twin:
    """A feature of another partition that fires on the same places."""

    id: int
    partition: str
    correlation: float
    strong: bool
    """From a correlation of 0.7 on: probably the same concept twice."""


@dataclasses.dataclass(frozen=True)
class FeatureRow:
    """What is known about one feature. Activations are in normalised feature units."""

    id: int
    partition: str
    """A, shared or B."""
    relative_norm: float
    """Paper eq. 1: 1 only in A's decoder, 0.5 in both alike, 0 only in B's."""
    density: float
    """Share of the pairs on which it fires; 0: dead."""
    firing_count: int
    mean_activation: float
    """Over the pairs where it fires."""
    max_activation: float
    sources: dict[str, float]
    """Share of its activation mass per text source, largest first, zeros left out; empty without texts."""
    twins: list[Twin]
    """Highest correlation first."""
    r2_a: float | None
    """Held-out R² from A's activations; None when not measured or it fires too rarely."""
    r2_b: float | None
    r2_own: float | None
    """From the model that has it; of a shared one the better of the two."""
    r2_other: float | None
    """From the model that lacks it; of a shared one the worse of the two."""
    r2_null: float | None
    """r2_other in permuted pairs: what chance gives."""
    gap: float | None
    """r2_own - r2_other: large when only its own model's activations explain it."""
    evidence: float | None
    """gap x (1 - r2_other / r2_own): what lists are sorted by."""
    verdict: str | None
    """exclusive, undecided, predictable or unknown (verdict.py); a shared feature's as if it belonged to the model
    whose activations explain it better. None when not measured."""
    tokens_differ: float | None
    """Share of its examples at which the two models' tokens begin or end at other characters; None when it has none or
    there are no texts."""
    words: list[WordShare]
    """The most frequent words at which its top examples end; empty without texts."""
    examples: list[Example] = dataclasses.field(repr=False)
    """Strongest first."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def plain(self) -> dict[str, Any]:
        """One value for each column of `FeatureRows.frame`: the numbers; the first twin; the largest source; the words,
        and the strongest example, as text."""
        numbers = {name: value for name, value in vars(self).items() if name not in _NESTED}
        twin, first = next(iter(self.twins), None), next(iter(self.examples), Example(0, 0.0))
        return numbers | {
            "twin": twin and twin.id,
            "twin_correlation": twin and twin.correlation,
            "source": next(iter(self.sources), None),
            "words": ", ".join(one.word for one in self.words),
            "example": first.word and f"{first.before}[{first.word}]{first.after}",
        }

    def _repr_html_(self) -> str:
        """What notebooks show: the row of the table, and the examples below it; bold: it fires there."""
        return notebook.shown(FeatureRows([self])._repr_html_(), *map(_example_html, self.examples))


def _example_html(example: Example) -> str:
    if example.pieces is None:
        return f"<p>row {example.row}: {example.activation:.2f}</p>"
    marked = (
        f"<u><b>{text}</b></u>" if number == example.centre else f"<b>{text}</b>" if piece.activation > 0 else text
        for number, piece in enumerate(example.pieces)
        for text in [escaped(piece.text)]
    )
    return f"<p>{example.activation:.2f} ({escaped(example.source or '')}) {''.join(marked)}</p>"


class FeatureRows(list[FeatureRow]):
    """Features in the order in which they were listed."""

    def frame(self) -> pandas.DataFrame:
        """One row per feature, plain columns: the fields of FeatureRow, but twin, twin_correlation, source, words and
        example (text, [the word] marked) in place of its lists. What was not measured is missing. Raises MachineError:
        pandas is not installed."""
        return notebook.frame([row.plain() for row in self], _COLUMNS, "FeatureTable.rows()")

    def _repr_html_(self) -> str:
        """What notebooks show."""
        rows = [
            {
                "feature": str(row.id),
                "in": row.partition,
                "fires": f"{row.density:.2%}",
                "R² own": fixed(row.r2_own),
                "other": fixed(row.r2_other),
                "verdict": row.verdict or "-",
                "tokens differ": percent(row.tokens_differ),
                "twin": f"{row.twins[0].id} ({row.twins[0].correlation:.2f})" if row.twins else "-",
                "words": ", ".join(one.word for one in row.words),
                "strongest example": _snippet(row.examples),
            }
            for row in self
        ]
        return notebook.shown(notebook.html_table(rows))


def _snippet(examples: list[Example]) -> str:
    if not examples or examples[0].word is None:
        return ""
    before, after = examples[0].before or "", examples[0].after or ""
    return f"…{before[-_AROUND:]}[{examples[0].word}]{after[:_AROUND]}"


_NESTED = ("sources", "twins", "words", "examples")
_COLUMNS = {one.name: one.type for one in dataclasses.fields(FeatureRow) if one.name not in _NESTED}
_COLUMNS |= {"twin": "int | None", "twin_correlation": "float | None", "source": "", "words": "", "example": ""}
# Characters of text on each side of the word in a list.
_AROUND = 30
