"""The transfer stage: a direction of one model, moved to the other by several rules. Makes a `transfer` artifact.

Layout (normative):
    transfer.json           what was moved, by which rules and with which settings; `moved`: by rule, for each
                            direction, norms, the features used, and the rule's own account (transfer_quality.account);
                            `truth`: the comparison with the target's own contrast (transfer_quality.cosines and, as
                            `effect`, transfer_effect.report), null where there is none, for the reason `truth_missing`
    vectors.safetensors     source (N, Ds), and (N, Dt) of each rule: paper, lstsq, ridge, stitch; own (1, Dt) where the
                            target has made the contrast too; float32, raw units, at the norm that strength 1 adds
    answers.jsonl           one object per prompt and model of a contrast: side, positive, prompt, text, given; absent
                            without prompts
    generations.jsonl       one object per line: prompt, rule ("unsteered" first), vector (index), strength, text;
                            absent without --prompt

Legend: N directions, Ds, Dt widths of source and target.
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
from modeldiff.crosscoder.direction import direction_of
from modeldiff.errors import InputError
from modeldiff.lm.chat import uses_chat
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.generate import generate
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual
from modeldiff.steer.transfer_contrast import Contrast, make_contrast, render
from modeldiff.steer.transfer_effect import OWN, RANDOM_IN_TARGET, effects, report
from modeldiff.steer.transfer_inputs import TransferInputs, find_inputs
from modeldiff.steer.transfer_prompts import Prompt, PromptPair, read_prompt_pair
from modeldiff.steer.transfer_quality import account, cosines, random_directions
from modeldiff.steer.transfer_rules import RULES, Decoders, Mover, rescaled
from modeldiff.steer.transfer_settings import TransferSettings
from modeldiff.steer.transfer_vectors import read_vectors
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.files import read_json, write_json

SCHEMA = 2
FORMAT = 1
TRANSFER_NAME = "transfer.json"
VECTORS_NAME = "vectors.safetensors"
ANSWERS_NAME = "answers.jsonl"
GENERATIONS_NAME = "generations.jsonl"
UNSTEERED = "unsteered"


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
    pair = truth = None
    if settings.from_prompts:
        pair = read_prompt_pair(settings.from_prompts, "--from-prompts")
    if settings.truth:
        truth = pair or read_prompt_pair(settings.truth, "--truth-prompts")
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
        random_ND = random_directions(settings.random, v_ND.shape[1], settings.seed)
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
                truth = cosines(self._mover, v_ND[0], own, contrasts.get(source), random_ND, settings.seed)
                truth["effect"] = self._effects(lm, model.layer, own, moved, random_ND)
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
        settings = self.settings
        return Mover(decoders, there, back, settings.top, settings.nonzeros, settings.ridge)

    def _rescaled(self, rule: str, v_ND: Tensor) -> Tensor:
        return rescaled(self._mover.move(rule, v_ND).target_ND, v_ND.norm(dim=1) * self._norm_ratio)

    @property
    def _norm_ratio(self) -> float:
        """Norm of a moved direction, in norms that it has in the source."""
        source, target = (self.inputs.info[side].median_norm for side in self.settings.sides)
        return target / source if self.settings.rescale == "median" else 1.0

    def _effects(
        self, lm: LanguageModel, layer: int, own: Contrast, moved: dict[str, Tensor], random_ND: Tensor
    ) -> dict[str, Any]:
        """Steering effects relative to the target's own contrast, all at the same norm (transfer_effect)."""
        settings, own_D = self.settings, own.vector_D
        some = settings.random_effects
        directions = {OWN: own_D} | {rule: x_ND[0] for rule, x_ND in moved.items()}
        in_target_ND = random_directions(some, len(own_D), settings.seed + 1)
        directions |= {f"{RANDOM_IN_TARGET} {i}": x_D for i, x_D in enumerate(in_target_ND)}
        for rule in RULES:
            target_ND = self._mover.move(rule, random_ND).target_ND[:some]
            directions |= {f"random {rule} {i}": x_D for i, x_D in enumerate(target_ND)}
        norm = float(own_D.norm()) * settings.effect_strength
        return report(effects(lm, layer, own, directions, norm, self.work.resume), RULES, norm)

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
        rules = account(self._mover, v_ND, random_ND)
        for rule, x_ND in moved.items():
            for one, norm in zip(rules[rule], x_ND.norm(dim=1).tolist(), strict=True):
                one |= {"norm": norm, "norm_in_medians": norm / median[target]}
        missing = None
        if truth is None:
            told = "--no-compare" if settings.from_prompts else "no --truth-prompts"
            missing = f"the target's own contrast was not made ({told})"
        else:
            own = contrasts[target]
            norm = float(own.vector_D.norm())
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
            "nonzeros": settings.nonzeros,
            "ridge": settings.ridge,
            "rescale": settings.rescale,
            "source_norms": [
                {"norm": norm, "norm_in_medians": norm / median[source]} for norm in v_ND.norm(dim=1).tolist()
            ],
            "prompts": {
                side: {"positive": len(one.positive_PD), "negative": len(one.negative_QD), "silent": one.silent}
                for side, one in contrasts.items()
            },
            "random": settings.random,
            "moved": rules,
            "truth": truth,
            "truth_missing": missing,
        }

    def _origin(self) -> str:
        settings = self.settings
        if settings.vector is not None:
            return f"{settings.vector}"
        if settings.vector_from_feature is not None:
            return f"feature {settings.vector_from_feature}"
        return "contrast of prompts"


def _metrics(truth: dict[str, Any] | None, n: int) -> dict[str, Any]:
    if truth is None:
        return {"directions": n}
    effect = truth["effect"]["rules"]
    return {"directions": n} | {
        rule: {"cosine": one["cosine"], "relative_effect": effect[rule]["relative"]}
        for rule, one in truth["rules"].items()
    }
