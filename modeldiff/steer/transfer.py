"""The transfer stage: a direction of one model, moved to the other by two rules. Makes a `transfer` artifact.

Layout (normative; raw units; what has a ? is absent without what it is of):
    transfer.json
        format, from, to            from and to: A or B
        origin                      of what was moved: a file, "feature 17", or "contrast of prompts"
        crosscoder, features, stitch, stitch_r2    what moved it; held-out R² of the map
        shared_features             that fire
        median_norms                of the activations, by side
        source_norms[]              of each direction, of what strength 1 adds in the source
            norm, norm_in_medians
        prompts.*                   by side, of a contrast: number that have an answer, and have none; answers
            positive, negative, silent, answers    see `Contrast.described`
        moved.*                     by rule (paper, stitch), of each direction, what strength 1 adds in the target
        truth                       see `_compared`; null: no contrast of the target's own was made
    vectors.safetensors             what strength 1 adds: as many median norms of either model
        source (N, Ds) float32
        paper, stitch (N, Dt) float32    by the rules
        own? (1, Dt) float32        the target's own contrast
    generations.jsonl?              a line for each text; absent without --prompt
        prompt, text
        rule                        unsteered, a rule, own, or random: a direction of the same norm
        vector, strength            number of the direction; strength

Everything here is in raw units. A crosscoder's decoder reconstructs normalised activations, raw x scale, so a row is
divided by its model's scale: a coefficient means the same feature activation on both sides.

Legend: N directions, F shared features, K chosen ones, Ds, Dt widths of source and target, D of either.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from modeldiff.catalogue.direction import direction_of
from modeldiff.catalogue.stored import STATISTICS_NAME
from modeldiff.console import say
from modeldiff.controls import random_directions
from modeldiff.crosscoder import Crosscoder, load
from modeldiff.errors import DamagedError, InputError
from modeldiff.linear.stitch import find_stitch, load_stitch
from modeldiff.lm.device import device_and_dtype
from modeldiff.lm.harvested import harvested, side_info
from modeldiff.lm.model import LanguageModel
from modeldiff.sides import OTHER, SIDES
from modeldiff.steer.prompts import Prompt, read_prompts
from modeldiff.steer.settings import TransferSettings
from modeldiff.steer.sweep import write
from modeldiff.steer.transfer_contrast import Contrast, make_contrast
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.activations import SideInfo
from modeldiff.workspace.files import json_lines, read_json, sha256_json

SCHEMA = 4
FORMAT = 3
UNSTEERED, OWN, RANDOM = "unsteered", "own", "random"
_RANDOM_DIRECTIONS = 100
_BATCH = 32


def run(settings: TransferSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Move a direction from one model to the other, or answer with what was moved before.

    Everything that can be wrong with the request is found before a model is loaded; without prompts none is needed.
    Raises InputError: an artifact, a model or a file is missing or does not fit; the line says what mends it;
    DamagedError: a file cannot be read.
    """
    features = workspace.find("features", settings.features)
    crosscoder = workspace.source_of(features, "crosscoder")
    stitch = find_stitch(workspace, features.manifest.inputs["activations"], settings.stitch)
    if settings.features is None:
        say(f"shared features of {crosscoder.ref}, as measured in {features.ref}; maps of {stitch.ref}")
    source = settings.source.lower()
    target = OTHER[source]
    info = {side: side_info(read_json(features.file("features.json"))["sides"][side]) for side in SIDES}

    dictionary = load(crosscoder)
    alive_F = load_file(features.file(STATISTICS_NAME))["firing_count"] > 0
    decoders = Decoders.of(dictionary, source, alive_F)
    if not len(decoders.ids_F):
        raise InputError(f"{crosscoder.ref} has no shared features that fire, and only those are in both models")
    there = load_stitch(stitch).from_side(source)

    def move(v_ND: Tensor) -> dict[str, Tensor]:
        """By rule, not rescaled. Of the stitch the matrix alone: a direction is a difference of activations."""
        return {"paper": paper_rule(decoders, settings.top, v_ND)[0], "stitch": there.direction(v_ND)}

    given_ND, prompts, origin, made_from = _direction(settings, dictionary, features, info[source].width)
    needed = SIDES if prompts else (target,) if settings.prompt else ()
    models = {side: harvested(side, info[side], features.ref, settings) for side in needed}
    device, dtype, names = device_and_dtype(settings)

    inputs = {
        **{one.kind: one.as_input() for one in (features, crosscoder, stitch)},
        **{f"model {side}": model.as_input(workspace.digest_of) for side, model in models.items()},
        **made_from,
    }

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(names)

        def contrast(side: str, opened: Callable[[], LanguageModel]) -> Contrast:
            assert prompts is not None
            return make_contrast(opened, models[side].layer, prompts, settings, work.resume / f"contrast-{side}.json")

        contrasts = {source: contrast(source, lambda: models[source].open(device, dtype))} if prompts else {}
        v_ND = contrasts[source].vector_D[None] if given_ND is None else given_ND
        norm_N = v_ND.norm(dim=1) * (info[target].median_norm / info[source].median_norm)
        tensors = {rule: unit(x_ND) * norm_N[:, None] for rule, x_ND in move(v_ND).items()}
        truth = None
        if target in models:
            lm = models[target].open(device, dtype)
            if prompts:
                contrasts[target] = contrast(target, lambda: lm)
                own_ND = tensors[OWN] = contrasts[target].vector_D[None]
                truth = _compared(move, v_ND, contrasts[source], contrasts[target], settings.seed)
                truth |= _norms(own_ND, info[target])[0]
            if settings.prompt:
                random_ND = random_directions(1, tensors["stitch"][0], settings.seed)
                _generate(settings, lm, models[target].layer, tensors | {RANDOM: random_ND}, work)
        vectors = {"source": v_ND} | tensors
        work.write_bytes("vectors.safetensors", save({key: x_ND.contiguous() for key, x_ND in vectors.items()}))
        moved = {rule: _norms(tensors[rule], info[target]) for rule in ("paper", "stitch")}
        used = (found_NK.tolist() for found_NK in paper_rule(decoders, settings.top, v_ND)[1:])
        for one, ids_K, weight_K in zip(moved["paper"], *used, strict=True):
            one["features"] = [{"id": id, "weight": weight} for id, weight in zip(ids_K, weight_K, strict=True)]
        described = {
            "format": FORMAT,
            "from": settings.source,
            "to": target.upper(),
            "origin": origin,
            **{one.kind: one.ref for one in (crosscoder, features, stitch)},
            "stitch_r2": there.r2,
            "shared_features": len(decoders.ids_F),
            "median_norms": {side: one.median_norm for side, one in info.items()},
            "source_norms": _norms(v_ND, info[source]),
            "prompts": {side: one.described() for side, one in contrasts.items()},
            "moved": moved,
            "truth": truth,
        }
        work.write_json("transfer.json", described)
        return {"directions": len(v_ND)} | ({"rules": truth["rules"]} if truth else {})

    # Without a model nothing depends on the device or its number format.
    order = Order("transfer", settings, inputs, SCHEMA, {"dtype": names["dtype"] if models else None})
    return produce(workspace, order, build, name=name, force=force)


def _direction(
    settings: TransferSettings, dictionary: Crosscoder, features: Artifact, width: int
) -> tuple[Tensor | None, tuple[list[Prompt], list[Prompt]] | None, str, dict[str, Input]]:
    """(the directions (N, Ds) if no model is needed, the prompts that make one otherwise, what it is called, the files
    that it comes from)."""
    if settings.vector is not None:
        v_ND = read_vectors(settings.vector, width, settings.source)
        digest = hashlib.sha256(v_ND.numpy().tobytes()).hexdigest()
        return v_ND, None, str(settings.vector), {"vector": Input(str(settings.vector), digest)}
    if settings.vector_from_feature is not None:
        feature = settings.vector_from_feature
        direction = direction_of(dictionary, features, feature, settings.source.lower())
        return direction.unit_D[None], None, f"feature {feature}", {}
    positive, negative = settings.from_prompts
    prompts = read_prompts(positive), read_prompts(negative)
    if prompts[0] == prompts[1]:
        raise InputError(f"--from-prompts: {positive} and {negative} hold the same prompts, so there is no contrast")
    said = [[dataclasses.asdict(one) for one in part] for part in prompts]
    return None, prompts, "contrast of prompts", {"prompts": Input(f"{positive}, {negative}", sha256_json(said))}


def _generate(
    settings: TransferSettings, lm: LanguageModel, layer: int, directions: dict[str, Tensor], work: Work
) -> None:
    pushes = [(UNSTEERED, 0, 0.0, torch.zeros(lm.width))]
    for rule, x_ND in directions.items():
        strengths = dict.fromkeys(settings.strength)
        pushes += [(rule, i, strength, strength * x_D) for i, x_D in enumerate(x_ND) for strength in strengths]
    say(f"{len(pushes)} texts of each prompt: unsteered, and along every direction")
    vectors_SD = torch.stack([x_D for *_, x_D in pushes])
    made = write(settings, lm, layer, settings.prompt, vectors_SD, _BATCH)
    records = [
        {"prompt": prompt, "rule": rule, "vector": index, "strength": strength, "text": one.text}
        for (rule, index, strength, _), texts in zip(pushes, made, strict=True)
        for prompt, one in zip(settings.prompt, texts, strict=True)
    ]
    work.write_bytes("generations.jsonl", json_lines(records))


def _compared(
    move: Callable[[Tensor], dict[str, Tensor]], v_ND: Tensor, source: Contrast, own: Contrast, seed: int
) -> dict[str, Any]:
    """Cosines with the target's own contrast: each rule's, and the absolute value that 95 of 100 random directions stay
    below, moved by the rule or drawn in the target; and how well two halves of the prompts agree."""
    own_D = own.vector_D

    def absolute_95(x_ND: Tensor) -> float:
        return float(cosine(x_ND, own_D).abs().quantile(0.95))

    random = move(random_directions(_RANDOM_DIRECTIONS, torch.ones(v_ND.shape[1]), seed))
    return {
        "rules": {
            rule: {"cosine": float(cosine(x_ND[0], own_D)), "random": absolute_95(random[rule])}
            for rule, x_ND in move(v_ND).items()
        },
        "random_in_target": absolute_95(random_directions(_RANDOM_DIRECTIONS, own_D, seed + 1)),
        "split_half_source": float(cosine(*source.halves())),
        "split_half_target": float(cosine(*own.halves())),
    }


def _norms(x_ND: Tensor, side: SideInfo) -> list[dict[str, Any]]:
    return [{"norm": norm, "norm_in_medians": norm / side.median_norm} for norm in x_ND.norm(dim=1).tolist()]


def read_vectors(path: Path, width: int, model: str) -> Tensor:
    """The directions (N, D) float32 of a .npy or .safetensors file with one array (D,) or (N, D); no pickle is read.
    Raises InputError: no such file, or not one array of finite floating-point numbers of that width; DamagedError: the
    file cannot be read."""
    if not path.is_file():
        raise InputError(f"--vector: there is no file {path}")
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            tensors = [torch.from_numpy(array.astype(np.float32)) if array.dtype.kind == "f" else torch.zeros(0).int()]
        elif path.suffix == ".safetensors":
            tensors = list(load_file(path).values())
        else:
            raise InputError(f"--vector: {path} ends in '{path.suffix}': expected .npy or .safetensors")
    except (SafetensorError, OSError, EOFError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read as an array, it may be truncated ({error})") from None
    if len(tensors) != 1 or not tensors[0].is_floating_point():
        raise InputError(f"--vector: expected one array of floating-point numbers in {path}")
    (found,) = tensors
    if found.ndim not in (1, 2) or found.shape[-1] != width or not found.numel():
        raise InputError(
            f"--vector: {path} has shape {tuple(found.shape)}: expected ({width},) or (N, {width}), the width of "
            f"model {model}"
        )
    vectors_ND = found.reshape(-1, width).float()
    if not vectors_ND.isfinite().all() or not (vectors_ND.norm(dim=1) > 0).all():
        raise InputError(f"--vector: {path} holds values that are not finite, or a vector of zeros")
    return vectors_ND


@dataclass(frozen=True)
class Decoders:
    """The shared features' rows in both models, raw units, float32."""

    source_FD: Tensor
    target_FD: Tensor
    ids_F: Tensor
    """int64: their numbers in the crosscoder."""

    @classmethod
    def of(cls, crosscoder: Crosscoder, source: str, alive_F: Tensor) -> Decoders:
        """Those of a crosscoder, read from model "a" or "b".

        alive_F: (all features) bool; a feature that never fires has a decoder that no data ever shaped, so it is left
        out. A row without length has no direction, and is left out too.
        """
        shared = crosscoder.slices["shared"]
        rows = {}
        for side in SIDES:
            start = crosscoder.sees(side).start
            mine_FD = crosscoder.decoder(side).detach()[shared.start - start : shared.stop - start]
            rows[side] = crosscoder.config.raw_direction(side, mine_FD.float().cpu())
        kept_F = (rows[source].norm(dim=1) > 0) & alive_F[shared]
        ids_F = torch.arange(shared.start, shared.stop)[kept_F]
        return cls(rows[source][kept_F], rows[OTHER[source]][kept_F], ids_F)


def paper_rule(decoders: Decoders, top: int, v_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The DFC paper's rule (eq. 13-17): of the `top` shared features whose source decoder has the highest cosine with
    the direction, the mean of the target decoders, weighted by that cosine.

    Decoders are averaged as long as they are, as in the paper, each in the crosscoder's normalised units (a model's
    scale is common to all of its rows, and is lost when the result is rescaled).

    Returns the directions (N, Dt) in the target; numbers (N, K) of the features used, strongest first; their cosines.
    """
    cosine_NF = unit(v_ND) @ decoders.source_FD.T / decoders.source_FD.norm(dim=1)
    weight_NK, at_NK = cosine_NF.topk(min(top, len(decoders.ids_F)), dim=1)
    # Where the cosines sum to nothing the mean has no sign; the paper's features all lean towards the direction.
    share_NK = weight_NK / weight_NK.sum(dim=1, keepdim=True).abs().clamp_min(torch.finfo(torch.float32).tiny)
    target_ND = (share_NK[:, None] @ decoders.target_FD[at_NK])[:, 0]
    return target_ND, decoders.ids_F[at_NK], weight_NK


def unit(x_ND: Tensor) -> Tensor:
    """Rows of norm 1; a row of zeros stays one."""
    return x_ND / x_ND.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(x_ND.dtype).tiny)


def cosine(one_ND: Tensor, other_ND: Tensor) -> Tensor:
    """Row by row (broadcast), in float64; 0 where one of them is a row of zeros."""
    return (unit(one_ND.double()) * unit(other_ND.double())).sum(dim=-1)
