"""The models' own losses with the crosscoder in the place of their activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.console import echo
from modeldiff.features.measures.measure import Measure, OnModels
from modeldiff.format import percent, table
from modeldiff.settings import settings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


@settings
class EvaluateSettings(OnModels):
    """Which crosscoder is put in the place of which activations, and on how many pairs."""


class EvaluateMeasure(Measure):
    settings = EvaluateSettings
    rehearsed, grows = 2_000, ("evaluate",)
    summary = "The models' losses with the reconstruction in place."
    about = (
        "Crosscoder + activations + models -> evaluate: each model's next-token loss, and the KL to the unchanged "
        "model, with its activations replaced by the reconstruction, against zero and mean ablation.\n\n"
        "Only tokens at which a pair was taken are replaced, and no outliers; all else stays the model's own."
    )
    examples = ("", "--crosscoder 2 --pairs 50000 --json", "--model-path-a ~/models/a --model-path-b ~/models/b")

    def data(self, artifact: Artifact, **_shown: Any) -> dict[str, Any]:
        from modeldiff.workspace.files import read_json

        return {"evaluation": read_json(artifact.file("evaluation.json"))}

    def show(self, artifact: Artifact, **_shown: Any) -> None:
        evaluation = self.data(artifact)["evaluation"]
        for side, figures in evaluation["sides"].items():
            columns = ("loss", "KL", "vs zero", "vs mean", "all: loss", "KL")
            table(
                f"{artifact.ref}: model {side.upper()} with {evaluation['crosscoder']} after block {figures['layer']}",
                [("at pairs", "left"), *((column, "right") for column in columns)],
                [_row(variant, figures) for variant in evaluation["variants"]],
            )
            exclusive = figures["replaced"]["exclusive"]
            error = "" if exclusive["error"] is None else f" ± {exclusive['error']:.4f}"
            echo(
                f"without the exclusive features: loss {exclusive['increase']:+.4f}{error} nats (standard error)",
                f"{figures['share_replaced']:.0%} of {figures['positions']['all']:,} predictions are made from a "
                "replaced token; the stored activations",
                f"differ from the model's by {figures['stored_gap']:.1%} of their spread",
                "",
            )
        echo(
            f"{evaluation['pairs']:,} pairs in {evaluation['windows']:,} windows of {evaluation['activations']}; "
            f"{evaluation['outliers']:,} outliers are not replaced.",
            "loss, KL(unchanged || replaced): nats per next token, at the pairs and at all.",
            "vs: share of the loss recovered, (L_ablated - L) / (L_ablated - L_unchanged).",
        )


def _row(variant: str, figures: dict[str, Any]) -> list[str]:
    names = {"clean": "unchanged", "stored": "stored activation", "shared_only": "shared only"}
    at_pairs, everywhere = (figures[scope]["losses"][variant] for scope in ("replaced", "all"))
    recovered = figures["replaced"]["loss_recovered"].get(variant, {})
    return [
        names.get(variant, variant),
        f"{at_pairs['loss']:.4f}",
        f"{at_pairs['kl']:.4f}",
        *(percent(recovered[base], 1) if base in recovered else "" for base in ("zero", "mean")),
        f"{everywhere['loss']:.4f}",
        f"{everywhere['kl']:.4f}",
    ]


MEASURE = EvaluateMeasure()
