"""Write prompt files for `modeldiff steer transfer`: contrasts that both models of the bundled pair know.

    python examples/transfer/make_contrasts.py contrasts/
    modeldiff steer transfer --from A --from-prompts contrasts/praise.jsonl contrasts/praise-not.jsonl

Four contrasts of subject: questions about a name that both models read often and that neither has a habit about; the
models answer themselves. Four of manner: the same questions on both sides, with the responses in the files, so that
both models read the same.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from modeldiff.demo.grammar import SPEAKERS, Grammar, capital, fill
from modeldiff.demo.truth import DATA, PLANTED

PROMPTS = 32
CONTROLS = {one.topic: one.control for one in PLANTED}
# name: topics of the positive and of the negative prompts
SUBJECTS = {
    "herb-or-poet": ("plant", "poet"),
    "country-or-event": ("country", "event"),
    "herb-or-event": ("plant", "event"),
    "country-or-poet": ("country", "poet"),
}
# name: topic; the positive responses have marked endings, the negative ones plain endings
MANNERS = {"praise": "goods", "warning": "hazard", "refusal": "request", "denial": "rumour"}

Line = dict[str, str]


def questions(grammar: Grammar, topic: str, name: str | None, rng: random.Random) -> list[Line]:
    """Questions about one name of the topic, or about any of its names."""
    made = []
    for _ in range(PROMPTS):
        asker, teller = rng.choice(SPEAKERS)
        question = fill(rng.choice(grammar.topics[topic]["questions"]), grammar.slots, rng)
        asked = name or fill(rng.choice(grammar.topics[topic]["names"]), grammar.slots, rng)
        made.append({"prompt": f"{asker}: {capital(question.replace('{name}', asked))}\n{teller}:"})
    return made


def answered(grammar: Grammar, topic: str, kind: str, prompts: list[Line], rng: random.Random) -> list[Line]:
    """The questions with an answer of two sentences whose endings are all of one kind."""
    made = []
    for one in prompts:
        sentences = []
        for frame in rng.sample(grammar.topics[topic]["frames"], 2):
            ending = fill(rng.choice(frame[kind]), grammar.slots, rng)
            sentences.append(f"{capital(fill(frame['frame'], grammar.slots, rng))} {ending}.")
        made.append(one | {"response": " " + " ".join(sentences)})
    return made


def contrasts(grammar: Grammar) -> dict[str, tuple[list[Line], list[Line]]]:
    """(positive, negative) by name."""
    made = {}
    for name, topics in SUBJECTS.items():
        positive, negative = (questions(grammar, one, CONTROLS[one], random.Random(f"{name} {one}")) for one in topics)
        made[name] = (positive, negative)
    for name, topic in MANNERS.items():
        prompts = questions(grammar, topic, None, random.Random(name))
        made[name] = (
            answered(grammar, topic, "marked", prompts, random.Random(f"{name} marked")),
            answered(grammar, topic, "plain", prompts, random.Random(f"{name} plain")),
        )
    return made


def main(folder: Path) -> None:
    """Write NAME.jsonl and NAME-not.jsonl of every contrast."""
    folder.mkdir(parents=True, exist_ok=True)
    grammar = Grammar(json.loads((DATA / "probing_templates.json").read_text(encoding="utf-8")))
    for name, parts in contrasts(grammar).items():
        for suffix, lines in zip(("", "-not"), parts, strict=True):
            text = "".join(json.dumps(one) + "\n" for one in lines)
            (folder / f"{name}{suffix}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "contrasts"))
