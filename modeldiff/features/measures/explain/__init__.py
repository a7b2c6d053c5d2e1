"""What features respond to, in words; with a judge, how well its explanation detects them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from modeldiff.console import wrapped
from modeldiff.errors import InputError
from modeldiff.features.measures.measure import About, Measure
from modeldiff.judge.settings import JudgeSettings
from modeldiff.records import to_json
from modeldiff.settings import OnDevice, setting, settings

if TYPE_CHECKING:
    from modeldiff.catalogue.table import FeatureRow
    from modeldiff.workspace import Artifact


@settings
class ExplainSettings(JudgeSettings, OnDevice):
    """Which features are explained, from which pairs, and by whom."""

    feature: tuple[int, ...] = setting(default=())
    """Numbers of the features. Default: the first --top of the list."""

    exclusive: Literal["A", "B"] | None = setting(default=None)
    """Explain the first features of this model alone, in the order of evidence. Default: those of A and those of B."""

    shared: bool = setting(default=False)
    """Explain the first shared features instead."""

    top: int = setting(default=20, least=1)
    """How many features of each part."""

    # A reference is only a way to say which artifact: its digest decides whether the result is the same.
    features: str | None = setting(default=None, result=False)
    """The features artifact that the numbers refer to. Default: the latest."""

    pairs: int = setting(default=200_000, least=100)
    """Look at about this many pairs, in whole texts spread evenly over the activations."""

    texts: int = setting(default=10, least=3)
    """Held-out texts on which a feature is active, and as many on which it is not, for a judge to detect it on."""

    seed: int = setting(default=0, least=0)
    """Which half of the documents describes and which is held out, which texts and which features for comparison."""

    judge: Literal["none", "local", "openai"] = setting(default="none")
    """Who explains in words: none leaves it at the description from the texts; local is a chat model on this machine;
    openai is any OpenAI-compatible endpoint."""

    detection_null: bool = setting(default=False)
    """Let the judge also detect each feature with the explanation of another one: what chance gives. One more call per
    feature."""

    def check(self) -> None:
        super().check()
        if self.feature and (self.exclusive is not None or self.shared):
            raise InputError("--feature names the features: leave out --exclusive and --shared")
        if self.shared and self.exclusive is not None:
            raise InputError("--shared names the shared features: leave out --exclusive")


class ExplainMeasure(Measure):
    settings = ExplainSettings
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

    def data(self, artifact: Artifact, **_shown: Any) -> dict[str, Any]:
        from modeldiff.features.measures.explain.result import read_explanation_info

        return read_explanation_info(artifact)

    def show(self, artifact: Artifact, **_shown: Any) -> None:
        from modeldiff.features.measures.explain.result import print_explanations

        print_explanations(artifact)

    def arguments(self, about: About) -> str:
        return f"--features {about.features}"

    def of_feature(self, artifact: Artifact, row: FeatureRow) -> dict[str, Any]:
        from modeldiff.features.measures.explain.result import read_explanations

        found = read_explanations(artifact).get(row.id)
        return {} if found is None else {**to_json(found), "text": found.text}

    def lines(self, found: dict[str, Any]) -> list[str]:
        flag = " [concerning]" if found["concerning"] else ""
        return wrapped(f"explained     {found['text']}{flag} ({found['ref']})")


MEASURE = ExplainMeasure()
