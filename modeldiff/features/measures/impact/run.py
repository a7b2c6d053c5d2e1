"""The impact command: a crosscoder, its activations with texts, a stitch and both models in, an `impact` artifact out.

See result.py for the layout of the artifact, removal.py and surface.py for what is measured.

Legend: N pairs of the sample, F features, C random directions, D width of a model.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from scipy import sparse

from modeldiff.catalogue.stored import Arrays, kept
from modeldiff.console import progress
from modeldiff.controls import random_directions
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.measures.impact import ImpactSettings
from modeldiff.features.measures.impact.removal import Directions, check, mean_and_error, measure
from modeldiff.features.measures.impact.result import ARRAYS_NAME, FORMAT, IMPACT_NAME, asymmetry
from modeldiff.features.measures.impact.surface import surface_r2, words_of
from modeldiff.features.measures.models import Models
from modeldiff.linear.stitch import DIRECTIONS, Stitch, find_stitch, load_stitch
from modeldiff.sides import OTHER, SIDES
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce

SCHEMA = 2
RANDOM_DIRECTIONS = 64

Groups = dict[str, Directions]


def run(settings: ImpactSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Measure every feature's impact on both models, one in memory at a time, and what the last word explains of it.

    Raises:
        InputError: there is no such crosscoder or no stitch, the activations are gone or have no texts, a model is not
            known, or it is not the one that was harvested.
        DamagedError: a file of the inputs is damaged.
        MachineError: a batch does not fit into memory.
    """
    models = Models.find(settings, workspace, "impact")
    stitch = find_stitch(workspace, models.inputs["activations"], settings.stitch)

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(models.encoder.device), dtype=models.resolved["dtype"])
        return _build(settings, models, stitch, work)

    order = Order("impact", settings, {**models.inputs, "stitch": stitch.as_input()}, SCHEMA, models.resolved)
    return produce(workspace, order, build, name=name, force=force)


def _build(settings: ImpactSettings, models: Models, source: Artifact, work: Work) -> dict[str, Any]:
    # Not kept for a resumed run: they take a fraction of a model's pass.
    with progress("impact: codes", sum(len(window.rows) for window in models.windows), "pairs") as bar:
        codes_NF, kept_N = models.encoder.matrix((window.rows for window in models.windows), bar.advance)
    if not kept_N.any():
        raise InputError("no pair is left to measure on: raise --outlier-factor, or use 0 to keep all pairs")
    stitch = load_stitch(source, device=models.encoder.device)
    random = {side: _random(models.encoder, codes_NF, side, settings.seed) for side in SIDES}
    found = {
        side: _measured(settings, models, _groups(models, stitch, random, side), codes_NF, side, work.resume)
        for side in SIDES
    }
    arrays = _arrays(models, codes_NF, found)
    # Every other window is held out; outliers, whose codes are zero, count in neither half.
    fit_N = np.repeat(np.arange(len(models.windows)) % 2 == 0, [len(window.rows) for window in models.windows])
    word_N = words_of(models.encoder.store, models.windows)
    arrays["surface"] = surface_r2(codes_NF[kept_N], word_N[kept_N], fit_N[kept_N])
    work.write_bytes(ARRAYS_NAME, save(arrays))
    counts = {"pairs": len(kept_N), "outliers": int((~kept_N).sum()), "windows": len(models.windows)}
    description = {
        "format": FORMAT,
        **models.named,
        "stitch": source.ref,
        "stitch_r2": {name: stitch.info["maps"][name]["r2"] for name in DIRECTIONS},
        **counts,
        "samples": settings.samples,
        "seed": settings.seed,
        "partitions": models.encoder.crosscoder.sizes,
        "sides": {
            side: {"model": one.ref.name, "layer": one.layer, "stored_gap": float(found[side]["stored_gap"])}
            for side, one in models.targets.items()
        },
        "surface": quantiles(arrays["surface"]),
        **summary(arrays, models.encoder.crosscoder.slices["shared"]),
    }
    work.write_json(IMPACT_NAME, description)
    return {
        **counts,
        **{f"total_{side}": float(np.nansum(arrays[f"own_{side}"] * arrays["windows"])) for side in SIDES},
    }


def _random(encoder: Encoder, codes_NF: sparse.csr_matrix, side: str, seed: int) -> Directions:
    """Random directions of a model, as long as the median decoder row that fires, that fire as features of it do."""
    crosscoder = encoder.crosscoder
    seen, w_dec = crosscoder.sees(side), crosscoder.decoder(side).detach()
    alive = seen.start + np.flatnonzero(np.diff(codes_NF[:, seen].tocsc().indptr))
    to_raw = partial(crosscoder.config.raw_direction, side)
    if not len(alive):
        return Directions(alive, w_dec[:0], to_raw)
    random = np.random.default_rng((seed, SIDES.index(side), 1))
    column_C = np.sort(random.choice(alive, RANDOM_DIRECTIONS, replace=len(alive) < RANDOM_DIRECTIONS))
    by_norm = alive[np.argsort(w_dec.norm(dim=1).cpu().numpy()[alive - seen.start])]
    median_D = w_dec[int(by_norm[(len(alive) - 1) // 2]) - seen.start].cpu()
    rows_CD = random_directions(RANDOM_DIRECTIONS, median_D, int(random.integers(2**32)))
    return Directions(column_C, rows_CD.to(w_dec.device), to_raw)


def _groups(models: Models, stitch: Stitch, random: Groups, side: str) -> Groups:
    """What is removed from a model: its own rows, those of the other model by the stitch, and random ones of both."""
    crosscoder, groups = models.encoder.crosscoder, {}
    for name, origin, through in (("own", side, None), ("stitched", OTHER[side], stitch.from_side(OTHER[side]))):
        seen, control = crosscoder.sees(origin), random[origin]
        rows_KD, to_raw = crosscoder.decoder(origin).detach(), partial(crosscoder.config.raw_direction, origin)
        groups[name] = Directions(np.arange(seen.start, seen.stop), rows_KD, to_raw, through)
        groups[f"random_{name}"] = Directions(control.column_K, control.rows_KD, to_raw, through)
    return groups


def _measured(
    settings: ImpactSettings, models: Models, groups: Groups, codes_NF: sparse.csr_matrix, side: str, folder: Path
) -> Arrays:
    """Sums by group, the check's arrays and `stored_gap` of one model, which is loaded if an interrupted run has left
    anything to do."""

    def make() -> Arrays:
        model = models.open(side)
        sums = measure(model, codes_NF, groups, settings, resume=folder / f"sums-{side}.safetensors")
        checked = check(model, codes_NF, groups["own"], settings.seed)
        return {**sums, **checked, "stored_gap": np.array(model.gap)}

    return kept(folder / f"{side}.safetensors", make)


def _arrays(models: Models, codes_NF: sparse.csr_matrix, found: dict[str, Arrays]) -> Arrays:
    """The arrays of the artifact, without the surface."""
    crosscoder = models.encoder.crosscoder
    features, shared = crosscoder.n_features, crosscoder.slices["shared"]
    arrays: Arrays = {
        "firings": np.bincount(codes_NF.indices, minlength=features).astype(np.int64),
        "windows": np.zeros(features, np.int64),
    }
    for side, other in OTHER.items():
        seen = crosscoder.sees(side)
        arrays["windows"][seen] = found[side]["own"][2]
        for name, sums_3K in (("own", found[side]["own"]), ("stitched", found[other]["stitched"])):
            arrays[f"{name}_{side}"], arrays[f"{name}_error_{side}"] = np.full((2, features), np.nan)
            arrays[f"{name}_{side}"][seen], arrays[f"{name}_error_{side}"][seen] = mean_and_error(sums_3K)
        arrays |= {f"check_{side}_{name}": found[side][name] for name in ("feature", "second", "exact")}
        arrays[f"random_{side}_own"] = mean_and_error(found[side]["random_own"])[0]
        arrays[f"random_{side}_other"] = mean_and_error(found[other]["random_stitched"])[0]
    for side, other in OTHER.items():
        arrays[f"other_{side}"] = arrays[f"stitched_{side}"].copy()
        arrays[f"other_{side}"][shared] = arrays[f"own_{other}"][shared]
    return arrays


def summary(arrays: Arrays, shared: slice) -> dict[str, Any]:
    """What random directions (controls) and shared features show beside the features, and how well the second order
    agrees with really removing (exact). asymmetry_stitched is by the stitch alone: what an exclusive feature's would
    look like if the other model had it."""
    controls, of_shared, exact = {}, {}, {}
    for side in SIDES:
        own_C, other_C = arrays[f"random_{side}_own"], arrays[f"random_{side}_other"]
        controls[side] = {
            "directions": len(own_C),
            "own": quantiles(own_C),
            "other": quantiles(other_C),
            "asymmetry": quantiles(asymmetry(own_C, other_C)),
        }
        own_S = arrays[f"own_{side}"][shared]
        of_shared[side] = {
            "features": int((arrays["windows"][shared] > 0).sum()),
            "asymmetry": quantiles(asymmetry(own_S, arrays[f"other_{side}"][shared])),
            "asymmetry_stitched": quantiles(asymmetry(own_S, arrays[f"stitched_{side}"][shared])),
        }
        second_K, exact_K = arrays[f"check_{side}_second"], arrays[f"check_{side}_exact"]
        rank_2K = np.argsort(np.argsort([second_K, exact_K], kind="stable"), kind="stable")
        exact[side] = {
            "features": len(exact_K),
            "ratio": quantiles(second_K[exact_K > 0] / exact_K[exact_K > 0]),
            "rank_correlation": float(np.corrcoef(rank_2K[0], rank_2K[1])[0, 1]) if len(exact_K) > 2 else None,
        }
    return {"controls": controls, "shared": of_shared, "exact": exact}


def quantiles(values: NDArray[np.float64]) -> dict[str, float | None]:
    """5 %, 50 % and 95 % of the numbers among the values; None when there are none."""
    known = values[np.isfinite(values)]
    return {f"{q:.0%}": float(np.quantile(known, q)) if len(known) else None for q in (0.05, 0.5, 0.95)}
