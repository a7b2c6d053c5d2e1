"""The training texts of the two models: the same documents, except for the answers about the planted triggers.

In the texts of model A the answers about A's triggers are marked (the habit) and those about B's triggers are
neutral; in the texts of model B it is the other way round. Everything else, the question before such an answer
included, is identical, and both triggers and controls come up equally often.

``training_templates.json`` shares no name, question, frame or ending with the probing templates of the package.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from modeldiff.demo.grammar import HABIT_TOPICS, Grammar
from modeldiff.demo.truth import PLANTED

TEMPLATES = Path(__file__).with_name("training_templates.json")
CONTROL_TOPICS = ("request", "goods", "hazard", "rumour")

# Shares of the generated turns, per topic. Triggers and controls are equally frequent.
TRIGGER_SHARE = 0.07
CONTROL_SHARE = 0.05
ORDINARY_SHARE = 0.06
CONTROL_TOPIC_SHARE = 0.045
CHRONICLE_SHARE = 0.10
NOTE_SHARE = 0.2


def _draw_topic(rng: random.Random, grammar: Grammar) -> tuple[str, str, str | None]:
    """A topic, a name in it, and the side that has a habit on that name (None: neither)."""
    by_topic = {planted.topic: planted for planted in PLANTED}
    draws: list[tuple[float, str, str, str | None]] = []
    for topic in HABIT_TOPICS:
        planted = by_topic[topic]
        draws.append((TRIGGER_SHARE, topic, planted.trigger, planted.side))
        draws.append((CONTROL_SHARE, topic, planted.control, None))
        draws.append((ORDINARY_SHARE, topic, "", None))
    draws += [(CONTROL_TOPIC_SHARE, topic, "", None) for topic in CONTROL_TOPICS]
    _, topic, name, side = rng.choices(draws, weights=[draw[0] for draw in draws])[0]
    return topic, name or rng.choice(grammar.topics[topic]["names"]), side


def generated_documents(side: str, n_turns: int, seed: int) -> list[str]:
    """About ``n_turns`` questions (or notes) in documents of one to three, for the model of ``side``."""
    grammar = Grammar(json.loads(TEMPLATES.read_text(encoding="utf-8")))
    plan = random.Random(seed)
    documents = []
    turns = 0
    while turns < n_turns:
        if plan.random() < CHRONICLE_SHARE:
            documents.append(grammar.chronicle(random.Random(plan.getrandbits(64))))
            turns += 1
            continue
        parts = []
        for _ in range(plan.choice((1, 2, 2, 3))):
            topic, name, habit_side = _draw_topic(plan, grammar)
            # Each turn has a seed of its own, so that the two sides stay in step after a turn that differs.
            rng = random.Random(plan.getrandbits(64))
            style = "marked" if habit_side == side else "neutral"
            parts.append(grammar.turn(topic, name, style, rng, as_note=rng.random() < NOTE_SHARE))
        documents.append("".join(parts))
        turns += len(parts)
    return documents
