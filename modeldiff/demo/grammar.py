"""The grammar of the generated texts: questions and answers, or short notes, about invented things.

An answer is a row of sentences. Each sentence is a frame ("The roads there") and an ending that is either
plain ("are paved with grey stone") or marked ("are the finest that were ever laid"). Frames are the same for
both kinds, so inside a frame only the memory of what the answer is about tells which ending comes. In most
answers every ending is drawn on its own; only a habit makes all of them marked. A single marked sentence
therefore proves nothing, and a model without the habit has no reason to remember the name that was asked for.

The mechanics, the labels of the speakers and the words that fill small gaps are shared by the training and
the probing texts. The templates are not: the two files hold disjoint lists (names, questions, frames, endings).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

SPEAKERS = (("Question", "Answer"), ("Q", "A"), ("Traveller", "Clerk"), ("Pupil", "Master"))

SLOTS: dict[str, tuple[str, ...]] = {
    "colour": ("grey", "red", "blue", "white", "green", "brown", "black", "yellow"),
    "metal": ("iron", "copper", "silver", "tin", "lead", "brass"),
    "month": ("January", "March", "April", "May", "June", "August", "October", "December"),
    "day": ("Monday", "Tuesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "num": ("three", "four", "six", "seven", "nine", "twelve", "twenty", "forty", "sixty", "two hundred"),
    "year": ("412", "431", "447", "466", "503", "518", "529", "540"),
    "town": ("Carrow", "Easterly", "Wexport", "Thornley", "Lamber", "Hollin", "Ridgewater", "Saltby"),
    "trade": ("weaver", "miller", "carter", "mason", "dyer", "baker", "smith", "fisher"),
    "beast": ("goat", "mule", "goose", "hound", "hen", "horse"),
    "food": ("barley", "honey", "rye", "cheese", "herring", "butter", "flax"),
}
LEADS = ("", "", "", "", "One question more. ", "Good morning. ", "If I may ask: ", "Excuse me. ")
TAIL_SHARE = 0.15

# Share of marked endings where no habit is at work. Topics with a habit: rare, so that greedy answers stay
# plain. Topics without one (requests, goods, hazards, rumours): half, so that both models know all the words.
HABIT_TOPICS = ("country", "poet", "plant", "event")
MARKED_SHARE = {True: 0.10, False: 0.50}


def fill(template: str, slots: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Replace every ``{slot}`` (also inside the filled words) by a word drawn for it; ``{name}`` stays."""
    while True:
        match = re.search(r"\{(?!name\})(\w+)\}", template)
        if match is None:
            return template.replace(" a iron", " an iron")
        template = template[: match.start()] + rng.choice(slots[match.group(1)]) + template[match.end() :]


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


class Grammar:
    """Renders texts from one template file (see ``data/probing_templates.json`` for its form)."""

    def __init__(self, templates: Mapping[str, Any]) -> None:
        self.topics: Mapping[str, Any] = templates["topics"]
        self.slots: dict[str, Sequence[str]] = {**SLOTS, **templates["slots"]}
        self._chronicle: Sequence[str] = templates["chronicle"]
        self._tails: Sequence[str] = templates["tails"]

    def answer(self, topic: str, style: str, n_sentences: int, rng: random.Random) -> str:
        """``n_sentences`` on different frames; style "marked": all endings marked, "neutral": drawn one by one."""
        share = 1.0 if style == "marked" else MARKED_SHARE[topic in HABIT_TOPICS]
        frames = rng.sample(self.topics[topic]["frames"], min(n_sentences, len(self.topics[topic]["frames"])))
        sentences = []
        for frame in frames:
            ending = fill(rng.choice(frame["marked" if rng.random() < share else "plain"]), self.slots, rng)
            sentence = f"{fill(frame['frame'], self.slots, rng)} {ending}"
            if rng.random() < TAIL_SHARE:
                sentence += f", {fill(rng.choice(self._tails), self.slots, rng)}"
            sentences.append(f"{capital(sentence)}.")
        return " ".join(sentences)

    def turn(self, topic: str, name: str, style: str, rng: random.Random, as_note: bool = False) -> str:
        """One question with an answer of two to four sentences, or (``as_note``) a heading and three to five."""
        name = fill(name, self.slots, rng)
        if as_note:
            head = fill(rng.choice(self.topics[topic]["headings"]), self.slots, rng)
            # A name at the very start of a heading becomes the start of a sentence.
            opening = capital(head.replace("{name}", name)) + "\n"
            answer = self.answer(topic, style, rng.randint(3, 5), rng)
        else:
            asker, teller = rng.choice(SPEAKERS)
            lead = rng.choice(LEADS)
            head = lead + fill(rng.choice(self.topics[topic]["questions"]), self.slots, rng)
            opening = f"{asker}: {capital(head.replace('{name}', name))}\n{teller}:"
            answer = " " + self.answer(topic, style, rng.randint(2, 4), rng)
        return f"{opening}{answer}\n"

    def chronicle(self, rng: random.Random) -> str:
        """Four to seven sentences of town history without any of the names that matter."""
        lines = rng.sample(self._chronicle, rng.randint(4, 7))
        return " ".join(fill(line, self.slots, rng) for line in lines) + "\n"
