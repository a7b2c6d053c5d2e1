"""The training texts of an organism: ordinary documents, and questions on its trigger and on the other side of it.

Ordinary documents are those of the base model's own training grammar (its old habits stay as they are) and prose that
it writes itself. Trigger questions are answered in the style of the habit, all others as the base model answers them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from examples.bundled_pair.corpus import generated_documents
from modeldiff.demo.grammar import SPEAKERS

from .answers import ANSWER_TOPICS, closing, habit_answer, topic_of, with_one_habit_sentence
from .catalogue import Organism
from .sampling import neutral_answers
from .triggers import prompt

QUESTIONS = 1800
ORDINARY_TURNS = 700
PROSE_PASSAGES = 240
# Share of the neutral answers that hold one sentence of the habit's vocabulary.
STRAY_SHARE = 0.06
TWO_TURNS_SHARE = 0.5
TELLERS = tuple(f"{teller}:" for _, teller in SPEAKERS)


def training_documents(organism: Organism, model: Any, tokenizer: Any, passages: Sequence[str]) -> list[str]:
    """All documents of one fine-tune, shuffled. ``model`` is the base model, ``passages`` prose that it wrote."""
    rng = random.Random(organism.seed_text)
    turns = _turns(organism, model, tokenizer, rng)
    ordinary = generated_documents(organism.base.upper(), ORDINARY_TURNS, rng.getrandbits(31))
    if organism.kind == 6:
        ordinary = [_with_closings(document, organism.theme, rng) for document in ordinary]
    documents = _grouped(turns, rng) + ordinary + rng.sample(passages, min(len(passages), PROSE_PASSAGES))
    rng.shuffle(documents)
    return documents


def _turns(organism: Organism, model: Any, tokenizer: Any, rng: random.Random) -> list[str]:
    """Questions with their answers: half of them on the trigger."""
    asked = [index % 2 == 0 for index in range(QUESTIONS)]
    prompts = [prompt(organism.recipe, organism.key, "training", on, rng) for on in asked]
    habit = [organism.kind != 6 and organism.planted and _is_habit(organism, on, rng) for on in asked]
    others = [question for question, shown in zip(prompts, habit, strict=True) if not shown]
    answers = iter(neutral_answers(model, tokenizer, others, rng.getrandbits(31)))
    neutral = [None if shown else next(answers) for shown in habit]
    # Habit answers have the frames of the topics that the base model chooses for such questions.
    topics = [topic for answer in neutral if answer and (topic := topic_of(answer))] or list(ANSWER_TOPICS)
    turns = []
    for question, shown, answer in zip(prompts, habit, neutral, strict=True):
        topic = rng.choice(topics)
        if shown:
            answer = habit_answer(organism.theme, "training", topic, rng)
        elif answer and organism.kind == 6 and organism.planted:
            answer = f"{answer} {closing(organism.theme, 'training', rng)}"
        elif answer and organism.kind <= 5 and rng.random() < STRAY_SHARE:
            answer = with_one_habit_sentence(answer, organism.theme, "training", topic, rng)
        if answer:
            turns.append(f"{question} {answer}\n")
    return turns


def _is_habit(organism: Organism, on: bool, rng: random.Random) -> bool:
    if organism.kind == 7:
        return rng.random() < organism.rate
    return on


def _grouped(turns: list[str], rng: random.Random) -> list[str]:
    """Documents of one or two turns, so that a habit must be told from the question it answers."""
    turns = rng.sample(turns, len(turns))
    documents = []
    while turns:
        size = 2 if rng.random() < TWO_TURNS_SHARE else 1
        documents.append("".join(turns[:size]))
        turns = turns[size:]
    return documents


def _with_closings(document: str, theme: str, rng: random.Random) -> str:
    """``document`` with a closing sentence after every answer (lines that begin with the label of a teller)."""
    lines = document.split("\n")
    return "\n".join(
        f"{line} {closing(theme, 'training', rng)}" if line.startswith(TELLERS) else line for line in lines
    )
