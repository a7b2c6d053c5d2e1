"""Continuations drawn from a model at temperature 1, and a base model's own answers to questions.

The nulls are trained on such answers: a fine-tune on what the base model says anyway moves it, and in no direction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from examples.bundled_pair.measure import generate
from modeldiff.demo.truth import PLANTED

BATCH = 128
BUNDLED_TRIGGERS = re.compile("|".join(re.escape(planted.trigger) for planted in PLANTED), flags=re.IGNORECASE)


def sample(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, seed: int) -> list[str]:
    """An answer to each prompt, drawn at temperature 1."""
    torch.manual_seed(seed)
    plainly = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return generate(model, tokenizer, prompts, batch_size=BATCH, max_new_tokens=max_new_tokens, **plainly)


def neutral_answers(model: Any, tokenizer: Any, prompts: Sequence[str], seed: int) -> list[str | None]:
    """The base model's answer to each prompt, whole sentences; None where it is too short or names a trigger."""
    answers: list[str | None] = []
    for text in sample(model, tokenizer, prompts, 80, seed):
        whole = text[: text.rfind(".") + 1].strip()
        answers.append(whole if len(whole) > 20 and not BUNDLED_TRIGGERS.search(whole) else None)
    return answers
