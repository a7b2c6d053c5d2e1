"""What features respond to, in words; with a judge, how well its explanation detects them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.features.measures.explain.settings import KIND, ExplainSettings
from modeldiff.features.measures.measure import About, Measure
from modeldiff.format import wrapped
from modeldiff.records import to_json

if TYPE_CHECKING:
    from modeldiff.features.table import FeatureRow
    from modeldiff.workspace import Artifact


class ExplainMeasure(Measure):
    """See the stage."""

    name = KIND
    settings = ExplainSettings
    stage = "modeldiff.features.measures.explain.run"
    made_from = {"features": "features"}  # noqa: RUF012
    summary = "What features respond to, in words; with a judge, detection."
    about = (
        "Features -> explain: the words and sources a feature fires on, held against chance.\n\n"
        "With --judge also an explanation in words, a flag for what is concerning, and the judge's own detection."
    )
    examples = (
        "",
        "--feature 1011 17 --json",
        "--exclusive A --top 40",
        "--judge openai --judge-model NAME --judge-base-url http://localhost:8000/v1",
        "--judge local --judge-model ~/models/chat --detection-null",
    )

    def data(self, artifact: Artifact, **shown: Any) -> dict[str, Any]:  # noqa: ARG002
        """Everything."""
        from modeldiff.features.measures.explain.result import read_explanation_info

        return read_explanation_info(artifact)

    def show(self, artifact: Artifact, **shown: Any) -> None:  # noqa: ARG002
        """The features with their words."""
        from modeldiff.features.measures.explain.result import print_explanations

        print_explanations(artifact)

    def arguments(self, about: About) -> str:
        """Of the command that explains these features."""
        return f"--features {about.features}"

    def of_feature(self, artifact: Artifact, row: FeatureRow) -> dict[str, Any]:
        """The explanation, if it is about this feature."""
        from modeldiff.features.measures.explain.result import read_explanations

        found = read_explanations(artifact).get(row.id)
        return {} if found is None else {**to_json(found), "text": found.text}

    def lines(self, found: dict[str, Any]) -> list[str]:
        """What it responds to."""
        flag = " [concerning]" if found["concerning"] else ""
        return wrapped(f"explained     {found['text']}{flag} ({found['ref']})")


MEASURE = ExplainMeasure()
