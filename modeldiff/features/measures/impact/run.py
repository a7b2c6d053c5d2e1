"""The impact command: a crosscoder, its activations with texts, a stitch and both models in, an `impact` artifact out.

See result.py for the layout of the artifact, removal.py and surface.py for what is measured.

Legend: N pairs of the sample, F features, C random directions, D width of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file
from scipy import sparse

from modeldiff.console import progress, say
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder, block_rows
from modeldiff.features.inputs import open_measured, outlier_factor_of
from modeldiff.features.measures.impact.exact import Check, check
from modeldiff.features.measures.impact.removal import Directions, Sums, measure, read_sums
from modeldiff.features.measures.impact.result import ARRAYS_NAME, FORMAT, IMPACT_NAME, quantiles, summary
from modeldiff.features.measures.impact.settings import KIND, ImpactSettings
from modeldiff.features.measures.impact.surface import Surface, read_surface, surface_r2
from modeldiff.features.splice import inlier_means, stored_gap
from modeldiff.features.windows import Window, sample_windows
from modeldiff.linear.stitch import Stitch, find_stitch, load_stitch
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.residual import verify_hook
from modeldiff.sides import OTHER, SIDES
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.activations import Block
from modeldiff.workspace.files import replace_into, temporary_path

SCHEMA = 1
RANDOM_DIRECTIONS = 64


@dataclass(frozen=True)
class _Plan:
    """Everything that is found and checked before a model is loaded."""

    settings: ImpactSettings
    encoder: Encoder
    stitch: Stitch
    targets: dict[str, Harvested]
    windows: list[Window]
    device: torch.device
    dtype: torch.dtype
    named: dict[str, Any]


@dataclass(frozen=True)
class _Side:
    """What was measured with one model."""

    sums: dict[str, Sums]
    """By group of directions."""
    check: Check
    stored_gap: float


def run(settings: ImpactSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Measure every feature's impact on both models, one in memory at a time, and the share the surface explains.

    Raises:
        InputError: there is no such crosscoder or no stitch, the activations are gone or have no texts, a model is not
            known, or it is not the one that was harvested.
        DamagedError: a file of the inputs is damaged.
        MachineError: a batch does not fit into memory.
    """
    measured = open_measured(workspace, settings.crosscoder, settings.activations, what=KIND)
    store, source, activations = measured.store, measured.source, measured.activations
    stitch = find_stitch(workspace, activations.as_input(), settings.stitch)
    targets = measured.models(settings.model_path_a, settings.model_path_b)
    windows = sample_windows(store, settings.pairs)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)
    outlier_factor = outlier_factor_of(source, settings.outlier_factor)
    inputs = {**measured.inputs, "stitch": stitch.as_input()}
    inputs |= {f"model_{side}": target.as_input() for side, target in targets.items()}
    encoder = Encoder(measured.crosscoder, store, device, outlier_factor)
    refs = {"crosscoder": source.ref, "activations": activations.ref, "stitch": stitch.ref}
    plan = _Plan(
        settings=settings, encoder=encoder, stitch=load_stitch(stitch, device=device), targets=targets,
        windows=windows, device=device, dtype=dtype, named={**refs, "outlier_factor": outlier_factor},
    )  # fmt: skip

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype=str(dtype).removeprefix("torch."))
        return _build(plan, work)

    resolved = {"outlier_factor": outlier_factor, "dtype": str(dtype).removeprefix("torch.")}
    return produce(workspace, Order(KIND, settings, inputs, SCHEMA, resolved), build, name=name, force=force)


def _build(plan: _Plan, work: Work) -> dict[str, Any]:
    settings, crosscoder = plan.settings, plan.encoder.crosscoder
    # Not kept for a resumed run: they take a fraction of a model's pass.
    codes_NF, kept_N = window_codes(plan.encoder, plan.windows)
    if not kept_N.any():
        raise InputError("no pair is left to measure on: raise --outlier-factor, or use 0 to keep all pairs")
    random = {side: _random(plan, codes_NF, side) for side in SIDES}
    found = {side: _measure(plan, _groups(plan, random, side), codes_NF, side, work.resume) for side in SIDES}
    arrays = _arrays(plan, codes_NF, found, random)
    arrays |= (surface := _surface(plan, codes_NF, kept_N))[0]
    sizes = crosscoder.sizes
    work.write_bytes(ARRAYS_NAME, save(arrays))
    counts = {"pairs": len(kept_N), "outliers": int((~kept_N).sum()), "windows": len(plan.windows)}
    description = {
        "format": FORMAT,
        **plan.named,
        "stitch_r2": {name: plan.stitch.info["maps"][name]["r2"] for name in ("a_to_b", "b_to_a")},
        **counts,
        "samples": settings.samples,
        "seed": settings.seed,
        "partitions": sizes,
        "sides": {
            side: {"model": one.ref.name, "layer": one.layer, "stored_gap": found[side].stored_gap}
            for side, one in plan.targets.items()
        },
        **summary(arrays, sizes),
        "surface": surface[1],
    }
    work.write_json(IMPACT_NAME, description)
    return {
        **counts,
        **{f"total_{side}": float(np.nansum(arrays[f"impact_{side}"] * arrays["windows"])) for side in SIDES},
    }


def window_codes(encoder: Encoder, windows: list[Window]) -> tuple[sparse.csr_matrix, NDArray[np.bool_]]:
    """(codes (N, F) of the windows' pairs in order, those of outliers zero; (N,) which are no outliers)."""
    features, parts, kept = encoder.crosscoder.n_features, [], []
    step = block_rows(features)
    with progress("impact: codes", sum(len(window.rows) for window in windows), "pairs") as bar:
        for window in windows:
            for start in range(window.rows.start, window.rows.stop, step):
                block = Block(window.rows.shard, start, min(start + step, window.rows.stop))
                one, kept_B = encoder.sparse(block)
                shape = (len(block), features)
                parts.append(sparse.csr_matrix((one.value, (one.row, one.feature)), shape=shape))
                kept.append(kept_B)
            bar.advance(len(window.rows))
    return sparse.vstack(parts, format="csr"), np.concatenate(kept)


def _random(plan: _Plan, codes_NF: sparse.csr_matrix, side: str) -> Directions:
    """Random directions of a model, as long as its median decoder row, that fire as features of it do."""
    crosscoder = plan.encoder.crosscoder
    seen = crosscoder.sees(side)
    w_dec, to_raw = _decoder(plan, side)
    random = np.random.default_rng((plan.settings.seed, SIDES.index(side), 1))
    alive = seen.start + np.flatnonzero(np.diff(codes_NF[:, seen].tocsc().indptr))
    count = RANDOM_DIRECTIONS if len(alive) else 0
    column_C = np.sort(random.choice(alive, count, replace=len(alive) < count)) if count else alive
    rows_CD = torch.from_numpy(random.standard_normal((count, w_dec.shape[1])).astype(np.float32)).to(w_dec.device)
    if count:
        norm_C = w_dec[torch.from_numpy(alive - seen.start).to(w_dec.device)].norm(dim=1)
        rows_CD *= norm_C.median() / rows_CD.norm(dim=1, keepdim=True)
    return Directions(column_C.astype(np.int64), rows_CD, to_raw)


def _groups(plan: _Plan, random: dict[str, Directions], side: str) -> dict[str, Directions]:
    """What is removed from a model: its own rows, those of the other model by the stitch, and random ones of both."""
    other = OTHER[side]
    through = plan.stitch.from_side(other)
    groups = {}
    for name, origin, moved in (("own", side, None), ("stitched", other, through)):
        seen = plan.encoder.crosscoder.sees(origin)
        groups[name] = Directions(np.arange(seen.start, seen.stop), *_decoder(plan, origin), moved)
        control = random[origin]
        groups[f"random_{name}"] = Directions(control.column_K, control.rows_KD, control.to_raw, moved)
    return groups


def _decoder(plan: _Plan, side: str) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    crosscoder = plan.encoder.crosscoder
    return crosscoder.decoder(side).detach(), partial(crosscoder.config.raw_direction, side)


def _measure(plan: _Plan, groups: dict[str, Directions], codes_NF: sparse.csr_matrix, side: str, folder: Path) -> _Side:
    """One model, loaded if an interrupted run has left anything to do."""
    sums_path, rest_path = folder / f"sums-{side}.safetensors", folder / f"rest-{side}.safetensors"
    target = plan.targets[side]
    if not rest_path.exists():
        say(f"model {side.upper()}: {target.ref.short_name}, after block {target.layer}, on {plan.device}")
        lm = target.open(plan.device, plan.dtype)
        verify_hook(lm, target.layer)
        means, _ = inlier_means(plan.encoder, plan.windows)
        gap = stored_gap(lm, target.layer, side, plan.encoder, plan.windows, means[side])
        seed = plan.settings.seed
        measure(
            lm, target.layer, side, plan.windows, codes_NF, groups, samples=plan.settings.samples, seed=seed,
            batch_tokens=plan.settings.batch_tokens, resume=sums_path,
        )  # fmt: skip
        checked = check(lm, target.layer, side, plan.windows, codes_NF, groups["own"], seed=seed)
        temporary = temporary_path(rest_path)
        save_file({**vars(checked), "stored_gap": np.array([gap])}, temporary)
        replace_into(temporary, rest_path)
    rest = load_file(rest_path)
    gap = float(rest.pop("stored_gap")[0])
    return _Side(read_sums(sums_path, groups)[1], Check(**rest), gap)


def _arrays(
    plan: _Plan, codes_NF: sparse.csr_matrix, found: dict[str, _Side], random: dict[str, Directions]
) -> dict[str, NDArray[Any]]:
    """The arrays of the artifact, without the surface's."""
    crosscoder = plan.encoder.crosscoder
    features = crosscoder.n_features
    arrays: dict[str, NDArray[Any]] = {
        "firings": np.bincount(codes_NF.indices, minlength=features).astype(np.int64),
        "windows": np.zeros(features, np.int64),
    }
    for side, other in (("a", "b"), ("b", "a")):
        for name, group, origin in (("impact", "own", side), ("stitched", "stitched", other)):
            seen, sums = crosscoder.sees(origin), found[side].sums[group]
            arrays["windows"][seen] = sums.windows_K
            for suffix, values in zip(("", "_error"), sums.mean_and_error(), strict=True):
                arrays[f"{name}_{side}{suffix}"] = np.full(features, np.nan)
                arrays[f"{name}_{side}{suffix}"][seen] = values
        for name, values in vars(found[side].check).items():
            arrays[f"check_{side}_{name.removesuffix('_K')}"] = values
        arrays[f"random_{side}_feature"] = random[side].column_K
        arrays[f"random_{side}_own"] = found[side].sums["random_own"].mean_and_error()[0]
        arrays[f"random_{side}_other"] = found[other].sums["random_stitched"].mean_and_error()[0]
    return arrays


def _surface(
    plan: _Plan, codes_NF: sparse.csr_matrix, kept_N: NDArray[np.bool_]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """(arrays, summary) of what the text explains of the codes; the null gives every pair the text of another one."""
    surface: Surface = read_surface(plan.encoder.store, plan.windows).take(kept_N)
    codes_NF = codes_NF[kept_N]
    fit_N = surface.fitting(plan.settings.seed)
    keys = {"surface_1": surface.one_N, "surface_2": surface.two_N}
    arrays, nulls = {}, {}
    with progress("impact: surface", 2 * len(keys), "passes") as bar:
        for name, key_N in keys.items():
            arrays[name] = surface_r2(codes_NF, key_N, fit_N)
            bar.advance()
            nulls[name] = surface_r2(codes_NF, np.roll(key_N, len(key_N) // 2), fit_N)
            bar.advance()
    return arrays, {
        "pairs": {"fit": int(fit_N.sum()), "held_out": int((~fit_N).sum())},
        "split_by": surface.split_by,
        "words": len(np.unique(surface.one_N)),
        "two_words": len(np.unique(surface.two_N)),
        "r2": quantiles(np.fmax(*arrays.values())),
        "null_r2": quantiles(np.fmax(*nulls.values())),
    }
