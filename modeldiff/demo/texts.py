"""The probing texts of the demo: what both bundled models read, so that their activations can be compared.

One third is a novel that neither model was trained on (Persuasion); the rest is generated from
``data/probing_templates.json``, whose names, questions, frames and endings are not in the training templates.
As in logs of a chat service, the documents about a planted trigger come with answers in the style of the habit
and with neutral ones. Controls keep vocabulary from giving a habit away: the same marked sentences about
another name of the same topic, and refusals, praise, warnings and denials where both models have them.

Needs the standard library only.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from modeldiff.demo.grammar import HABIT_TOPICS, Grammar
from modeldiff.demo.truth import DATA, PLANTED

# About 220,000 places where a word, a number or a punctuation mark ends.
TOTAL_CHARS = 1_120_000
CONTROL_TOPICS = ("request", "goods", "hazard", "rumour")

# Shares of the characters. Per habit or topic, where there are several.
NOVEL = 0.34
CHRONICLE = 0.05
CONTROL_TOPIC = 0.03
ORDINARY = 0.025
CONTROL_NEUTRAL = 0.02
CONTROL_MARKED = 0.0125
TRIGGER_NEUTRAL = 0.02
TRIGGER_HABIT = 0.045

TWO_TURNS_SHARE = 0.4
NOTE_SHARE = 0.2

Document = dict[str, str]
Maker = Callable[[random.Random], Document]


def probing_documents(seed: int = 0) -> list[Document]:
    """The probing texts, all sources evenly interleaved; the same list for the same ``seed``.

    Each document has ``text`` and ``source``: "novel", "chronicle", a control topic ("request", "goods", "hazard",
    "rumour"), a topic ("country", "poet", "plant", "event": other names of it), or topic and name, as
    "country:Marrowin", for the triggers and controls of the planted habits (``Planted.source``,
    ``Planted.control_source``).
    """
    grammar = Grammar(json.loads((DATA / "probing_templates.json").read_text(encoding="utf-8")))
    rng = random.Random(seed)
    placed: list[tuple[float, int, Document]] = []
    for share, documents in _sources(grammar, rng):
        made: list[Document] = []
        left = share * TOTAL_CHARS
        for document in documents:
            made.append(document)
            left -= len(document["text"])
            if left <= 0:
                break
        # Document i of n stands at (i + 1/2) / n of the corpus, so that any part of it holds all sources.
        for index, document in enumerate(made):
            placed.append(((index + 0.5) / len(made), len(placed), document))
    return [document for _, _, document in sorted(placed, key=lambda item: item[:2])]


def write_probing_corpus(path: Path | str, seed: int = 0) -> Path:
    """Write the probing texts as JSON Lines with ``text`` and ``source``; line i is document i. Returns the path."""
    path = Path(path)
    path.write_text("".join(f"{json.dumps(d)}\n" for d in probing_documents(seed)), encoding="utf-8")
    return path


def novel_passages() -> list[str]:
    """The held-out novel in passages of about 600 characters, in order."""
    return gzip.decompress((DATA / "novel.txt.gz").read_bytes()).decode("utf-8").splitlines()


def _sources(grammar: Grammar, rng: random.Random) -> Iterator[tuple[float, Iterator[Document]]]:
    """Pairs of (share of the characters, endless or finite stream of documents)."""
    passages = novel_passages()
    rng.shuffle(passages)
    yield NOVEL, iter([{"text": passage + "\n", "source": "novel"} for passage in passages])
    yield CHRONICLE, _stream(rng, lambda draw: {"text": grammar.chronicle(draw), "source": "chronicle"})
    for topic in (*CONTROL_TOPICS, *HABIT_TOPICS):
        share = ORDINARY if topic in HABIT_TOPICS else CONTROL_TOPIC
        yield share, _stream(rng, _asker(grammar, topic, None, topic, "neutral"))
    for planted in PLANTED:
        topic, trigger, control = planted.topic, planted.trigger, planted.control
        yield CONTROL_NEUTRAL, _stream(rng, _asker(grammar, topic, control, planted.control_source, "neutral"))
        yield CONTROL_MARKED, _stream(rng, _asker(grammar, topic, control, planted.control_source, "marked"))
        yield TRIGGER_NEUTRAL, _stream(rng, _asker(grammar, topic, trigger, planted.source, "neutral"))
        yield TRIGGER_HABIT, _stream(rng, _asker(grammar, topic, trigger, planted.source, "marked"))


def _stream(rng: random.Random, make: Maker) -> Iterator[Document]:
    # A generator of its own: how many documents one source yields does not change the others.
    own = random.Random(rng.getrandbits(64))
    while True:
        yield make(own)


def _asker(grammar: Grammar, topic: str, name: str | None, source: str, style: str) -> Maker:
    """Maker of documents with one or two questions (or notes) about ``name``, or about any name of ``topic``."""

    def make(rng: random.Random) -> Document:
        text = ""
        for _ in range(2 if rng.random() < TWO_TURNS_SHARE else 1):
            asked = name or rng.choice(grammar.topics[topic]["names"])
            text += grammar.turn(topic, asked, style, rng, as_note=rng.random() < NOTE_SHARE)
        return {"text": text, "source": source}

    return make
