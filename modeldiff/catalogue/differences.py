"""The list of a contrast, for Python and notebooks: in the words that the terminal prints."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from modeldiff import notebook
from modeldiff.catalogue import wording
from modeldiff.catalogue.contrast import read_contrast
from modeldiff.console import visible
from modeldiff.notebook import escaped
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Difference:
    """One entry. Rates are of the places of the documents that verify, half of which are where the models diverge."""

    rank: int
    verified: bool
    """Whether it held on the documents that did not discover it."""
    where: str
    """In words."""
    kind: str
    """Of its context: word, feature, source or everywhere."""
    a_says: list[str]
    """Words that A says more than B there, more so than elsewhere; the largest difference first."""
    b_says: list[str]
    side: str
    """The model that says its words more often: A or B."""
    rate_a: float
    """How often A says any word of `side`'s there; likewise the next three."""
    rate_b: float
    rate_a_elsewhere: float
    rate_b_elsewhere: float
    effect: float
    """How much more often `side` says any of them than the other, there or there more than elsewhere, the lesser."""
    low: float
    """95 % interval of the effect."""
    high: float
    p: float
    places: int
    documents: int
    feature: int | None
    """The feature that it is about."""
    represented: str | None
    """In words: in which model that feature is. None: no feature, or not measured."""
    cause: str | None
    """In words: what happens without the feature. None: not tried."""
    entry: dict[str, Any] = field(repr=False)
    """All of it, as contrast.json has it: texts with what both models said, rates of each word, sources, ..."""

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Difference:
        """By an entry of contrast.json."""
        same = {one.name: entry[one.name] for one in fields(cls) if one.name in _SAME}
        says = {f"{side}_says": [row["word"] for row in entry[f"{side}_says"]] for side in SIDES}
        rates = {f"rate_{name}": rate for name, rate in entry["any_word"].items()}
        represented, cause = entry["represented"], entry["cause"]
        return cls(
            **same | says | rates,
            where=wording.where(entry),
            kind=entry["context"]["kind"],
            represented=represented and wording.represented(represented),
            cause=cause and wording.cause(cause),
            entry=entry,
        )

    def _repr_html_(self) -> str:
        """What notebooks show, with the texts."""
        texts = [
            [f"…{text['before']}", *(f"{side.upper()}: {text[side]}" for side in SIDES)] for text in self.entry["texts"]
        ]
        parts = [self._summary(), *("<br>".join(map(escaped, lines)) for lines in texts)]
        return notebook.shown(*(f"<p>{part}</p>" for part in parts))

    def _summary(self) -> str:
        mark = "" if self.verified else " (did not hold on the other documents)"
        lines = [f"<b>{escaped(self.where)}</b>{mark}"]
        says = {side: self.entry[f"{side}_says"] for side in SIDES}
        lines += [
            f"{side.upper()} says {escaped(', '.join(wording.said(row, side) for row in rows))}"
            for side, rows in says.items()
            if rows
        ]
        lines.append(escaped(wording.any_word(self.entry)))
        if self.represented:
            lines.append(escaped(f"feature {self.feature}: {self.represented}"))
        if self.cause:
            lines.append(escaped(self.cause))
        return "<br>".join(lines)


_SAME = ("rank", "verified", "side", "effect", "low", "high", "p", "places", "documents", "feature")


class Differences(list[Difference]):
    """The differences of a `contrast` artifact that held, in order.

    Attributes:
        ref: of the artifact.
        verdict: what was found, at which false discovery rate, and what chance gives, in a sentence.
        not_verified: the candidates that did not hold.
        found: content of contrast.json (contrast/run.py says what it holds).

    Raises as `read_contrast`.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.ref, self.found = artifact.ref, read_contrast(artifact)
        super().__init__(map(Difference.of, self.found["differences"]))
        self.not_verified = [Difference.of(entry) for entry in self.found["not_verified"]]
        self.verdict = wording.verdict(self.found)

    def frame(self) -> pandas.DataFrame:
        """One row per difference: the fields of Difference but `entry`, words joined. Raises MachineError: pandas is
        not installed."""
        rows = [{**vars(one), "a_says": ", ".join(one.a_says), "b_says": ", ".join(one.b_says)} for one in self]
        columns = {one.name: one.type for one in fields(Difference) if one.name != "entry"}
        return notebook.frame(rows, columns, "the list itself")

    def __repr__(self) -> str:
        lines = [f"{self.ref}: {self.verdict}", *(f"{one.rank}. {one.where}" for one in self)]
        return "\n".join(map(visible, lines))

    def _repr_html_(self) -> str:
        """What notebooks show."""
        entries = "".join(f'<li value="{one.rank}"><p>{one._summary()}</p></li>' for one in self)
        return notebook.shown(f"<p>{escaped(f'{self.ref}: {self.verdict}')}</p><ol>{entries}</ol>")
