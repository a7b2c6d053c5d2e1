"""The evaluation: what a model loses when the crosscoder's reconstruction takes the place of its activations.

The metric that the paper does not report (B.1 gives the variance explained only). An `evaluation` artifact out of a
crosscoder and the activations, texts and models it was trained on.

Layout (normative; W windows, variants and scopes as named in evaluation.json):
    evaluation.json          what was measured, and the figures of both sides (see `side_figures`)
    losses_a.safetensors,    loss, kl (W, variants, scopes) float64: sums over the predictions of each window, in nats;
    losses_b.safetensors     positions (W, scopes) int64: number of predictions; stored_gap ()
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from modeldiff.console import say
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.inputs import open_measured, outlier_factor_of
from modeldiff.features.measures.evaluate.settings import KIND, EvaluateSettings
from modeldiff.features.splice import SCOPES, VARIANTS, Losses, inlier_means, measure, stored_gap
from modeldiff.features.windows import Window, sample_windows
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.residual import verify_hook
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.files import read_json

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
    measured = open_measured(workspace, settings.crosscoder, settings.activations, what="evaluation")
    crosscoder, store = measured.crosscoder, measured.store
    source, activations, inputs = measured.source, measured.activations, measured.inputs
    targets = measured.models(settings.model_path_a, settings.model_path_b)
    windows = sample_windows(store, settings.pairs)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    outlier_factor = outlier_factor_of(source, settings.outlier_factor)
    for side, target in targets.items():
        inputs[f"model_{side}"] = target.as_input()
        at_harvest = activations.manifest.inputs.get(f"model_{side}")
        if at_harvest is not None and at_harvest.digest != inputs[f"model_{side}"].digest:
            say(
                f"model {side.upper()}: the files of {target.ref.short_name} are not those that were harvested; "
                "going on if its activations are the same"
            )
    encoder = Encoder(crosscoder, store, device, outlier_factor)
    named = {"crosscoder": source.ref, "activations": activations.ref, "outlier_factor": outlier_factor}

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype=str(dtype).removeprefix("torch."))
        return _build(settings, encoder, windows, targets, device, dtype, named, work)

    resolved = {"outlier_factor": outlier_factor, "dtype": str(dtype).removeprefix("torch.")}
    return produce(workspace, Order(KIND, settings, inputs, SCHEMA, resolved), build, name=name, force=force)


def read_evaluation(artifact: Artifact) -> dict[str, Any]:
    """The content of evaluation.json."""
    return read_json(artifact.file(EVALUATION_NAME))


def _build(
    settings: EvaluateSettings,
    encoder: Encoder,
    windows: list[Window],
    targets: dict[str, Harvested],
    device: torch.device,
    dtype: torch.dtype,
    named: dict[str, Any],
    work: Work,
) -> dict[str, Any]:
    pairs = sum(len(window.rows) for window in windows)
    means, kept = inlier_means(encoder, windows)
    if not kept:
        raise InputError("no pair is left to replace: raise --outlier-factor, or use 0 to replace all pairs")
    sides = {}
    for side, target in targets.items():
        file = f"losses_{side}.safetensors"
        if not work.has(file):
            say(f"model {side.upper()}: {target.ref.short_name}, after block {target.layer}, on {device}")
            lm = target.open(device, dtype)
            verify_hook(lm, target.layer)
            gap = stored_gap(lm, target.layer, side, encoder, windows, means[side])
            losses = measure(lm, target.layer, side, encoder, windows, means[side], settings.batch_tokens)
            work.write_bytes(file, save({**dataclasses.asdict(losses), "stored_gap": np.array(gap)}))
            del lm  # one model in memory at a time
        arrays = load_file(work.folder / file)
        measured = Losses(**{one.name: arrays[one.name] for one in dataclasses.fields(Losses)})
        sides[side] = {
            "model": target.ref.name,
            "layer": target.layer,
            "stored_gap": float(arrays["stored_gap"]),
            **side_figures(measured),
        }
    counts = {"pairs": pairs, "outliers": pairs - kept, "windows": len(windows)}
    work.write_json(
        EVALUATION_NAME,
        {"format": FORMAT, **named, **counts, "variants": VARIANTS, "scopes": SCOPES, "sides": sides},
    )
    return {**counts, **{side: _summary(figures) for side, figures in sides.items()}}


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
    loss_WV, kl_WV = losses.loss[:, :, scope], losses.kl[:, :, scope]
    of = {variant: number for number, variant in enumerate(VARIANTS)}
    mean = {variant: mean_and_error(loss_WV[:, number], count_W)[0] for variant, number in of.items()}

    def difference(variant: str, base: str) -> tuple[float, float | None]:
        return mean_and_error(loss_WV[:, of[variant]] - loss_WV[:, of[base]], count_W)

    rows = {}
    for variant, number in of.items():
        increase, kl = difference(variant, "clean"), mean_and_error(kl_WV[:, number], count_W)
        rows[variant] = {
            "loss": mean[variant],
            "increase": increase[0],
            "increase_error": increase[1],
            "kl": max(0.0, kl[0]),  # float32 rounds a KL of nothing to either side
            "kl_error": kl[1],
        }
    exclusive = difference("shared_only", "crosscoder")
    return {
        "losses": rows,
        "loss_recovered": {
            variant: {base: loss_recovered(mean[variant], mean[base], mean["clean"]) for base in ("zero", "mean")}
            for variant in ("crosscoder", "shared_only")
        },
        "exclusive": {"increase": exclusive[0], "error": exclusive[1]},
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


def _summary(figures: dict[str, Any]) -> dict[str, Any]:
    """What the manifest's metrics say about a side: at the replaced tokens."""
    at = figures["replaced"]
    return {
        "share_replaced": figures["share_replaced"],
        "loss_clean": at["losses"]["clean"]["loss"],
        "loss_spliced": at["losses"]["crosscoder"]["loss"],
        "kl_spliced": at["losses"]["crosscoder"]["kl"],
        "loss_recovered": at["loss_recovered"]["crosscoder"],
    }
