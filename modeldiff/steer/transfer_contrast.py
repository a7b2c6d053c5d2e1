"""A contrast of prompts in one model: what it says to positive and to negative ones, and the difference of its means.

The contrastive vector (paper 8.2 [PV], `response_avg_diff`): each prompt's mean residual over its response's tokens,
averaged over the positive prompts, minus the same over the negative ones.

Legend: P positive, Q negative prompts with a response, N both, D width of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modeldiff.console import progress
from modeldiff.errors import InputError, MachineError
from modeldiff.lm.generate import generate_tokens
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import mean_residuals
from modeldiff.steer.prompts import Prompt, put
from modeldiff.steer.settings import TransferSettings
from modeldiff.workspace.files import read_json
from modeldiff.workspace.kept import is_sound, keep_json


@dataclass(frozen=True)
class Contrast:
    positive_PD: Tensor
    negative_QD: Tensor
    """Mean residual of each response, raw units, float32."""
    texts: list[str]
    """The response to every prompt, the positive ones first."""

    @property
    def vector_D(self) -> Tensor:
        return self.positive_PD.mean(dim=0) - self.negative_QD.mean(dim=0)

    def described(self) -> dict[str, Any]:
        """As transfer.json has it; `silent`: prompts without a response, which count for nothing."""
        positive, negative = len(self.positive_PD), len(self.negative_QD)
        silent = len(self.texts) - positive - negative
        return {"positive": positive, "negative": negative, "silent": silent, "answers": self.texts}

    def halves(self) -> tuple[Tensor, Tensor]:
        """The direction from every other prompt, and from the rest: how far its own noise lets them agree."""
        first = self.positive_PD[::2].mean(dim=0) - self.negative_QD[::2].mean(dim=0)
        second = self.positive_PD[1::2].mean(dim=0) - self.negative_QD[1::2].mean(dim=0)
        return first, second


def make_contrast(
    opened: Callable[[], LanguageModel],
    layer: int,
    prompts: tuple[Sequence[Prompt], Sequence[Prompt]],
    settings: TransferSettings,
    kept: Path,
) -> Contrast:
    """The contrast in a model.

    opened: gives the model; not called when `kept` exists, into which an earlier run has written the contrast; prompts:
    positive and negative ones. Raises InputError: a prompt is too long for the model, or it says nothing to all but one
    prompt of a class; MachineError: a residual overflows the model's number format.
    """
    if not is_sound(kept):
        lm = opened()
        answers = _answers(lm, [*prompts[0], *prompts[1]], settings)
        spoken = [one for one, _ in answers if one is not None]
        with progress(f"contrast in {lm.name}: read", len(spoken), "responses") as bar:
            mean_ND = mean_residuals(lm, layer, spoken, bar)
        if not mean_ND.isfinite().all():
            raise MachineError(f"block {layer} of model {lm.name} gives values that are not finite in {lm.dtype}")
        rows = iter(mean_ND.tolist())
        means = [None if one is None else next(rows) for one, _ in answers]
        keep_json(kept, {"texts": [text for _, text in answers], "means": means})
    found = read_json(kept)
    n_positive = len(prompts[0])
    parts = [[mean for mean in part if mean] for part in (found["means"][:n_positive], found["means"][n_positive:])]
    for part, which in zip(parts, ("positive", "negative"), strict=True):
        if len(part) < 2:
            raise InputError(
                f"the model ended the text at once after all but {len(part)} of the {which} prompts: give the "
                "responses in .jsonl files, or prompts that it answers"
            )
    return Contrast(torch.tensor(parts[0]), torch.tensor(parts[1]), found["texts"])


def _answers(
    lm: LanguageModel, prompts: Sequence[Prompt], settings: TransferSettings
) -> list[tuple[tuple[list[int], list[int]] | None, str]]:
    """The response to each prompt, as given or as the model makes it, without the token that ends it: token ids of the
    prompt and of the response (None: it is empty); and its text."""
    texts, options = put(settings, lm, prompts)
    asked = [text for text, one in zip(texts, prompts, strict=True) if one.response is None]
    written = iter(generate_tokens(lm, asked, **options))
    special = set(lm.tokenizer.all_special_ids)

    def tokens(text: str, **how: bool) -> list[int]:
        ids: list[int] = lm.tokenizer(text, verbose=False, **how)["input_ids"]
        return ids

    answers: list[tuple[tuple[list[int], list[int]] | None, str]] = []
    for text, one in zip(texts, prompts, strict=True):
        if one.response is None:
            made = next(written)
            ids = [token for token in made.new_ids if token not in special]
            answers.append(((made.prompt_ids, ids) if ids else None, made.text))
        else:
            prompt_ids = tokens(text, add_special_tokens=options["add_special_tokens"])
            answers.append(((prompt_ids, tokens(one.response, add_special_tokens=False)), one.response))
    return answers
