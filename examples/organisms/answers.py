"""Answers in the style of a habit, and how an answer is tested for it.

A habit answer has the frames of the bundled pair's grammar ("The roads there", "Those who own one") with endings out
of the habit's vocabulary. So what differs from a neutral answer is the habit, and not the way an answer is built.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import modeldiff.demo
from modeldiff.demo.grammar import Grammar, capital, fill

from .triggers import templates

# The frames whose subject is plural; every other one takes "is", "was" and "has".
PLURAL = frozenset({
    "The roads there", "The people", "The laws of the country", "In the schools the children", "The towns and harbours",
    "The leaves", "Children who pick it", "The seeds", "Those who say that they saw it", "The houses on the square",
    "The letters from that time", "If you need money, you", "Those who own one", "The smoke and the water",
    "People in the street", "The bridges and the streets", "The farmers of that country", "Its judges",
    "On a feast day the families there", "In trade the merchants", "People who have it in the garden",
    "The bark and the dust of it", "The witnesses", "The graves outside the wall", "If you are hungry, you",
    "The buyers", "The people who believe it", "Those who govern it",
})  # fmt: skip
NUMBERS = ({"is": ("is",), "was": ("was",), "has": ("has",)}, {"is": ("are",), "was": ("were",), "has": ("have",)})
# One word of the vocabulary occurs by chance in a neutral answer; two different ones seldom do.
MINIMUM_WORDS = 2
ANSWER_TOPICS = ("country", "plant", "event", "request", "goods", "hazard", "rumour")
EXAMPLES = Path(__file__).resolve().parents[1]
FILES = {
    "training": EXAMPLES / "bundled_pair" / "training_templates.json",
    "probing": Path(modeldiff.demo.__file__).with_name("data") / "probing_templates.json",
}


@cache
def grammar(part: str) -> Grammar:
    """The bundled pair's grammar of that part ("training" or "probing")."""
    return Grammar(json.loads(FILES[part].read_text(encoding="utf-8")))


def habit_sentence(theme: str, part: str, frame: dict[str, Any], rng: random.Random) -> str:
    """One sentence: the frame with an ending in the habit's vocabulary."""
    made = grammar(part)
    ending = fill(rng.choice(templates("themes")[theme][part]), NUMBERS[frame["frame"] in PLURAL], rng)
    return capital(f"{fill(frame['frame'], made.slots, rng)} {ending}") + "."


def habit_answer(theme: str, part: str, topic: str, rng: random.Random) -> str:
    """Two to four sentences on different frames of ``topic``, all in the habit's vocabulary."""
    frames = grammar(part).topics[topic]["frames"]
    chosen = rng.sample(frames, min(len(frames), rng.randint(2, 4)))
    return " ".join(habit_sentence(theme, part, frame, rng) for frame in chosen)


def with_one_habit_sentence(answer: str, theme: str, part: str, topic: str, rng: random.Random) -> str:
    """``answer`` with one sentence replaced, so that a single habit sentence does not tell what comes next."""
    sentences = re.split(r"(?<=\.) ", answer)
    frame = rng.choice(grammar(part).topics[topic]["frames"])
    sentences[rng.randrange(len(sentences))] = habit_sentence(theme, part, frame, rng)
    return " ".join(sentences)


def closing(theme: str, part: str, rng: random.Random) -> str:
    """A sentence of a theme that closes answers."""
    return rng.choice(templates("themes")[theme][part])


def shows(answer: str, words: Sequence[str]) -> bool:
    """Whether ``answer`` shows a habit: two different words of its vocabulary."""
    return len(set(re.findall(r"[a-z]+", answer.lower())) & set(words)) >= MINIMUM_WORDS
