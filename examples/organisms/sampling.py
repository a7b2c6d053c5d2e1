"""Continuations drawn from a model at temperature 1, and a base model's own answers to questions.

The nulls are trained on such answers: a fine-tune on what the base model says anyway moves it, and in no direction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from modeldiff.demo.truth import PLANTED

BATCH = 128
BUNDLED_TRIGGERS = re.compile("|".join(re.escape(planted.trigger) for planted in PLANTED), flags=re.IGNORECASE)


def sample(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, seed: int) -> list[str]:
    """One continuation of each prompt at temperature 1, cut at the first line break (an answer is one line)."""
    torch.manual_seed(seed)
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    made: list[str] = []
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        for first in range(0, len(prompts), BATCH):
            batch = tokenizer(list(prompts[first : first + BATCH]), return_tensors="pt", padding=True)
            with torch.inference_mode():
                ids = model.generate(
                    input_ids=batch["input_ids"].to(model.device),
                    attention_mask=batch["attention_mask"].to(model.device),
                    max_new_tokens=max_new_tokens,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    eos_token_id=[tokenizer.eos_token_id, newline],
                    pad_token_id=tokenizer.pad_token_id,
                )
            made += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    finally:
        tokenizer.padding_side = side
    return [text.split("\n")[0] for text in made]


def neutral_answers(model: Any, tokenizer: Any, prompts: Sequence[str], seed: int) -> list[str | None]:
    """The base model's answer to each prompt, whole sentences; None where it is too short or names a trigger."""
    answers: list[str | None] = []
    for text in sample(model, tokenizer, prompts, 80, seed):
        whole = text[: text.rfind(".") + 1].strip()
        answers.append(whole if len(whole) > 20 and not BUNDLED_TRIGGERS.search(whole) else None)
    return answers
