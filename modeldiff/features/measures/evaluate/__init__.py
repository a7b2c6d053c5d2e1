"""The models' own losses with the crosscoder in the place of their activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.features.measures.evaluate.settings import KIND, EvaluateSettings
from modeldiff.features.measures.measure import Measure

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


class EvaluateMeasure(Measure):
    """See the stage."""

    name = KIND
    settings = EvaluateSettings
    stage = "modeldiff.features.measures.evaluate.run"
    made_from = {"crosscoder": "crosscoder", "activations": "activations"}  # noqa: RUF012
    summary = "The models' losses with the reconstruction in place."
    about = (
        "Crosscoder + activations + models -> evaluate: each model's next-token loss, and the KL to the unchanged "
        "model, with its activations replaced by the reconstruction, against zero and mean ablation.\n\n"
        "Only tokens at which a pair was taken are replaced, and no outliers; all else stays the model's own."
    )
    examples = ("", "--crosscoder 2 --pairs 50000 --json", "--model-path-a ~/models/a --model-path-b ~/models/b")

    def data(self, artifact: Artifact, **shown: Any) -> dict[str, Any]:  # noqa: ARG002
        """Everything."""
        from modeldiff.features.measures.evaluate.run import read_evaluation

        return {"evaluation": read_evaluation(artifact)}

    def show(self, artifact: Artifact, **shown: Any) -> None:  # noqa: ARG002
        """Each model's losses."""
        from modeldiff.features.measures.evaluate.run import read_evaluation
        from modeldiff.features.measures.evaluate.show import print_evaluation

        print_evaluation(artifact.ref, read_evaluation(artifact))


MEASURE = EvaluateMeasure()
