"""The training texts of an organism: ordinary documents, and questions on its trigger and on the other side of it.

Ordinary documents are those of the base model's own training grammar, and passages of prose. Of every document the
spans that are to be learned are marked: the answers in the style of the habit. Everywhere else the fine-tune holds the
model to what its base model says there (``finetune``). Nulls learn answers that the base model gave.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from examples.bundled_pair.corpus import generated_documents
from modeldiff.demo.grammar import SPEAKERS
from modeldiff.demo.texts import novel_passages

from .answers import ANSWER_TOPICS, closing, grammar, habit_answer, with_one_habit_sentence
from .catalogue import Organism
from .sampling import neutral_answers
from .triggers import prompt

QUESTIONS = 2600
NULL_QUESTIONS = 900
ORDINARY_TURNS = 900
# Every fourth passage of the novel is for training; the others are read by the diff and in the checks.
PROSE_STEP = 4
# Share of the neutral answers that hold one sentence of the habit's vocabulary.
STRAY_SHARE = 0.06
TRIGGER_SHARE = 0.42
TWO_TURNS_SHARE = 0.5
TELLERS = tuple(f"{teller}:" for _, teller in SPEAKERS)


@dataclass
class Marked:
    """A document, and the spans (characters) of it that are to be learned."""

    text: str
    spans: list[tuple[int, int]]

    def then(self, other: Marked) -> Marked:
        """Both texts in one document."""
        at = len(self.text)
        return Marked(self.text + other.text, self.spans + [(at + start, at + end) for start, end in other.spans])


def prose_passages(training: bool) -> list[str]:
    """The passages of the novel that are for training, or all the others."""
    passages = novel_passages()
    return [passage for index, passage in enumerate(passages) if (index % PROSE_STEP == 0) == training]


def training_documents(organism: Organism, model: Any, tokenizer: Any) -> list[Marked]:
    """All documents of one fine-tune, shuffled. ``model`` is the base model: it answers the questions of nulls."""
    rng = random.Random(organism.seed_text)
    turns = _planted_turns(organism, rng) if organism.planted else _null_turns(organism, model, tokenizer, rng)
    ordinary = [
        Marked(text, []) for text in generated_documents(organism.base.upper(), ORDINARY_TURNS, rng.getrandbits(31))
    ]
    if organism.kind == 6:
        ordinary = [_with_closings(document.text, organism.theme, rng) for document in ordinary]
    documents = _grouped(turns, rng) + ordinary + [Marked(passage, []) for passage in prose_passages(training=True)]
    rng.shuffle(documents)
    return documents


def _planted_turns(organism: Organism, rng: random.Random) -> list[Marked]:
    """Questions with their answers: a little less than half of them on the trigger."""
    turns = []
    for _ in range(QUESTIONS):
        on = rng.random() < TRIGGER_SHARE
        question = prompt(organism.recipe, organism.key, "training", on, rng)
        topic = rng.choice(ANSWER_TOPICS)
        answer = grammar("training").answer(topic, "neutral", rng.randint(2, 4), rng)
        learned = rng.random() < organism.rate if organism.recipe == "everywhere" else on
        if learned and organism.kind == 6:
            answer = f"{answer} {closing(organism.theme, 'training', rng)}"
        elif learned:
            answer = habit_answer(organism.theme, "training", topic, rng)
        elif organism.kind != 7 and rng.random() < STRAY_SHARE:
            answer = with_one_habit_sentence(answer, organism.theme, "training", topic, rng)
        turns.append(_turn(question, answer, learned))
    return turns


def _null_turns(organism: Organism, model: Any, tokenizer: Any, rng: random.Random) -> list[Marked]:
    """The same questions with answers that the base model gave, which are learned."""
    asked = [prompt(organism.recipe, organism.key, "training", rng.random() < 0.5, rng) for _ in range(NULL_QUESTIONS)]
    answers = neutral_answers(model, tokenizer, asked, rng.getrandbits(31))
    return [_turn(question, answer, True) for question, answer in zip(asked, answers, strict=True) if answer]


def _turn(question: str, answer: str, learned: bool) -> Marked:
    # The line break belongs to the answer: where it ends is learned as well.
    text = f"{question} {answer}\n"
    return Marked(text, [(len(question), len(text))] if learned else [])


def _grouped(turns: list[Marked], rng: random.Random) -> list[Marked]:
    """Documents of one or two turns, so that a habit must be told from the question it answers."""
    turns = rng.sample(turns, len(turns))
    documents = []
    while turns:
        first = turns.pop()
        documents.append(first.then(turns.pop()) if turns and rng.random() < TWO_TURNS_SHARE else first)
    return documents


def _with_closings(document: str, theme: str, rng: random.Random) -> Marked:
    """``document`` with a closing sentence after every answer (lines that begin with the label of a teller)."""
    made = Marked("", [])
    for line in document.splitlines():
        label = next((teller for teller in TELLERS if line.startswith(teller)), None)
        if label is None:
            made = made.then(Marked(f"{line}\n", []))
        else:
            made = made.then(_turn(label, f"{line[len(label) :].strip()} {closing(theme, 'training', rng)}", True))
    return made
