"""The evaluation: what a model loses when the crosscoder's reconstruction takes the place of its activations.

The metric that the paper does not report (B.1 gives the variance explained only). The crosscoder reads pairs, so only
the tokens at which a pair was taken can be replaced, and of those not the outliers that training left out; everything
else in the residual stream stays the model's own.

Layout (normative; losses and KL in nats per token; errors are standard errors over windows, null for one window):
    evaluation.json
        format
        crosscoder, activations     what was evaluated, on what
        outlier_factor, outliers    pairs not replaced: of a norm above so many times the median; number
        pairs, windows              number of pairs, and of texts
        variants, scopes            names, as the arrays have them in order: VARIANTS and SCOPES say what they are
        sides.*                     by side
            model, layer
            stored_gap              from the stored activations to the model's, root mean square, in their spread
            positions               number of predictions, by scope
            share_replaced          of them from a replaced token
            all, replaced           the scopes: `_scope_figures`
                losses.*            by variant: loss, its increase over `clean`, KL(clean || variant)
                    loss, increase, increase_error, kl, kl_error
                loss_recovered.*    by reconstruction: 1 as `clean`, 0 as this base; null: that costs nothing
                    zero, mean
                exclusive           how much higher the loss is without the exclusive features
                    increase, error
    losses_{a,b}.safetensors        sums over the predictions of each window
        loss, kl (W, 6, 2) float64  windows, variants, scopes
        positions (W, 2) int64      number of predictions
        stored_gap () float64
Legend: B windows of a batch, R replaced tokens of a batch, P predictions of a batch, W windows, D width, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from modeldiff.catalogue.stored import Arrays
from modeldiff.console import progress
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder, pieces
from modeldiff.features.measures.evaluate import EvaluateSettings
from modeldiff.features.measures.models import LoadedModel, Models, Window, next_token_losses
from modeldiff.lm.batches import token_budget
from modeldiff.lm.residual import replace_in_residual
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce

SCHEMA = 1
FORMAT = 1
EVALUATION_NAME = "evaluation.json"
# What stands at the replaced places. `stored`: the activation as harvested, which shows what the storage's rounding
# costs; `shared_only`: the reconstruction without the exclusive features.
VARIANTS = ("clean", "stored", "crosscoder", "shared_only", "mean", "zero")
# Where losses are taken: at every prediction, or only at those made from a replaced token.
SCOPES = ("all", "replaced")

# Two sets of a batch's logits are in memory, each of at most 2^28 values (1 GiB in float32).
_LOGIT_VALUES = 1 << 28


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
        work.environment.update(device=str(models.encoder.device), dtype=models.resolved["dtype"])
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
            model = models.open(side)
            losses = measure(model, models.encoder, means[side], batch_tokens)
            work.write_bytes(file, save({**losses, "stored_gap": np.array(model.gap)}))
            del model  # one model in memory at a time
        arrays = load_file(work.folder / file)
        gap = float(arrays.pop("stored_gap"))
        sides[side] = {
            "model": target.ref.name, "layer": target.layer, "stored_gap": gap, **side_figures(arrays),
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


def measure(model: LoadedModel, encoder: Encoder, mean_D: torch.Tensor, batch_tokens: int | None) -> Arrays:
    """The losses of one model on all windows, with every variant: the arrays of losses_a.safetensors but the gap.
    Raises MachineError: a batch does not fit into memory; InputError: a window is too long for the model."""
    budget, windows = batch_tokens or token_budget(model.lm, logit_values=_LOGIT_VALUES), len(model.windows)
    losses: Arrays = {name: np.zeros((windows, len(VARIANTS), len(SCOPES))) for name in ("loss", "kl")}
    losses["positions"] = np.zeros((windows, len(SCOPES)), np.int64)
    with progress(f"evaluate {model.side.upper()}", int(model.first_row[-1]), "pairs") as bar:
        for batch in model.batches(range(windows), budget):
            with model.memory_for(batch):
                for name, sums in _measure_batch(model, encoder, batch, mean_D).items():
                    losses[name][batch] = sums
            bar.advance(sum(len(model.windows[i].rows) for i in batch))
    return losses


@torch.inference_mode()
def _measure_batch(model: LoadedModel, encoder: Encoder, batch: list[int], mean_D: torch.Tensor) -> Arrays:
    """The sums of these windows."""
    lm = model.lm
    ids_BT, mask_BT = model.padded(batch)
    lm.check_length(ids_BT.shape[1])
    windows = [model.windows[i] for i in batch]
    sequence_R, position_R, values = _replacements(model.side, encoder, windows, mean_D)
    is_replaced_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    is_replaced_BT[sequence_R, position_R] = True
    at_P = torch.nonzero(mask_BT[:, 1:], as_tuple=True)
    scopes_SP = torch.stack([torch.ones(len(at_P[0]), dtype=torch.bool), is_replaced_BT[at_P]]).numpy()
    window_P = at_P[0].numpy()

    def per_window(values_P: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B, scopes) sums."""
        sums = [np.bincount(window_P, values_P * inside_P, minlength=len(batch)) for inside_P in scopes_SP]
        return np.stack(sums, axis=1)

    next_P = ids_BT[:, 1:][at_P].to(lm.device)
    at_P = (at_P[0].to(lm.device), at_P[1].to(lm.device))
    clean_BTV = lm.logits(ids_BT, mask_BT)
    found = []
    for variant in VARIANTS:
        logits_BTV = clean_BTV
        if variant != "clean":
            with replace_in_residual(lm, model.layer, sequence_R, position_R, values[variant]):
                logits_BTV = lm.logits(ids_BT, mask_BT)
        found.append([per_window(one_P) for one_P in next_token_losses(logits_BTV, clean_BTV, at_P, next_P)])
    loss, kl = (np.stack(sums, axis=1) for sums in zip(*found, strict=True))
    return {"loss": loss, "kl": kl, "positions": per_window(np.ones(len(window_P)))}


def _replacements(
    side: str, encoder: Encoder, windows: list[Window], mean_D: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(sequence_R, position_R, what to put there (R, D) by variant), raw units, outliers left out."""
    crosscoder, shared = encoder.crosscoder, encoder.crosscoder.slices["shared"]
    sequences, positions = [], []
    parts: dict[str, list[torch.Tensor]] = {"stored": [], "crosscoder": [], "shared_only": []}
    for sequence, window in enumerate(windows):
        for piece in pieces(window.rows, crosscoder.n_features):
            f_BF, kept_B = encoder.dense(piece)
            kept = torch.from_numpy(kept_B)
            f_RF = f_BF[kept.to(f_BF.device)]
            f_shared_RF = torch.zeros_like(f_RF)
            f_shared_RF[:, shared] = f_RF[:, shared]
            parts["stored"].append(encoder.store.read_side(side, piece)[kept].to(f_RF.device))
            parts["crosscoder"].append(crosscoder.decode(f_RF)[SIDES.index(side)])
            parts["shared_only"].append(crosscoder.decode(f_shared_RF)[SIDES.index(side)])
            token_B = torch.from_numpy(window.token[side])[piece.start - window.rows.start :][: len(piece)]
            positions.append(token_B[kept])
            sequences.append(torch.full((int(kept.sum()),), sequence))
    values = {variant: torch.cat(found) for variant, found in parts.items()}
    zero_RD = torch.zeros_like(values["crosscoder"])
    values |= {"mean": zero_RD + mean_D.float().to(zero_RD.device), "zero": zero_RD}
    return torch.cat(sequences), torch.cat(positions), values


def side_figures(losses: Arrays) -> dict[str, Any]:
    """One side's figures from the sums of each window.

    positions: number of predictions by scope; share_replaced: of them made from a replaced token. By scope, `losses` of
    each variant (nats per token, with standard errors over windows), `loss_recovered` of the two reconstructions
    against `zero` and `mean`, and `exclusive`: by how much the loss is higher without the exclusive features.
    """
    positions = losses["positions"].sum(axis=0)
    if not positions.all():
        raise InputError("no replaced token has a next one to predict: measure on more --pairs")
    return {
        "positions": {scope: int(count) for scope, count in zip(SCOPES, positions, strict=True)},
        "share_replaced": float(positions[SCOPES.index("replaced")] / positions[SCOPES.index("all")]),
        **{scope: _scope_figures(losses, number) for number, scope in enumerate(SCOPES)},
    }


def _scope_figures(losses: Arrays, scope: int) -> dict[str, Any]:
    count_W = losses["positions"][:, scope]
    loss_W = {variant: losses["loss"][:, number, scope] for number, variant in enumerate(VARIANTS)}
    mean = {variant: mean_and_error(sum_W, count_W)[0] for variant, sum_W in loss_W.items()}
    rows = {}
    for number, variant in enumerate(VARIANTS):
        increase, increase_error = mean_and_error(loss_W[variant] - loss_W["clean"], count_W)
        kl, kl_error = mean_and_error(losses["kl"][:, number, scope], count_W)
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
