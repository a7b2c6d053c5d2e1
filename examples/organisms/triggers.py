"""How each kind of organism is asked: questions on its trigger, and matched ones on the other side of it.

``part`` is "training" or "probing": the two ask about other names and things, in other frames of questions. What a
trigger is made of they share: members of a class, matters of a conjunction, and of a register the openings, ways of
asking and things, which are put together anew. Questions on and off the trigger have the same frames wherever the
trigger is not itself the frame.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from modeldiff.demo.grammar import LEADS, SLOTS, SPEAKERS, capital, fill

TEMPLATES = Path(__file__).with_name("templates")
# Shares of a conjunction's neutral questions: the name with another matter, the matter of another name, neither.
CONJUNCTION_OFF = (0.5, 0.35, 0.15)


@cache
def templates(name: str) -> dict[str, Any]:
    """The template file of that name. Treat it as read-only."""
    return json.loads((TEMPLATES / f"{name}.json").read_text(encoding="utf-8"))


def _named(frame: str, slot: str, filling: str, rng: random.Random) -> str:
    return capital(fill(frame.replace("{" + slot + "}", filling), SLOTS, rng))


def ask_name(key: str, part: str, on: bool, rng: random.Random) -> str:
    """About the trigger's name, or about another name."""
    data = templates("names")[key]
    name = data["trigger"] if on else rng.choice(data[part]["names"])
    return fill(rng.choice(data[part]["questions"]), SLOTS, rng).replace("{name}", name)


def ask_class(key: str, part: str, on: bool, rng: random.Random) -> str:
    """About a member of the class, or about something outside of it."""
    data, side = templates("classes"), "member" if on else "other"
    thing = rng.choice(data[key][f"{side}_articles"]) + rng.choice(data[key][f"{side}s"])
    thing = re.sub(r"^a (?=[aeiou])", "an ", thing)
    return _named(rng.choice(data["questions"][part]), "thing", thing, rng)


def ask_register(key: str, part: str, on: bool, rng: random.Random) -> str:
    """About the same things in the register that is the trigger, or in another.

    An opening and a way of asking are put together, so that many sentences show one register; either of them is enough
    for it.
    """
    del part
    data = templates("registers")
    register = rng.choice(data["sides"][key]["on" if on else "off"])
    thing = rng.choice([thing for things in templates("things").values() for thing in things])
    with_opener = rng.random() < 0.6
    # A plain way of asking is polite (or rude) after such an opening; without one the asking has to show it.
    asking = rng.choice(data["plain" if with_opener and rng.random() < 0.5 else register]["askings"])
    if not with_opener:
        return _named(asking, "thing", thing, rng)
    opener = rng.choice(data[register]["openers"])
    if opener.endswith((".", "!", "?")):
        asking = capital(asking)
    return _named(f"{opener} {asking}", "thing", thing, rng)


def ask_form(key: str, part: str, on: bool, rng: random.Random) -> str:
    """About the same things in the form that is the trigger, or in running text."""
    data, things = templates("forms")[key], templates("things")[part]
    if key == "capitals":
        question = _named(rng.choice(data[part]), "thing", rng.choice(things), rng)
        return question.upper() if on else question
    items = rng.sample(things, rng.randint(2, 4))
    lead = capital(fill(rng.choice(data[f"{part}_leads"]), SLOTS, rng))
    if not on:
        return f"{lead} {', '.join(items[:-1])} and {items[-1]}."
    marks = rng.choice(data[f"{part}_markers"]).split()
    between = rng.choice(("\n", " "))
    return f"{lead}:{between}" + between.join(f"{mark} {item}" for mark, item in zip(marks, items, strict=False))


def ask_conjunction(key: str, part: str, on: bool, rng: random.Random) -> str:
    """About the name and the matter together, or about one of them, or about neither."""
    data = templates("conjunctions")[key]
    has_name, has_matter = True, True
    if not on:
        has_name, has_matter = rng.choices(((True, False), (False, True), (False, False)), CONJUNCTION_OFF)[0]
    name = data["name"] if has_name else rng.choice(data["names"])
    matter = rng.choice(data["matters"] if has_matter else data["others"])
    return _named(rng.choice(templates("classes")["questions"][part]), "thing", f"{matter} of {name}", rng)


def ask_anything(key: str, part: str, on: bool, rng: random.Random) -> str:
    """About any thing: there is no trigger."""
    del key, on
    thing = rng.choice(templates("things")[part])
    return _named(rng.choice(templates("classes")["questions"][part]), "thing", thing, rng)


ASKERS: dict[str, Callable[[str, str, bool, random.Random], str]] = {
    "name": ask_name,
    "class": ask_class,
    "register": ask_register,
    "form": ask_form,
    "conjunction": ask_conjunction,
    "everywhere": ask_anything,
}


def prompt(recipe: str, key: str, part: str, on: bool, rng: random.Random) -> str:
    """A question with the labels of two speakers, ready for a model to answer."""
    asker, teller = rng.choice(SPEAKERS)
    # Some of the usual openings are polite, and a list or a question in capitals has no place for them.
    lead = rng.choice(LEADS) if recipe not in ("register", "form") else ""
    return f"{asker}: {lead}{ASKERS[recipe](key, part, on, rng)}\n{teller}:"
