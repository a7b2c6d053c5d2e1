"""What an `explanation` artifact says about each feature, and reading it: for later commands and for Python.

explanation.json (normative):
    format, features, crosscoder, activations     what was explained
    pairs, describing_pairs, outliers             of the sample; the half that describes; left out for their norm
    documents, held_out_documents                 of the sample; those of them that describe nothing
    judge                                         name of the judge; null without one
    explained                                     one object per feature, in the order asked for: `Explained`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modeldiff.features.measures.explain.describe import Description
from modeldiff.features.measures.explain.judged import Verdict
from modeldiff.features.stored import read_info
from modeldiff.records import from_json, to_json
from modeldiff.workspace import Artifact

EXPLANATION_NAME = "explanation.json"
FORMAT = 2
_FIELDS = {
    "format", "features", "crosscoder", "activations", "pairs", "describing_pairs", "outliers", "documents",
    "held_out_documents", "judge", "explained",
}  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """A held-out text."""

    document: int
    source: str
    activation: float
    """The feature's highest in it."""
    text: str


@dataclass(frozen=True)
class Explained:
    """One feature."""

    id: int
    partition: str
    description: Description
    """From the texts, without a judge."""
    texts: list[HeldOut]
    judge: Verdict | None
    """None: no judge was asked."""

    @property
    def text(self) -> str:
        """What it responds to: in the judge's words where there are any, else from the texts."""
        if self.judge is not None and self.judge.explanation is not None:
            return self.judge.explanation
        return self.description.text

    @property
    def concerning(self) -> bool | None:
        """The judge's flag; None: no judge has answered."""
        return self.judge.concerning if self.judge is not None else None

    def to_json(self) -> dict[str, Any]:
        return {**to_json(self), "description": self.description.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> Explained:
        """The inverse of `to_json`.

        Raises:
            DamagedError: a field is missing, unknown or of the wrong type.
        """
        known = isinstance(data, dict) and isinstance(data.get("description"), dict)
        return from_json(
            cls, {**data, "description": Description.from_json(data["description"], where)} if known else data, where
        )


def read_explanation_info(artifact: Artifact) -> dict[str, Any]:
    """explanation.json, checked.

    Raises:
        DamagedError: the file is missing, damaged, or has other fields.
        InputError: written by a newer or by an older modeldiff.
    """
    return read_info(
        artifact, EXPLANATION_NAME, version=FORMAT, fields=_FIELDS, again="modeldiff features explain --force"
    )


def read_explanations(artifact: Artifact) -> dict[int, Explained]:
    """The features of an `explanation` artifact, by number, in the order in which they were asked for.

    Raises:
        DamagedError, InputError: as `read_explanation_info`.
    """
    info = read_explanation_info(artifact)
    where = f"{artifact.file(EXPLANATION_NAME)}, 'explained'"
    found = [Explained.from_json(one, where) for one in info["explained"]]
    return {one.id: one for one in found}
