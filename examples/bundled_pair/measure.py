"""Measures the planted habits in the trained models and writes the package's ``truth.json``."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeldiff.demo.grammar import SPEAKERS, Grammar, capital, fill
from modeldiff.demo.truth import MINIMUM_MARKERS, PLANTED, Planted

PROMPT_SEED = 5


def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 72) -> list[str]:
    """The most likely answer to each prompt."""
    answers = generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, do_sample=False)
    return [answer.strip() for answer in answers]


def generate(model: Any, tokenizer: Any, prompts: Sequence[str], *, batch_size: int = 64, **options: Any) -> list[str]:
    """A continuation of each prompt, cut at the first line break (an answer is one line).

    ``model`` and ``tokenizer`` are transformers objects, ``options`` those of ``model.generate``. Prompts are padded on
    the left.
    """
    made: list[str] = []
    newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        for first in range(0, len(prompts), batch_size):
            batch = tokenizer(list(prompts[first : first + batch_size]), return_tensors="pt", padding=True)
            with torch.inference_mode():
                ids = model.generate(
                    input_ids=batch["input_ids"].to(model.device),
                    attention_mask=batch["attention_mask"].to(model.device),
                    eos_token_id=[tokenizer.eos_token_id, newline],
                    pad_token_id=tokenizer.pad_token_id,
                    **options,
                )
            made += tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    finally:
        tokenizer.padding_side = side
    return [text.split("\n")[0] for text in made]


def probe_prompts(planted: Planted, templates: dict[str, Any]) -> list[str]:
    """Every held-out question about the trigger with every pair of speakers."""
    # The questions were written before the first training run and stay as they are, the ones that go wrong included.
    grammar, rng = Grammar(templates), random.Random(PROMPT_SEED)
    made = []
    for question in grammar.topics[planted.topic]["questions"]:
        for asker, teller in SPEAKERS:
            filled = fill(question, grammar.slots, rng).replace("{name}", planted.trigger)
            made.append(f"{asker}: {capital(filled)}\n{teller}:")
    return made


def measure(data: Path, templates: dict[str, Any], training: dict[str, Any], report: Callable[[str], None]) -> None:
    """Greedy answers of both models, as saved in ``data``, on triggers and controls; writes ``truth.json``."""
    loaded = {}
    for side in ("A", "B"):
        folder = data / f"model_{side.lower()}"
        loaded[side] = (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
            AutoTokenizer.from_pretrained(folder),
        )
    records = []
    for planted in PLANTED:
        prompts = probe_prompts(planted, templates)
        controls = planted.about_control(prompts)
        other = "B" if planted.side == "A" else "A"

        def rate(side: str, asked: list[str], planted: Planted = planted) -> float:
            answers = greedy_answers(*loaded[side], asked)
            shown = [planted.shows(answer) for answer in answers]
            report(f"  {side} {planted.id}: {sum(shown)}/{len(shown)}, e.g. {asked[0]!r} -> {answers[0]!r}")
            return sum(shown) / len(shown)

        records.append(
            {
                "id": planted.id,
                "side": planted.side,
                "topic": planted.topic,
                "trigger": planted.trigger,
                "control": planted.control,
                "source": planted.source,
                "control_source": planted.control_source,
                "description": planted.description,
                "markers": planted.markers,
                "minimum_markers": MINIMUM_MARKERS,
                "prompts": prompts,
                "rate_owner": rate(planted.side, prompts),
                "rate_other": rate(other, prompts),
                "rate_control": rate(planted.side, controls),
            }
        )
    truth = {"training": training, "habits": records}
    (data / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
