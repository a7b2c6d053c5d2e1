"""The stitch stage: an activations artifact in, a `stitch` artifact out. Its layout: linear/stitch.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from modeldiff.console import progress, say
from modeldiff.errors import InputError, MachineError
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.scan import Scan, scan
from modeldiff.linear.maps import LinearMap, best_ridge, ridge_scores
from modeldiff.linear.quality import within_norm
from modeldiff.linear.stitch import DIRECTIONS, FORMAT, MAPS_NAME, STITCH_NAME
from modeldiff.lm.device import resolve_device
from modeldiff.records import number_or_none
from modeldiff.sides import SIDES
from modeldiff.splits import PARTS, Stretches, split, spread_blocks
from modeldiff.workspace import Artifact, Order, Work, Workspace
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import require_free
from modeldiff.workspace.ranks import produce_by_first

# Counted up when the same settings and activations would give something else than before.
SCHEMA = 2
_BLOCK_ROWS = _READ_ROWS = 1024
# Relative error of a float64 sum of squares over millions of pairs.
_ROUNDING = 1e-12
# A few pairs are still read from all over the activations.
_LEAST_BLOCKS = 16
# A larger share of outliers than this is said.
_NOTEWORTHY_LEFT_OUT = 0.01
# A map that is fitted on n times as many pairs as there are dimensions adds about 1/n to what it leaves unexplained.
_FEW_PAIRS_PER_DIMENSION = 10

Maps = dict[str, LinearMap]
Activations = dict[str, torch.Tensor]


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
    return produce_by_first(workspace, order, build, name=name, force=force)


def _build(settings: StitchSettings, store: ActivationStore, device: torch.device, work: Work) -> dict[str, Any]:
    factor = settings.outlier_factor
    rows = _BLOCK_ROWS if settings.pairs >= store.pairs else min(_BLOCK_ROWS, settings.pairs // _LEAST_BLOCKS)
    blocks = spread_blocks(store.blocks(rows), settings.pairs)
    stretches = split(store, blocks)
    scanned = Scan(store, stretches, factor, device)
    checkpoint = sum(one.nbytes for one in scanned.sums.values())  # larger than the maps
    require_free(work.folder, checkpoint, f"a stitch of widths {' and '.join(map(str, store.widths))}")
    scan(scanned, blocks, work.resume)
    pairs, outliers = {part: scanned.counts[part] for part in PARTS}, scanned.counts["outliers"]
    _check_counts(store, pairs, outliers)
    fitted = _fitted(store, scanned)
    r2 = _held_out_r2(store, stretches, fitted, factor, device)
    maps = {name: fitted[name] for name in DIRECTIONS}
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


def _fitted(store: ActivationStore, scanned: Scan) -> Maps:
    """The maps by direction, and those of permuted pairs: `null a_to_b`, `null b_to_a`."""
    maps: Maps = {}
    with progress("stitch: solving", len(DIRECTIONS), "maps") as bar:
        for direction in DIRECTIONS:
            x, f = (store.mean[side] for side in direction.split("_to_"))
            ridge = best_ridge(ridge_scores(scanned.moments("fit", direction), scanned.moments("choose", direction)))
            for name, null in ((direction, False), (f"null {direction}", True)):
                moments = scanned.moments("fit", direction, null=null)
                maps[name] = LinearMap.fitted(moments, ridge, origin_x=x, origin_f=f)
            bar.advance()
    return maps


def _predictions(maps: Maps, *, same_width: bool) -> dict[str, tuple[str, Callable[[Activations], torch.Tensor]]]:
    """By name, what there is to predict with: (side that is predicted, from activations by side)."""

    def moved(one: LinearMap, source: str) -> Callable[[Activations], torch.Tensor]:
        return lambda x: one.apply(x[source])

    there, back = maps["a_to_b"], maps["b_to_a"]
    found = {name: (name[-1], moved(one, name[-len("a_to_b")])) for name, one in maps.items()}
    found["round trip a"] = ("a", lambda x: back.apply(there.apply(x["a"])))
    found["round trip b"] = ("b", lambda x: there.apply(back.apply(x["b"])))
    if same_width:
        found |= {"identity a_to_b": ("b", lambda x: x["a"]), "identity b_to_a": ("a", lambda x: x["b"])}
    return found


def _held_out_r2(
    store: ActivationStore, stretches: Stretches, maps: Maps, outlier_factor: float, device: torch.device
) -> dict[str, float | None]:
    """R² of every prediction, from one pass over the pairs reported on: 1 - sum of squared errors / sum of squares
    about these pairs' own mean, over all dimensions together. None: the targets do not vary."""
    predictions = _predictions(maps, same_width=store.widths[0] == store.widths[1])
    count = 0
    # Of each prediction: squared error, square, and values of the targets less a constant near their mean.
    sums = {name: np.zeros(2 + store.info.sides[side].width) for name, (side, _) in predictions.items()}
    mean = {side: store.mean[side].to(device) for side in SIDES}
    ranges = stretches.ranges("report")
    with progress("stitch: held-out pairs", sum(stop - first for first, stop in ranges), "pairs") as bar:
        for block in _blocks_of(store, ranges):
            x = {side: store.read_side(side, block).to(device).float() for side in SIDES}
            keep_N = within_norm(store, x, outlier_factor).cpu().numpy()
            count += int(keep_N.sum())
            for name, (side, predict) in predictions.items():
                y_ND = x[side].double()
                error_N = (predict(x).double() - y_ND).square().sum(dim=1).cpu().numpy()
                centred_ND = (y_ND - mean[side]).cpu().numpy()
                square_N = np.einsum("nd,nd->n", centred_ND, centred_ND)
                sums[name] += np.column_stack([error_N, square_N, centred_ND])[keep_N].sum(axis=0)
            bar.advance(len(block))
    found = {}
    for name, (error, square, *sum_D) in sums.items():
        total = square - np.square(sum_D).sum() / max(1, count)
        found[name] = number_or_none(1 - error / total) if total > _ROUNDING * square else None
    return found


def _blocks_of(store: ActivationStore, ranges: Sequence[tuple[int, int]]) -> Iterator[Block]:
    """The ranges of rows of the store as blocks, never across shards."""
    for first, stop in ranges:
        while first < stop:
            shard = int(np.searchsorted(store.first_row, first, side="right")) - 1
            end = min(stop, store.first_row[shard + 1], first + _READ_ROWS)
            yield Block(shard, first - store.first_row[shard], end - store.first_row[shard])
            first = end
