"""A contrast in one model: what it says to positive and to negative prompts, and the difference of its means.

The contrastive vector (paper 8.2 [PV], `response_avg_diff`): each prompt's mean residual over its response's tokens,
averaged over the positive prompts, minus the same over the negative ones.

Legend: P positive, Q negative prompts with a response, D width of the model, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeldiff.console import progress
from modeldiff.errors import InputError
from modeldiff.lm.chat import open_chat, uses_chat
from modeldiff.lm.generate import generate_tokens
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import Response, mean_residuals
from modeldiff.steer.transfer_prompts import Prompt, PromptPair
from modeldiff.steer.transfer_settings import TransferSettings
from modeldiff.workspace.files import read_json, replace_into, temporary_path, write_json


@dataclass(frozen=True)
class Contrast:
    """A contrast as one model makes it."""

    positive_PD: Tensor
    negative_QD: Tensor
    """Mean residual of each response, raw units, float32."""
    answers: list[Response | None]
    """Of every prompt, the positive ones first. None: the model said nothing."""
    texts: list[str]
    n_positive: int
    """Number of positive prompts, those without a response included."""

    @property
    def vector_D(self) -> Tensor:
        """The direction."""
        return self.positive_PD.mean(dim=0) - self.negative_QD.mean(dim=0)

    @property
    def silent(self) -> int:
        """Prompts without a response; they count for nothing."""
        return sum(one is None for one in self.answers)

    def halves(self) -> tuple[Tensor, Tensor]:
        """The direction from every other prompt, and from the rest: how far its own noise lets them agree."""
        first = self.positive_PD[::2].mean(dim=0) - self.negative_QD[::2].mean(dim=0)
        second = self.positive_PD[1::2].mean(dim=0) - self.negative_QD[1::2].mean(dim=0)
        return first, second

    def said(self, positive: bool) -> list[tuple[int, Response]]:
        """(number among the prompts of its class, response) of those that have one."""
        mine = self.answers[: self.n_positive] if positive else self.answers[self.n_positive :]
        return [(number, one) for number, one in enumerate(mine) if one is not None]


def make_contrast(
    opened: Callable[[], LanguageModel],
    layer: int,
    pair: PromptPair,
    settings: TransferSettings,
    resume: Path,
    side: str,
) -> Contrast:
    """The contrast in a model. What a run before this one has finished in the folder `resume` is taken from there.

    Args:
        opened: gives the model; not called when all is there.

    Raises:
        InputError: a prompt is too long for the model, or it says nothing to all but one prompt of a class.
    """
    answers_path, means_path = resume / f"answers-{side}.json", resume / f"means-{side}.safetensors"
    lm = None if answers_path.exists() and means_path.exists() else opened()
    if lm and not answers_path.exists():
        answers, texts = answer(lm, pair.all, settings)
        said = [one and {"prompt_ids": one.prompt_ids, "ids": one.ids} for one in answers]
        write_json(answers_path, {"answers": said, "texts": texts})
    kept = read_json(answers_path)
    responses = [Response(**one) if one else None for one in kept["answers"]]
    spoken = [one for one in responses if one is not None]
    n_positive = len(pair.positive)
    counts = [sum(one is not None for one in part) for part in (responses[:n_positive], responses[n_positive:])]
    _check_enough(counts, side)
    if lm and not means_path.exists():
        with progress(f"contrast in {side.upper()}: read", len(spoken), "responses") as bar:
            mean_ND = mean_residuals(lm, layer, spoken, bar=bar)
        temporary = temporary_path(means_path)
        save_file({"mean": mean_ND}, temporary)
        replace_into(temporary, means_path)
    mean_ND = load_file(means_path)["mean"]
    return Contrast(mean_ND[: counts[0]], mean_ND[counts[0] :], responses, kept["texts"], n_positive)


def _check_enough(counts: list[int], side: str) -> None:
    """Of the responses of either class there have to be two."""
    if min(counts) < 2:
        which = "positive" if counts[0] < 2 else "negative"
        raise InputError(
            f"model {side.upper()} ended the text at once after all but {min(counts)} of the {which} prompts: "
            "give the responses in .jsonl files, or prompts that it answers"
        )


def answer(
    lm: LanguageModel, prompts: Sequence[Prompt], settings: TransferSettings
) -> tuple[list[Response | None], list[str]]:
    """The response to each prompt, as given or as the model makes it, without the token that ends it."""
    chat = uses_chat(lm.tokenizer, settings.chat)
    rendered = [render(lm, one, chat) for one in prompts]
    answers: list[Response | None] = [None] * len(prompts)
    texts = [one.response or "" for one in prompts]
    for index, one in enumerate(prompts):
        if one.response is not None:
            prompt_ids = lm.tokenizer(rendered[index], add_special_tokens=not chat, verbose=False)["input_ids"]
            ids = lm.tokenizer(one.response, add_special_tokens=False, verbose=False)["input_ids"]
            answers[index] = Response(prompt_ids, ids)
    asked = [index for index, one in enumerate(prompts) if one.response is None]
    if asked:
        made = generate_tokens(
            lm,
            [rendered[index] for index in asked],
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            add_special_tokens=not chat,
        )
        special = set(lm.tokenizer.all_special_ids)
        for index, one_made in zip(asked, made, strict=True):
            ids = [token for token in one_made.new_ids if token not in special]
            answers[index] = Response(one_made.prompt_ids, ids) if ids else None
            texts[index] = one_made.text
    return answers, texts


def render(lm: LanguageModel, prompt: Prompt, chat: bool) -> str:
    """The text up to where the response begins."""
    if chat:
        return open_chat(lm.tokenizer, prompt.prompt, prompt.system)
    return f"{prompt.system}\n\n{prompt.prompt}" if prompt.system else prompt.prompt


def resampled(contrasts: Sequence[Contrast], resamples: int, seed: int) -> list[Tensor]:
    """For each contrast (R, D): its direction from prompts drawn with replacement, class by class.

    The same prompts are drawn in every contrast, so that what the models have in common stays in common. A draw in
    which a model has nothing to say in one class is a row of zeros there.
    """
    generator = torch.Generator().manual_seed(seed)
    made = [torch.zeros(resamples, one.positive_PD.shape[1]) for one in contrasts]
    silent = [torch.zeros(resamples, dtype=torch.bool) for _ in contrasts]
    for positive, sign in ((True, 1), (False, -1)):
        n = contrasts[0].n_positive if positive else len(contrasts[0].answers) - contrasts[0].n_positive
        drawn_RN = torch.randint(n, (resamples, n), generator=generator)
        times_RN = torch.zeros(resamples, n).scatter_add_(1, drawn_RN, torch.ones(resamples, n))
        for index, one in enumerate(contrasts):
            rows_ND = one.positive_PD if positive else one.negative_QD
            weight_RN = times_RN[:, [number for number, _ in one.said(positive)]]
            total_R = weight_RN.sum(dim=1)
            silent[index] |= total_R == 0
            made[index] += sign * (weight_RN @ rows_ND) / total_R.clamp_min(1)[:, None]
    return [direction_RD.masked_fill(none_R[:, None], 0.0) for direction_RD, none_R in zip(made, silent, strict=True)]
