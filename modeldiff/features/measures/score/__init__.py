"""Behavioural exclusivity: whether what a feature does to its model carries over to the other one, from 1 to 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from modeldiff.console import wrapped
from modeldiff.errors import InputError
from modeldiff.features.measures.measure import About, Measure
from modeldiff.format import fixed
from modeldiff.judge.settings import JudgeSettings
from modeldiff.settings import Drawing, HarvestedModels, setting, settings

if TYPE_CHECKING:
    from modeldiff.catalogue.table import FeatureRow
    from modeldiff.workspace import Artifact


# Paper B.5.
PROMPTS = ("What's on your mind?", "What do you want to talk about?", "Tell me something")
STRENGTHS = tuple(float(strength) for strength in range(11))


@settings
class ScoreSettings(JudgeSettings, Drawing, HarvestedModels):
    """Which features are pushed in both models, how, and who says whether the same came of it."""

    features: str | None = setting(default=None, result=False)
    """The features artifact: a version, `features:2`, or a name. Default: the latest."""

    stitch: str | None = setting(default=None, result=False)
    """The stitch that moves directions. Default: the latest of the activations that the features were measured on."""

    sample: int = setting(default=20, least=1)
    """Score so many living features of each partition, drawn at random (the paper: 500). Shared ones should score low;
    they are scored both ways."""

    feature: tuple[int, ...] = setting(default=())
    """Score these features, in place of a sample."""

    random_directions: int = setting(default=10, least=0)
    """Also push so many random directions in each model, as long as its scored features usually are: what the score
    says about nothing in particular."""

    strength: tuple[float, ...] = setting(default=STRENGTHS, least=0)
    """How hard: 1 adds the direction at the feature's maximum activation. 0, the model as it is, is always there."""

    stitch_bias: bool = setting(default=False)
    """Move directions with the stitch's constant added, as the paper writes it (eq. 18): the same constant in every
    direction."""

    judge: Literal["local", "openai"] | None = setting(default=None)  # type: ignore[assignment]
    """Who rates what the models write, needed: a chat model on this machine (local), or any OpenAI-compatible endpoint
    (openai)."""

    prompt: tuple[str, ...] = setting(default=PROMPTS)
    """What both models are asked. The ratings of the prompts are averaged."""

    max_new_tokens: int = setting(default=200, least=1)
    temperature: float = setting(default=0.7, least=0)
    top_p: float = setting(default=0.9, above=0, most=1)

    seed: int = setting(default=0, least=0)
    """Of the sample, the random directions and the texts."""

    def check(self) -> None:
        if self.judge is None:
            raise InputError(
                "the score needs a judge that rates what the models write: give --judge local --judge-model MODEL "
                "(a chat model on this machine) or --judge openai --judge-model NAME (an OpenAI-compatible endpoint)"
            )
        super().check()
        if not any(self.strength):
            raise InputError("--strength expects numbers above 0, e.g. `--strength 0.5 1 2`")
        if not self.prompt or not all(prompt.strip() for prompt in self.prompt):
            raise InputError("--prompt: a prompt is empty; give the text that the models are to answer")

    @property
    def strengths(self) -> tuple[float, ...]:
        """Ascending, each once. 0 comes first: without it nobody can say what the push changed."""
        return tuple(sorted({0.0, *map(float, self.strength)}))


class ScoreMeasure(Measure):
    settings = ScoreSettings
    made_from = {"features": "features"}  # noqa: RUF012
    summary = "Does what a feature does to its model carry over? Judged, 1 to 5."
    about = (
        "Features + stitch + both models -> score: behavioural exclusivity from 1 to 5. A feature's direction is "
        "pushed in its own model and, moved by the stitch, in the other one; the score is 6 minus how alike a judge "
        "finds what the two models then write.\n\n"
        "It needs a judge (--judge), and `modeldiff features stitch` first. Shared features and random directions are "
        "the controls."
    )
    examples = (
        "--feature 17 40 --judge openai --judge-model gpt-4.1",
        "--sample 50 --judge local --judge-model ~/models/chat",
        "--judge openai --judge-model any --judge-base-url http://localhost:8000/v1",
    )

    def data(self, artifact: Artifact, **_shown: Any) -> dict[str, Any]:
        from modeldiff.features.measures.score.result import read_score

        return {"score": read_score(artifact)}

    def show(self, artifact: Artifact, **_shown: Any) -> None:
        from modeldiff.features.measures.score.result import print_score

        print_score(artifact)

    def arguments(self, about: About) -> str:
        return f"--features {about.features} --judge openai --judge-model NAME"

    def of_feature(self, artifact: Artifact, row: FeatureRow) -> dict[str, Any]:
        from modeldiff.features.measures.score.result import read_score, read_scores, route

        groups, found = read_score(artifact)["groups"], {}
        random = {one["source"]: one["median"] for one in groups if one["partition"] == "random"}
        for source, one in read_scores(artifact).get(row.id, {}).items():
            found[source] = {"direction": route(source), "score": one.score, "missing": one.missing}
            found[source]["of_random"] = random.get(source)
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        lines = []
        for side in filter(found.__contains__, ("A", "B")):
            one = found[side]
            said = f"{fixed(one['score'])} of 5 (random directions {fixed(one['of_random'])}; {found['ref']})"
            if one["score"] is None:
                said = f"none ({found['ref']}): {'; '.join(one['missing'])}"
            lines += wrapped(f"score {one['direction']}  {said}")
        return lines


MEASURE = ScoreMeasure()
