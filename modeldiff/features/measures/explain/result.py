"""An `explain` artifact: what it says about each feature, reading it back, and printing it.

Layout (normative):
    explanation.json
        format
        features, crosscoder, activations    what was explained
        pairs, outliers                      of the sample; left out of it for their norm
        documents, held_out_documents        of the sample; those of them that describe nothing
        judge                                name of the judge; null without one
        explained[]                          a feature each, in the order asked for: fields of `Explained`
            description                      fields of `Description` (features/measures/explain/describe.py)
            texts[]                          fields of `HeldOut`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modeldiff.catalogue.stored import read_info
from modeldiff.console import echo
from modeldiff.features.measures.explain.describe import CONTEXT, SHIFTS, Description
from modeldiff.format import Columns, fixed, table
from modeldiff.records import from_json
from modeldiff.workspace import Artifact

EXPLANATION_NAME = "explanation.json"
FORMAT = 3
INTERPRETABLE = 0.8
"""From this share told right on a feature counts as interpretable (paper B.4.4)."""


@dataclass(frozen=True)
class HeldOut:
    document: int
    activation: float
    """The feature's highest in it."""
    text: str


@dataclass(frozen=True)
class Explained:
    """One feature. What a judge says is None where it is missing, and where none was asked."""

    id: int
    partition: str
    description: Description
    """From the texts, without a judge."""
    texts: list[HeldOut]
    """Active and inactive ones mixed, as a judge is shown them; empty: there are too few."""
    explanation: str | None = None
    """What it responds to, in the judge's words."""
    concerning: bool | None = None
    """Whether a person should look at what it responds to."""
    reason: str | None = None
    """Why it is concerning, or not."""
    detection: float | None = None
    """Share of the texts told right with the explanation."""
    null: float | None = None
    """Share of them told right with the explanation of another feature, when asked for."""
    missing: str | None = None
    """Why there is no explanation, or no detection by it."""

    @property
    def text(self) -> str:
        """What it responds to: in the judge's words where there are any, else from the texts."""
        return self.explanation or self.description.text


def read_explanation_info(artifact: Artifact) -> dict[str, Any]:
    """explanation.json. Raises as `read_info`."""
    return read_info(artifact, EXPLANATION_NAME, version=FORMAT, again="modeldiff features explain --force")


def read_explanations(artifact: Artifact) -> dict[int, Explained]:
    """The features of an `explain` artifact, by number, in the order in which they were asked for. Raises as
    `read_info`."""
    where = f"{artifact.file(EXPLANATION_NAME)}, 'explained'"
    found = [from_json(Explained, one, where) for one in read_explanation_info(artifact)["explained"]]
    return {one.id: one for one in found}


def print_explanations(artifact: Artifact) -> None:
    """The features in 80 columns: how well they are detected, then what they respond to."""
    info, explained = read_explanation_info(artifact), list(read_explanations(artifact).values())
    judge = info["judge"]
    detected: Columns = [("detected", "right")] if judge else []
    by = f"by {judge}" if judge else "from the texts, no judge"
    table(
        f"{artifact.ref}: {len(explained)} features of {info['features']}, {by}",
        [("id", "right"), *detected, ("what it fires on (lift)", "left")],
        [[f"{one.id} {one.partition[0]}", *([_detected(one)] if judge else []), _lines(one)] for one in explained],
    )
    echo(
        f"{info['pairs']:,} pairs ({info['outliers']:,} outliers) in {info['documents']:,} documents of "
        f"{info['activations']};",
        f"{info['held_out_documents']:,} of them are held out.",
    )
    echo("lift: share of the activation there / share of the pairs there; only what beats")
    echo(f"(in brackets) the highest of {SHIFTS} times with activations moved along the texts.")
    echo(f"after: among the {CONTEXT} words before.")
    if judge:
        tried = [one.detection for one in explained if one.detection is not None]
        echo("detected: share of held-out texts, half of them active, told right by the words")
        count = sum(share >= INTERPRETABLE for share in tried)
        echo(f"(by another feature's); {count} of {len(tried)} interpretable (at least {INTERPRETABLE:g}).")
    if explained:
        echo(f"next: modeldiff features show {explained[0].id}")


def _detected(one: Explained) -> str:
    return fixed(one.detection) + ("" if one.null is None else f" ({one.null:.2f})")


def _lines(one: Explained) -> str:
    lines = [one.explanation, one.description.text]
    lines += [f"concerning: {one.reason}"] if one.concerning else []
    lines += [f"missing: {one.missing}"] if one.missing else []
    return "\n".join(filter(None, lines))
