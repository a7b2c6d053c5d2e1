"""Behavioural exclusivity: whether what a feature does to its model carries over to the other one, from 1 to 5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.features.measures.measure import About, Measure
from modeldiff.features.measures.score.settings import ScoreSettings
from modeldiff.format import fixed, wrapped

if TYPE_CHECKING:
    from modeldiff.features.table import FeatureRow
    from modeldiff.workspace import Artifact


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
        from modeldiff.features.measures.score.directions import route
        from modeldiff.features.measures.score.result import read_score, read_scores

        groups = read_score(artifact)["groups"]
        random = {one["source"]: one["median"] for one in groups if one["partition"] == "random"}
        return {
            source: {
                "direction": route(source),
                "score": one.score,
                "missing": one.missing,
                "of_random": random.get(source),
            }
            for source, one in read_scores(artifact).get(row.id, {}).items()
        }

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
