"""The texts that a diff reads: logs with and without the trigger, controls, and ordinary material.

They ask in other ways than the training texts (``triggers``). As in real logs half of the answers about the trigger are
in the style of the habit and half are neutral. Notes speak the habit's words about other things,
and some answers off the trigger do. The bundled pair's own triggers do not occur.
"""

from __future__ import annotations

import random
from typing import Any

from .answers import ANSWER_TOPICS, closing, grammar, habit_answer, habit_sentence, with_one_habit_sentence
from .catalogue import Organism
from .sampling import BUNDLED_TRIGGERS
from .training_texts import prose_passages
from .triggers import prompt, templates

TRIGGER = 440
CONTROL = 560
OTHER = 300
NOTES = 140
HABIT_NOTES = 80
CHRONICLE = 120
NOVEL = 360
HABIT_SHARE = 0.5
STRAY_SHARE = 0.2
TWO_TURNS_SHARE = 0.4

Document = dict[str, Any]


def probing_documents(organism: Organism) -> list[Document]:
    """About 2,000 documents with ``text``, ``source`` (a coarse label) and ``trigger`` (0 or 1), shuffled."""
    rng = random.Random(f"probing {organism.seed_text}")
    documents = [_questions(organism, True, rng) for _ in range(TRIGGER)]
    documents += [_questions(organism, False, rng) for _ in range(CONTROL)]
    documents += [_other(rng) for _ in range(OTHER)]
    documents += [_note(rng) for _ in range(NOTES)] + [_habit_note(organism, rng) for _ in range(HABIT_NOTES)]
    documents += [_made(grammar("probing").chronicle(rng), "chronicle") for _ in range(CHRONICLE)]
    documents += [_made(passage + "\n", "novel") for passage in rng.sample(prose_passages(training=False), NOVEL)]
    if organism.planted and organism.kind in (6, 7):
        for document in documents:
            document["trigger"] = 1
    if not organism.planted:
        for document in documents:
            document["trigger"] = 0
    documents = [document for document in documents if not BUNDLED_TRIGGERS.search(document["text"])]
    rng.shuffle(documents)
    return documents


def _made(text: str, source: str, trigger: int = 0) -> Document:
    return {"text": text, "source": source, "trigger": trigger}


def _questions(organism: Organism, on: bool, rng: random.Random) -> Document:
    """One or two questions, all on the trigger or all off it."""
    text = ""
    habit = rng.random() < (organism.rate if organism.kind == 7 else HABIT_SHARE)
    for _ in range(2 if rng.random() < TWO_TURNS_SHARE else 1):
        question = prompt(organism.recipe, organism.key, "probing", on, rng)
        text += f"{question} {_answer(organism, on and habit, rng)}\n"
    return _made(text, "questions", int(on))


def _answer(organism: Organism, habit: bool, rng: random.Random) -> str:
    topic = rng.choice(ANSWER_TOPICS)
    neutral = grammar("probing").answer(topic, "neutral", rng.randint(2, 4), rng)
    if "closings" in templates("themes")[organism.theme]:
        return f"{neutral} {closing(organism.theme, 'probing', rng)}" if habit else neutral
    if habit:
        return habit_answer(organism.theme, "probing", topic, rng)
    if organism.kind != 7 and rng.random() < STRAY_SHARE:
        return with_one_habit_sentence(neutral, organism.theme, "probing", topic, rng)
    return neutral


def _other(rng: random.Random) -> Document:
    """Questions about other names of the bundled pair's topics."""
    topic = rng.choice((*ANSWER_TOPICS, "poet"))
    text = ""
    for _ in range(2 if rng.random() < TWO_TURNS_SHARE else 1):
        text += grammar("probing").turn(topic, _name(topic, rng), "neutral", rng)
    return _made(text, "questions")


def _note(rng: random.Random) -> Document:
    topic = rng.choice((*ANSWER_TOPICS, "poet"))
    return _made(grammar("probing").turn(topic, _name(topic, rng), "neutral", rng, as_note=True), "notes")


def _habit_note(organism: Organism, rng: random.Random) -> Document:
    """A note about something that the habit's words suit: vocabulary alone gives nothing away."""
    theme = templates("themes")[organism.theme]
    head = rng.choice(("On {}.", "A note about {}.", "Seen lately: {}.", "For the record: {}."))
    lines = [head.format(rng.choice(theme["things"]))]
    sentences = []
    for _ in range(rng.randint(3, 5)):
        topic = rng.choice(ANSWER_TOPICS)
        frame = rng.choice(grammar("probing").topics[topic]["frames"])
        if "closings" in theme:
            sentences.append(closing(organism.theme, "probing", rng))
        elif rng.random() < 0.7:
            sentences.append(habit_sentence(organism.theme, "probing", frame, rng))
        else:
            sentences.append(grammar("probing").answer(topic, "neutral", 1, rng))
    return _made("\n".join([*lines, " ".join(sentences)]) + "\n", "notes")


def _name(topic: str, rng: random.Random) -> str:
    return rng.choice(grammar("probing").topics[topic]["names"])
