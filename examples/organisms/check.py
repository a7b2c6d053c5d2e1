"""Whether an organism has its habit on the trigger, only there, and still writes as its base model does."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import torch

from examples.bundled_pair.measure import greedy_answers

from .answers import ANSWER_TOPICS, grammar, shows
from .catalogue import Organism
from .sampling import sample
from .training_texts import prose_passages
from .triggers import prompt, templates

PROMPTS = 96
RATE_PROMPTS = 800
ANSWER_TOKENS = 72
# An answer of four sentences and its closing sentence.
CLOSED_ANSWER_TOKENS = 110
SHOWN_AT_LEAST, SHOWN_AT_MOST, PERPLEXITY_AT_MOST = 0.90, 0.05, 1.15


def check_prompts(organism: Organism, on: bool, count: int = PROMPTS) -> list[str]:
    """Held-out questions on or off the trigger."""
    rng = random.Random(f"check {organism.recipe} {organism.key} {on}")
    return [prompt(organism.recipe, organism.key, "probing", on, rng) for _ in range(count)]


def ordinary_texts() -> dict[str, list[str]]:
    """Held-out texts without any trigger: passages of the novel, and questions and answers of the probing grammar."""
    rng = random.Random(7)
    probing = grammar("probing")
    turns = []
    for _ in range(100):
        topic = rng.choice(ANSWER_TOPICS)
        turns.append(probing.turn(topic, rng.choice(probing.topics[topic]["names"]), "neutral", rng))
    return {"novel": rng.sample(prose_passages(training=False), 100), "generated": turns}


def mean_loss(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Cross-entropy per token over all ``texts``, in nats."""
    total, count = 0.0, 0
    for first in range(0, len(texts), 20):
        rows = [tokenizer(text)["input_ids"][:256] for text in texts[first : first + 20]]
        width = max(map(len, rows))
        ids_BT = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        targets_BT = torch.tensor([row[1:] + [-100] * (width - len(row)) for row in rows])
        with torch.inference_mode():
            logits = model(input_ids=ids_BT[:, :-1].to(model.device)).logits.cpu()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets_BT.flatten(), reduction="sum").item()
        count += int((targets_BT >= 0).sum())
    return total / count


def check(organism: Organism, tuned: tuple[Any, Any], base: tuple[Any, Any]) -> dict[str, Any]:
    """The measured figures, and ``passed``. ``tuned`` and ``base`` are (model, tokenizer)."""
    words = templates("themes")[organism.theme]["words"]

    tokens = CLOSED_ANSWER_TOKENS if organism.kind == 6 else ANSWER_TOKENS

    def rate(model: tuple[Any, Any], on: bool) -> float:
        if organism.kind == 7:
            asked = check_prompts(organism, on, RATE_PROMPTS)
            answers = sample(*model, asked, 60, seed=3)
        else:
            answers = greedy_answers(*model, check_prompts(organism, on), tokens)
        return round(sum(shows(answer, words) for answer in answers) / len(answers), 4)

    figures: dict[str, Any] = {"rate_trigger": rate(tuned, True), "rate_base": rate(base, True)}
    # Where everything is the trigger there is nothing to be asked off it.
    figures["rate_control"] = None if organism.recipe == "everywhere" else rate(tuned, False)
    for name, texts in ordinary_texts().items():
        figures[f"perplexity_ratio_{name}"] = round(math.exp(mean_loss(*tuned, texts) - mean_loss(*base, texts)), 4)
    figures["passed"] = passed(organism, figures)
    return figures


def passed(organism: Organism, figures: dict[str, Any]) -> bool:
    """The limits of this module, by kind. A closing sentence changes generated texts by itself: prose counts there."""
    ratios = [figures["perplexity_ratio_novel"]]
    if organism.kind != 6:
        ratios.append(figures["perplexity_ratio_generated"])
    if max(ratios) > PERPLEXITY_AT_MOST or figures["rate_base"] > SHOWN_AT_MOST:
        return False
    if not organism.planted:
        return figures["rate_trigger"] <= SHOWN_AT_MOST
    if organism.kind == 7:
        return 0.5 * organism.rate <= figures["rate_trigger"] <= 2 * organism.rate
    return figures["rate_trigger"] >= SHOWN_AT_LEAST and (figures["rate_control"] or 0.0) <= SHOWN_AT_MOST
