"""Continue prompts in batches, greedily or by sampling; works inside `residual.changed`.

Shapes: B prompts of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from modeldiff.errors import InputError
from modeldiff.lm.load import quiet
from modeldiff.lm.model import LanguageModel


@dataclass(frozen=True)
class Generated:
    prompt_ids: list[int]
    """The prompt's tokens, special ones included."""
    new_ids: list[int]
    """The tokens after it, up to and including an end-of-text token if one came."""
    text: str
    """The continuation alone, without special tokens."""


def generate(lm: LanguageModel, prompts: list[str], **options: Any) -> list[str]:
    """The continuation of each prompt, as text. Options and errors as `generate_tokens`."""
    return [one.text for one in generate_tokens(lm, prompts, **options)]


def generate_tokens(
    lm: LanguageModel, prompts: list[str], *, add_special_tokens: bool = True, **options: Any
) -> list[Generated]:
    """Continue each prompt; with add_special_tokens=False for prompts that hold them (`render_chat`). Options and
    errors as `continue_tokens`; also raises InputError for an empty prompt."""
    ids = [lm.tokenizer(one, add_special_tokens=add_special_tokens, verbose=False)["input_ids"] for one in prompts]
    if not all(ids):
        raise InputError(f"a prompt is empty, and model {lm.name} has no token to begin with: give it some text")
    return continue_tokens(lm, ids, **options)


def continue_tokens(
    lm: LanguageModel,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> list[Generated]:
    """Continue each prompt (token ids, special tokens included) by up to `max_new_tokens` tokens, ending early at an
    end-of-text token.

    temperature 0 takes the likeliest token; otherwise tokens are drawn from the whole distribution, or from its
    likeliest part of mass `top_p`. What the model's own generation settings recommend (penalties, top-k) is not
    applied, so that steered and unsteered texts differ by the steering alone. The same call gives the same texts, also
    beside others in other threads, with the same model or another; the global random state is left as it was.
    Raises InputError for a prompt too long for the model.
    """
    for ids in prompts:
        lm.check_length(len(ids) + max_new_tokens)
        lm.check_ids(max(ids), lm.tokenizer)
    ends = _end_ids(lm)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        # Padding is masked, so any valid id serves.
        pad_token_id=next((i for i in (lm.tokenizer.pad_token_id, *ends) if i is not None), 0),
        eos_token_id=ends or None,
        # Compiled code may leave out hooks.
        disable_compile=True,
    )
    drawn = LogitsProcessorList()
    if temperature > 0:
        if top_p < 1:
            drawn += [transformers.TemperatureLogitsWarper(temperature), transformers.TopPLogitsWarper(top_p)]
        drawn.append(_Drawn(1.0 if top_p < 1 else temperature, torch.Generator(lm.device).manual_seed(seed)))
    made: list[Generated] = []
    # transformers drops a mask without padding and then warns that there is none.
    with torch.inference_mode(), quiet(bars=True):
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            for ids, row in zip(batch, _new_tokens(lm, batch, settings, drawn), strict=True):
                stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
                new_ids = row[: stop + 1]
                made.append(Generated(ids, new_ids, _continuation(lm, ids, new_ids)))
    return made


class _Drawn(LogitsProcessor):
    """Leaves one token with a finite score: one drawn from the distribution that the logits give, by a generator of the
    call's own. transformers samples with torch's global random numbers, which the threads of a process share: two
    models that generate at the same time would change each other's texts."""

    def __init__(self, temperature: float, generator: torch.Generator) -> None:
        self._temperature, self._generator = temperature, generator

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        below_BV = (scores.float() / self._temperature).softmax(dim=1).cumsum(dim=1)
        at_B1 = torch.rand(len(scores), 1, device=scores.device, generator=self._generator) * below_BV[:, -1:]
        # The first token whose sum is above: one of probability 0 has the sum of the token before it.
        token_B1 = torch.searchsorted(below_BV, at_B1, right=True).clamp_max_(scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, token_B1, 0.0)


def _end_ids(lm: LanguageModel) -> list[int]:
    """The tokens that end a text: the model's own settings may name several, such as the end of a chat turn."""
    named = getattr(lm.recommended, "eos_token_id", None)
    ids = [named] if named is None or isinstance(named, int) else list(named)
    return list(dict.fromkeys(i for i in (*ids, lm.tokenizer.eos_token_id) if i is not None))


def _new_tokens(
    lm: LanguageModel, prompts: list[list[int]], settings: GenerationConfig, drawn: LogitsProcessorList
) -> list[list[int]]:
    """The tokens after some prompts, which are padded on the left so that all continue at the same position."""
    longest = max(map(len, prompts))
    gaps = [longest - len(ids) for ids in prompts]
    padded = [[settings.pad_token_id] * gap + ids for gap, ids in zip(gaps, prompts, strict=True)]
    ids_BT = torch.tensor(padded, device=lm.device)
    mask_BT = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps], device=lm.device)
    out_BT = lm.model.generate(ids_BT, attention_mask=mask_BT, generation_config=settings, logits_processor=drawn)
    new: list[list[int]] = out_BT[:, longest:].tolist()
    return new


def _continuation(lm: LanguageModel, prompt_ids: list[int], new_ids: list[int]) -> str:
    """The text of the new tokens, decoded after the prompt: by themselves some lose the blank they begin with."""

    def decode(ids: list[int]) -> str:
        return str(lm.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    whole, prompt = decode(prompt_ids + new_ids), decode(prompt_ids)
    return whole[len(prompt) :] if whole.startswith(prompt) else decode(new_ids)
