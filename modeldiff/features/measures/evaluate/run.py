"""The evaluation: what a model loses when the crosscoder's reconstruction takes the place of its activations.

The metric that the paper does not report (B.1 gives the variance explained only).

Layout (normative; W windows, variants and scopes as named in evaluation.json):
    evaluation.json          what was measured, and the figures of both sides (see `side_figures`)
    losses_a.safetensors,    loss, kl (W, variants, scopes) float64: sums over the predictions of each window, in nats;
    losses_b.safetensors     positions (W, scopes) int64: number of predictions; stored_gap ()
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from modeldiff.errors import InputError
from modeldiff.features.measures.evaluate import EvaluateSettings
from modeldiff.features.measures.models import Models
from modeldiff.features.splice import SCOPES, VARIANTS, Losses, measure
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce

SCHEMA = 1
FORMAT = 1
EVALUATION_NAME = "evaluation.json"


def run(settings: EvaluateSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Measure both models' losses with the crosscoder in the place of their activations, one model in memory at a time.

    Raises:
        InputError: there is no such crosscoder, its activations are gone or have no texts, a model is not known, or it
            is not the one that was harvested.
        DamagedError: a file of the inputs is damaged.
        MachineError: a batch does not fit into memory.
    """
    models = Models.find(settings, workspace, "evaluation")

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(models.device), dtype=models.resolved["dtype"])
        return _build(models, settings.batch_tokens, work)

    order = Order("evaluate", settings, models.inputs, SCHEMA, models.resolved)
    return produce(workspace, order, build, name=name, force=force)


def _build(models: Models, batch_tokens: int | None, work: Work) -> dict[str, Any]:
    means, kept = models.inliers
    if not kept:
        raise InputError("no pair is left to replace: raise --outlier-factor, or use 0 to replace all pairs")
    sides = {}
    for side, target in models.targets.items():
        file = f"losses_{side}.safetensors"
        if not work.has(file):
            lm, gap = models.open(side)
            losses = measure(lm, target.layer, side, models.encoder, models.windows, means[side], batch_tokens)
            work.write_bytes(file, save({**dataclasses.asdict(losses), "stored_gap": np.array(gap)}))
            del lm  # one model in memory at a time
        arrays = load_file(work.folder / file)
        gap = float(arrays.pop("stored_gap"))
        sides[side] = {
            "model": target.ref.name, "layer": target.layer, "stored_gap": gap, **side_figures(Losses(**arrays)),
        }  # fmt: skip
    pairs = sum(len(window.rows) for window in models.windows)
    counts = {"pairs": pairs, "outliers": pairs - kept, "windows": len(models.windows)}
    work.write_json(
        EVALUATION_NAME,
        {"format": FORMAT, **models.named, **counts, "variants": VARIANTS, "scopes": SCOPES, "sides": sides},
    )
    at_replaced = {side: figures["replaced"] for side, figures in sides.items()}
    return counts | {
        side: {"loss_recovered": one["loss_recovered"]["crosscoder"], "kl": one["losses"]["crosscoder"]["kl"]}
        for side, one in at_replaced.items()
    }


def side_figures(losses: Losses) -> dict[str, Any]:
    """One side's figures from the sums of each window.

    Returns:
        positions: number of predictions by scope; share_replaced: of them made from a replaced token; by scope (all,
        replaced) the `losses` of each variant: `loss` (nats per token), `increase` over the clean loss and
        `kl` (nats per token), both with a standard error over windows; `loss_recovered` of the two reconstructions
        against `zero` and `mean`: (L_ablated - L_reconstructed) / (L_ablated - L_clean), null where the ablation does
        not raise the loss; `exclusive`: by how much the loss is higher without the exclusive features, and its error.
    """
    positions = losses.positions.sum(axis=0)
    if not positions.all():
        raise InputError("no replaced token has a next one to predict: measure on more --pairs")
    return {
        "positions": {scope: int(count) for scope, count in zip(SCOPES, positions, strict=True)},
        "share_replaced": float(positions[SCOPES.index("replaced")] / positions[SCOPES.index("all")]),
        **{scope: _scope_figures(losses, number) for number, scope in enumerate(SCOPES)},
    }


def _scope_figures(losses: Losses, scope: int) -> dict[str, Any]:
    count_W = losses.positions[:, scope]
    loss_W = {variant: losses.loss[:, number, scope] for number, variant in enumerate(VARIANTS)}
    mean = {variant: mean_and_error(sum_W, count_W)[0] for variant, sum_W in loss_W.items()}
    rows = {}
    for number, variant in enumerate(VARIANTS):
        increase, increase_error = mean_and_error(loss_W[variant] - loss_W["clean"], count_W)
        kl, kl_error = mean_and_error(losses.kl[:, number, scope], count_W)
        rows[variant] = {
            "loss": mean[variant],
            "increase": increase,
            "increase_error": increase_error,
            "kl": max(0.0, kl),  # float32 rounds a KL of nothing to either side
            "kl_error": kl_error,
        }
    exclusive, error = mean_and_error(loss_W["shared_only"] - loss_W["crosscoder"], count_W)
    return {
        "losses": rows,
        "loss_recovered": {
            variant: {base: loss_recovered(mean[variant], mean[base], mean["clean"]) for base in ("zero", "mean")}
            for variant in ("crosscoder", "shared_only")
        },
        "exclusive": {"increase": exclusive, "error": error},
    }


def loss_recovered(loss: float, ablated: float, clean: float) -> float | None:
    """(ablated - loss) / (ablated - clean): 1 for the model's own loss, 0 for the ablated one; None where ablating
    does not raise the loss."""
    return (ablated - loss) / (ablated - clean) if ablated > clean else None


def mean_and_error(sum_W: NDArray[np.float64], count_W: NDArray[np.int64]) -> tuple[float, float | None]:
    """(mean per prediction, its standard error) from the sums and numbers of predictions of W windows.

    The windows are what is independent, not the tokens within one: the error of a ratio of sums over clusters. None
    for a single window.
    """
    total, windows = int(count_W.sum()), len(sum_W)
    mean = float(sum_W.sum()) / total
    if windows < 2:
        return mean, None
    deviation_W = sum_W - mean * count_W
    return mean, float(np.sqrt(windows / (windows - 1) * np.square(deviation_W).sum()) / total)
