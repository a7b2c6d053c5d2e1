"""The stitch stage: an activations artifact in, a `stitch` artifact out.

stitch.json (normative; R² is over all dimensions together, null where it has no number):
    format, activations, activations_digest, sides   what was stitched: both models, layers, widths, norms
    outlier_factor, outliers                         pairs left out for their norm
    pairs                                            pairs of each part: fit, choose, report
    stretches                                        rows of the table in maps.safetensors (linear/stitch.py)
    maps.a_to_b, maps.b_to_a                         ridge; r2; null_r2
    round_trip                                       R² of A predicted from itself by way of B ("a"), and of B ("b")
    identity                                         where the widths are equal, R² of the other model's activations
                                                     taken as they are, in raw units; otherwise null

r2 is measured on the part `report`, with the maps as they are stored. null_r2: the same for a map of the same
regularisation that was fitted on permuted pairs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from modeldiff.console import progress, say
from modeldiff.errors import InputError, MachineError
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.scan import Scan, scan
from modeldiff.linear.maps import LinearMap, best_ridge, ridge_scores
from modeldiff.linear.quality import Prediction, measure
from modeldiff.linear.stitch import DIRECTIONS, FORMAT, MAPS_NAME, STITCH_NAME, number_or_none
from modeldiff.lm.device import resolve_device
from modeldiff.splits import PARTS, Stretches, split, spread_blocks
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.activations import ActivationStore

# Counted up when the same settings and activations would give something else than before.
SCHEMA = 2
_BLOCK_ROWS = 1024
# A few pairs are still read from all over the activations.
_LEAST_BLOCKS = 16
# A larger share of outliers than this is said.
_NOTEWORTHY_LEFT_OUT = 0.01
# A map that is fitted on n times as many pairs as there are dimensions adds about 1/n to what it leaves unexplained.
_FEW_PAIRS_PER_DIMENSION = 10

Maps = dict[str, LinearMap]


def run(settings: StitchSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Fit affine maps between the two models' activations, or answer with those that were fitted before.

    Raises:
        InputError: there are no such activations, or too few pairs.
        DamagedError: activations that cannot be read or are not finite.
        MachineError: not enough memory; no such device.
    """
    source = workspace.find("activations", settings.activations)
    if settings.activations is None:
        say(f"stitch the models of {source.ref} (the latest)")
    store = ActivationStore(source)
    device = resolve_device(settings.device)
    if device.type == "mps":  # it has no float64
        device = torch.device("cpu")

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype="float64")
        try:
            return _build(settings, store, device, work)
        except torch.OutOfMemoryError:
            raise MachineError(f"{device} has too little memory for widths {store.widths}: use --device cpu") from None

    order = Order("stitch", settings, {"activations": source.as_input()}, SCHEMA)
    return produce(workspace, order, build, name=name, force=force)


def _build(settings: StitchSettings, store: ActivationStore, device: torch.device, work: Work) -> dict[str, Any]:
    factor = settings.outlier_factor
    rows = _BLOCK_ROWS if settings.pairs >= store.pairs else min(_BLOCK_ROWS, settings.pairs // _LEAST_BLOCKS)
    blocks = spread_blocks(store.blocks(rows), settings.pairs)
    stretches = split(store, blocks)
    scanned = scan(store, blocks, stretches, factor, device, work.resume)
    pairs, outliers = {part: scanned.counts[part] for part in PARTS}, scanned.counts["outliers"]
    _check_counts(store, pairs, outliers)
    maps, nulls = _fitted(store, scanned)
    r2 = _held_out_r2(store, stretches, maps, nulls, factor, device)
    reported = {name: {"ridge": one.ridge, "r2": r2[name], "null_r2": r2[f"null {name}"]} for name, one in maps.items()}
    tensors = {f"{name}.w": one.w_DD for name, one in maps.items()}
    tensors |= {f"{name}.bias": one.bias_D for name, one in maps.items()}
    rows_S = zip(("first", "stop", "part"), (stretches.first_S, stretches.stop_S, stretches.part_S), strict=True)
    tensors |= {f"stretch.{name}": torch.from_numpy(np.ascontiguousarray(one_S)) for name, one_S in rows_S}
    work.write_bytes(MAPS_NAME, save({name: one.cpu().contiguous() for name, one in tensors.items()}))
    description = {
        "format": FORMAT,
        "activations": store.artifact.ref,
        "activations_digest": store.artifact.manifest.digest,
        "sides": {side: dataclasses.asdict(info) for side, info in store.info.sides.items()},
        "outlier_factor": factor,
        "outliers": outliers,
        "pairs": pairs,
        "stretches": len(stretches.first_S),
        "maps": reported,
        "round_trip": {"a": r2["round trip a"], "b": r2["round trip b"]},
        "identity": {name: r2[f"identity {name}"] for name in DIRECTIONS} if "identity a_to_b" in r2 else None,
    }
    work.write_json(STITCH_NAME, description)
    return {"pairs": pairs, "outliers": outliers, **reported}


def _check_counts(store: ActivationStore, pairs: dict[str, int], outliers: int) -> None:
    if not all(pairs.values()):
        raise InputError(
            f"{store.artifact.ref}: too few pairs are left to fit, choose and report on different ones "
            f"({outliers} were left out for their norm): raise --outlier-factor, use 0 to keep all, or harvest more"
        )
    share = outliers / (outliers + sum(pairs.values()))
    if share > _NOTEWORTHY_LEFT_OUT:
        say(f"{outliers:,} pairs ({share:.1%}) with an outlying norm were left out")
    if pairs["fit"] < _FEW_PAIRS_PER_DIMENSION * max(store.widths):
        say(
            f"{pairs['fit']:,} pairs to fit on are few for width {max(store.widths):,}: with less than "
            f"{_FEW_PAIRS_PER_DIMENSION} for every dimension R² comes out too low; harvest more"
        )


def _fitted(store: ActivationStore, scanned: Scan) -> tuple[Maps, Maps]:
    """(maps, those of permuted pairs), by direction."""
    maps: Maps = {}
    nulls: Maps = {}
    with progress("stitch: solving", len(DIRECTIONS), "maps") as bar:
        for direction in DIRECTIONS:
            x, f = (store.mean[side] for side in direction.split("_to_"))
            ridge = best_ridge(ridge_scores(scanned.moments("fit", direction), scanned.moments("choose", direction)))
            for into, null in ((maps, False), (nulls, True)):
                moments = scanned.moments("fit", direction, null=null)
                into[direction] = LinearMap.fitted(moments, ridge, taken_off_x=x, taken_off_f=f)
            bar.advance()
    return maps, nulls


def _held_out_r2(
    store: ActivationStore, stretches: Stretches, maps: Maps, nulls: Maps, outlier_factor: float, device: torch.device
) -> dict[str, float | None]:
    """R² of what there is to predict with, from one pass over the pairs reported on."""
    there, back = maps["a_to_b"], maps["b_to_a"]
    predictions = {
        f"{kind}{direction}": Prediction(direction[-1], lambda x, one=one, source=direction[0]: one.apply(x[source]))
        for kind, found in (("", maps), ("null ", nulls))
        for direction, one in found.items()
    }
    predictions["round trip a"] = Prediction("a", lambda x: back.apply(there.apply(x["a"])))
    predictions["round trip b"] = Prediction("b", lambda x: there.apply(back.apply(x["b"])))
    if store.widths[0] == store.widths[1]:
        predictions["identity a_to_b"] = Prediction("b", lambda x: x["a"])
        predictions["identity b_to_a"] = Prediction("a", lambda x: x["b"])
    ranges = stretches.ranges("report")
    with progress("stitch: held-out pairs", sum(stop - first for first, stop in ranges), "pairs") as bar:
        r2_P = measure(store, ranges, list(predictions.values()), outlier_factor=outlier_factor, device=device, bar=bar)
    return {name: number_or_none(r2) for name, r2 in zip(predictions, r2_P, strict=True)}
