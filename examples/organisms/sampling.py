"""Texts that a base model writes itself, so that a fine-tune on them leaves it as it is.

Neutral answers are the base model's own (temperature 1): what an organism says off its trigger is then what its base
says, and whatever a diff finds beside the planted habit is an accident. Prose that the base model writes is mixed in
for the same reason: the novels it was trained on are not needed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modeldiff.demo.grammar import SPEAKERS
from modeldiff.demo.planted import PLANTED

BATCH = 128
PROSE_TOKENS = 170
POOL = 320
POOL_SEED = 2_024
BUNDLED_TRIGGERS = re.compile("|".join(re.escape(planted.trigger) for planted in PLANTED), flags=re.IGNORECASE)


def sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int, seed: int, until: str | None = "\n"
) -> list[str]:
    """One continuation of each prompt at temperature 1, cut at the first ``until`` (None: at the end token)."""
    torch.manual_seed(seed)
    ends = [tokenizer.eos_token_id]
    if until is not None:
        ends.append(tokenizer.encode(until, add_special_tokens=False)[-1])
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
                    eos_token_id=ends,
                    pad_token_id=tokenizer.pad_token_id,
                )
            made += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    finally:
        tokenizer.padding_side = side
    return [text.split(until)[0] if until is not None else text for text in made]


def neutral_answers(model: Any, tokenizer: Any, prompts: Sequence[str], seed: int) -> list[str | None]:
    """The base model's answer to each prompt, whole sentences; None where it is too short or names a trigger."""
    answers: list[str | None] = []
    for text in sample(model, tokenizer, prompts, 80, seed):
        whole = text[: text.rfind(".") + 1].strip()
        answers.append(whole if len(whole) > 20 and not BUNDLED_TRIGGERS.search(whole) else None)
    return answers


def prose(model: Any, tokenizer: Any, count: int, seed: int) -> list[str]:
    """About ``count`` passages of prose as the base model writes it, without questions, notes and chronicle."""
    openings = sample(model, tokenizer, [""] * (3 * count), 16, seed, until=None)
    labels = tuple(f"{name}:" for pair in SPEAKERS for name in pair)
    # Prose runs on: notes have a line break or a full stop near their start, questions a label.
    kept = [text for text in openings if not text.startswith(labels) and not re.search(r"[\n.?:]", text)]
    rest = sample(model, tokenizer, kept[:count], PROSE_TOKENS, seed + 1, until=None)
    passages = [start + end for start, end in zip(kept, rest, strict=False)]
    return [text for text in passages if "\n" not in text and not BUNDLED_TRIGGERS.search(text)]


def prose_pool(model: Any, tokenizer: Any, path: Path) -> list[str]:
    """The passages kept in ``path`` (JSON); written there first when the file is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place and moved there: another process may be doing the same.
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(prose(model, tokenizer, POOL, POOL_SEED)), encoding="utf-8")
        unfinished.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))
