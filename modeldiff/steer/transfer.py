"""The transfer stage: a direction of one model, moved to the other by several rules. Makes a `transfer` artifact.

Layout (normative):
    transfer.json           what was moved, by which rules and with which settings; `moved`: by rule, for each
                            direction, norms, the features used, and the rule's own account (`_account`); `truth`: the
                            comparison with the target's own contrast (`_compared`), null where there is none
    vectors.safetensors     source (N, Ds), and (N, Dt) of each rule: paper, stitch; own (1, Dt) where the target has
                            made the contrast too; float32, raw units, at the norm that strength 1 adds: as many median
                            norms of the target as it has of the source
    answers.jsonl           one object per prompt and model of a contrast: side, positive, prompt, text, given; absent
                            without prompts
    generations.jsonl       one object per line: prompt, rule ("unsteered" first), vector (index), strength, text;
                            absent without --prompt

Legend: N directions, Ds, Dt widths of source and target, R resamples.
"""

from __future__ import annotations

import functools
import hashlib
import json
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from modeldiff.console import progress
from modeldiff.controls import random_directions
from modeldiff.crosscoder.direction import direction_of
from modeldiff.errors import InputError
from modeldiff.lm.chat import uses_chat
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.generate import generate
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual
from modeldiff.steer.transfer_contrast import Contrast, make_contrast, render, resampled
from modeldiff.steer.transfer_inputs import TransferInputs, find_inputs
from modeldiff.steer.transfer_prompts import Prompt, PromptPair, read_prompt_pair
from modeldiff.steer.transfer_rules import RULES, Decoders, Mover, cosine, rescaled
from modeldiff.steer.transfer_settings import TransferSettings
from modeldiff.steer.transfer_vectors import read_vectors
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.files import read_json, write_json

SCHEMA = 3
FORMAT = 2
TRANSFER_NAME = "transfer.json"
VECTORS_NAME = "vectors.safetensors"
ANSWERS_NAME = "answers.jsonl"
GENERATIONS_NAME = "generations.jsonl"
UNSTEERED = "unsteered"
OWN = "own"
_RANDOM, _RESAMPLES = 100, 200


def run(settings: TransferSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Move a direction from one model to the other, or answer with what was moved before.

    Everything that can be wrong with the request is found before a model is loaded; without prompts none is needed.

    Raises:
        InputError: an artifact, a model or a file is missing or does not fit; the line says what mends it.
        DamagedError: a file cannot be read.
    """
    inputs = find_inputs(settings, workspace)
    source, target = settings.sides
    vectors_ND = _given_vectors(settings, inputs)
    pair, truth = _prompts(settings)
    if truth and vectors_ND is not None and len(vectors_ND) > 1:
        raise InputError(f"--truth-prompts are compared with one direction, and {settings.vector} holds several")
    models = {source: inputs.model(source, settings)} if pair else {}
    if truth or settings.prompt:
        models[target] = inputs.model(target, settings)
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)

    made_from = {
        "features": inputs.features.as_input(),
        "crosscoder": inputs.crosscoder.as_input(),
        "stitch": inputs.stitch.as_input(),
        **{f"model {side}": model.as_input() for side, model in models.items()},
    }
    if pair or truth:
        made_from["prompts"] = (pair or truth).as_input()  # type: ignore[union-attr]
    if settings.vector is not None and vectors_ND is not None:
        made_from["vector"] = Input(str(settings.vector), hashlib.sha256(vectors_ND.numpy().tobytes()).hexdigest())

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype=str(dtype).removeprefix("torch."))
        return _Transfer(settings, inputs, models, pair, truth, vectors_ND, device, dtype, work).build()

    # Without a model nothing depends on the device or its number format.
    resolved = {"dtype": str(dtype).removeprefix("torch.") if models else None, "compared": truth is not None}
    order = Order("transfer", settings, made_from, SCHEMA, resolved)
    return produce(workspace, order, build, name=name, force=force)


def _prompts(settings: TransferSettings) -> tuple[PromptPair | None, PromptPair | None]:
    """(those that make the direction, those that make the one it is compared with)."""
    pair = read_prompt_pair(settings.from_prompts, "--from-prompts") if settings.from_prompts else None
    if not settings.truth:
        return pair, None
    return pair, pair or read_prompt_pair(settings.truth, "--truth-prompts")


def _given_vectors(settings: TransferSettings, inputs: TransferInputs) -> Tensor | None:
    """The directions (N, Ds) that need no model; None: they are made from prompts."""
    source = settings.sides[0]
    if settings.vector is not None:
        return read_vectors(settings.vector, inputs.info[source].width, settings.source)
    if settings.vector_from_feature is not None:
        return direction_of(inputs.dictionary, inputs.features, settings.vector_from_feature, source).unit_D[None]
    return None


@dataclass
class _Transfer:
    """The work of one run. One model is in memory at a time."""

    settings: TransferSettings
    inputs: TransferInputs
    models: dict[str, Harvested]
    pair: PromptPair | None
    truth: PromptPair | None
    vectors_ND: Tensor | None
    device: torch.device
    dtype: torch.dtype
    work: Work

    def build(self) -> dict[str, Any]:
        settings, (source, target) = self.settings, self.settings.sides
        contrasts: dict[str, Contrast] = {}
        if self.pair:
            model = self.models[source]
            contrasts[source] = make_contrast(
                functools.partial(model.open, self.device, self.dtype),
                model.layer,
                self.pair,
                settings,
                self.work.resume,
                source,
            )
            self.vectors_ND = contrasts[source].vector_D[None]
        v_ND = self.vectors_ND
        assert v_ND is not None
        self._mover = self._make_mover()
        random_ND = random_directions(_RANDOM, torch.ones(v_ND.shape[1]), settings.seed)
        moved = {rule: self._rescaled(rule, v_ND) for rule in RULES}
        tensors = {"source": v_ND, **moved}
        truth = None
        if self.truth or settings.prompt:
            model = self.models[target]
            lm = model.open(self.device, self.dtype)
            if self.truth:
                own = make_contrast(lambda: lm, model.layer, self.truth, settings, self.work.resume, target)
                contrasts[target] = own
                tensors[OWN] = own.vector_D[None]
                truth = _compared(self._mover, v_ND[0], own, contrasts.get(source), random_ND, settings.seed)
            if settings.prompt:
                self._generate(lm, model.layer, {key: x for key, x in tensors.items() if key != "source"})
        self.work.write_bytes(VECTORS_NAME, save({key: x_ND.contiguous() for key, x_ND in tensors.items()}))
        self._write_answers(contrasts)
        self.work.write_json(TRANSFER_NAME, self._description(v_ND, moved, random_ND, contrasts, truth))
        return _metrics(truth, len(v_ND))

    def _make_mover(self) -> Mover:
        source, target = self.settings.sides
        device = torch.device("cpu") if self.device.type == "mps" else self.device  # mps has no float64
        decoders = Decoders.of(self.inputs.dictionary, source, self.inputs.alive_F, device)
        if not len(decoders):
            raise InputError(f"no shared feature of {self.inputs.crosscoder.ref} fires: nothing to move by")
        maps = self.inputs.maps
        there, back = maps.from_side(source), maps.from_side(target)
        return Mover(decoders, there, back, self.settings.top)

    def _rescaled(self, rule: str, v_ND: Tensor) -> Tensor:
        source, target = (self.inputs.info[side].median_norm for side in self.settings.sides)
        return rescaled(self._mover.move(rule, v_ND).target_ND, v_ND.norm(dim=1) * (target / source))

    def _generate(self, lm: LanguageModel, layer: int, directions: dict[str, Tensor]) -> None:
        """Continuations of --prompt, unsteered and by every direction and strength."""
        settings = self.settings
        chat = uses_chat(lm.tokenizer, settings.chat)
        rendered = [render(lm, Prompt(prompt), chat) for prompt in settings.prompt]
        strengths = list(dict.fromkeys(settings.strength))
        jobs: list[tuple[str, int, float, Tensor | None]] = [(UNSTEERED, 0, 0.0, None)]
        for rule, x_ND in directions.items():
            jobs += [(rule, i, s, s * x_D) for i, x_D in enumerate(x_ND) for s in strengths]
        records = []
        with progress("generate", len(jobs), "directions") as bar:
            for number, (rule, index, strength, x_D) in enumerate(jobs):
                path = self.work.resume / f"generated-{number:04d}.json"
                if not path.exists():
                    with add_to_residual(lm, layer, x_D) if x_D is not None else nullcontext():
                        texts = generate(
                            lm,
                            rendered,
                            max_new_tokens=settings.max_new_tokens,
                            temperature=settings.temperature,
                            top_p=settings.top_p,
                            seed=settings.seed,
                            add_special_tokens=not chat,
                        )
                    write_json(path, {"texts": texts})
                records += [
                    {"prompt": prompt, "rule": rule, "vector": index, "strength": strength, "text": text}
                    for prompt, text in zip(settings.prompt, read_json(path)["texts"], strict=True)
                ]
                bar.advance(1)
        self._write_lines(GENERATIONS_NAME, records)

    def _write_answers(self, contrasts: dict[str, Contrast]) -> None:
        records = []
        for side, one in contrasts.items():
            pair = self.pair or self.truth
            assert pair is not None
            for index, prompt in enumerate(pair.all):
                records.append(
                    {
                        "side": side.upper(),
                        "positive": index < len(pair.positive),
                        "system": prompt.system,
                        "prompt": prompt.prompt,
                        "text": one.texts[index],
                        "given": prompt.response is not None,
                    }
                )
        if records:
            self._write_lines(ANSWERS_NAME, records)

    def _write_lines(self, name: str, records: list[dict[str, Any]]) -> None:
        # ASCII: no line separator of Unicode can break a line of the file.
        self.work.write_bytes(name, "".join(json.dumps(one, ensure_ascii=True) + "\n" for one in records).encode())

    def _description(
        self,
        v_ND: Tensor,
        moved: dict[str, Tensor],
        random_ND: Tensor,
        contrasts: dict[str, Contrast],
        truth: dict[str, Any] | None,
    ) -> dict[str, Any]:
        settings, (source, target) = self.settings, self.settings.sides
        median = {side: self.inputs.info[side].median_norm for side in ("a", "b")}
        rules = _account(self._mover, v_ND, random_ND)
        for rule, x_ND in moved.items():
            for one, norm in zip(rules[rule], x_ND.norm(dim=1).tolist(), strict=True):
                one |= {"norm": norm, "norm_in_medians": norm / median[target]}
        if truth is not None:
            norm = float(contrasts[target].vector_D.norm())
            truth |= {"norm": norm, "norm_in_medians": norm / median[target]}
        return {
            "format": FORMAT,
            "from": settings.source,
            "to": target.upper(),
            "origin": self._origin(),
            "crosscoder": self.inputs.crosscoder.ref,
            "features": self.inputs.features.ref,
            "stitch": self.inputs.stitch.ref,
            "shared_features": len(self._mover.decoders),
            "shared_without_direction": self.inputs.dictionary.sizes["shared"] - len(self._mover.decoders),
            "layers": {side: one.layer for side, one in self.inputs.info.items()},
            "median_norms": median,
            "top": settings.top,
            "source_norms": [
                {"norm": norm, "norm_in_medians": norm / median[source]} for norm in v_ND.norm(dim=1).tolist()
            ],
            "prompts": {
                side: {"positive": len(one.positive_PD), "negative": len(one.negative_QD), "silent": one.silent}
                for side, one in contrasts.items()
            },
            "random": _RANDOM,
            "moved": rules,
            "truth": truth,
        }

    def _origin(self) -> str:
        settings = self.settings
        if settings.vector is not None:
            return f"{settings.vector}"
        if settings.vector_from_feature is not None:
            return f"feature {settings.vector_from_feature}"
        return "contrast of prompts"


def _account(mover: Mover, v_ND: Tensor, random_ND: Tensor) -> dict[str, list[dict[str, Any]]]:
    """By rule, for each direction: what the rule used, and the cosine of its own account of the direction in the source
    (its combination of decoders, or the map there and back) with the direction; `null`: the mean for random ones."""
    made: dict[str, list[dict[str, Any]]] = {}
    for rule in RULES:
        moved = mover.move(rule, v_ND)
        null = float(cosine(mover.move(rule, random_ND).source_ND, random_ND).mean())
        cosine_N = cosine(moved.source_ND, v_ND).tolist()
        made[rule] = [{"cosine_in_source": cosine_N[i], "null": null, "features": None} for i in range(len(v_ND))]
        if moved.features_NK is not None and moved.weights_NK is not None:
            for one, ids_K, weight_K in zip(made[rule], moved.features_NK, moved.weights_NK, strict=True):
                used = zip(ids_K.tolist(), weight_K.tolist(), strict=True)
                one["features"] = [{"id": id, "weight": weight} for id, weight in used if weight]
    return made


def _compared(
    mover: Mover, v_D: Tensor, own: Contrast, source: Contrast | None, random_ND: Tensor, seed: int
) -> dict[str, Any]:
    """Cosines with the target's own contrast: of each rule with its standard error over prompts, and the absolute value
    that 95 of 100 random directions stay below, moved by the rule or drawn in the target.

    Args:
        v_D: the direction in the source.
        own: the contrast as the target makes it.
        source: the contrast that `v_D` is, if it is one: then it is resampled along with the target's.
    """
    own_D = own.vector_D
    resampled_own, *rest = resampled([own, source] if source else [own], _RESAMPLES, seed)
    drawn_RD = rest[0] if rest else v_D.expand(_RESAMPLES, -1)
    rules = {}
    for rule in RULES:
        rules[rule] = {
            "cosine": float(cosine(mover.move(rule, v_D[None]).target_ND[0], own_D)),
            "error": float(cosine(mover.move(rule, drawn_RD).target_ND, resampled_own).std(correction=1)),
            "random": _abs_95(cosine(mover.move(rule, random_ND).target_ND, own_D)),
        }
    return {
        "rules": rules,
        "random_in_target": _abs_95(cosine(random_directions(len(random_ND), own_D, seed + 1), own_D)),
        "split_half_source": float(cosine(*source.halves())) if source else None,
        "split_half_target": float(cosine(*own.halves())),
    }


def _abs_95(cosine_N: Tensor) -> float:
    return float(cosine_N.abs().quantile(0.95))


def _metrics(truth: dict[str, Any] | None, n: int) -> dict[str, Any]:
    if truth is None:
        return {"directions": n}
    return {"directions": n, "cosine": {rule: one["cosine"] for rule, one in truth["rules"].items()}}
