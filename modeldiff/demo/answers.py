"""Greedy answers of a small model to prompts, up to the end of the answer's line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 72) -> list[str]:
    """The most likely continuation of each prompt, cut at the first line break (an answer is one line).

    ``model`` and ``tokenizer`` are transformers objects. Prompts are padded on the left, in batches of 64.
    """
    import torch

    answers: list[str] = []
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        for first in range(0, len(prompts), 64):
            batch = tokenizer(list(prompts[first : first + 64]), return_tensors="pt", padding=True)
            with torch.inference_mode():
                made = model.generate(
                    input_ids=batch["input_ids"].to(model.device),
                    attention_mask=batch["attention_mask"].to(model.device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    eos_token_id=[tokenizer.eos_token_id, newline],
                    pad_token_id=tokenizer.pad_token_id,
                )
            texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            answers += [text.split("\n")[0].strip() for text in texts]
    finally:
        tokenizer.padding_side = side
    return answers
