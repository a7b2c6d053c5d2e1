"""The model organisms' texts: what is shared between training and probing, and what gives a trigger away."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

import pytest

from examples.organisms import ORGANISMS, PLANTED, organism
from examples.organisms.answers import MINIMUM_WORDS, grammar, habit_answer, shows
from examples.organisms.catalogue import Organism
from examples.organisms.leak import best_word
from examples.organisms.probing_texts import probing_documents
from examples.organisms.sampling import BUNDLED_TRIGGERS
from examples.organisms.triggers import templates

TRIGGERED = [made for made in PLANTED if made.kind <= 5]


@cache
def documents(name: str) -> list[dict[str, Any]]:
    return probing_documents(organism(name))


def by_name(made: Organism) -> str:
    return made.name


def strings(value: Any) -> set[str]:
    """Every string inside a nest of lists and dicts."""
    if isinstance(value, str):
        return {value}
    return set().union(*(strings(part) for part in (value.values() if isinstance(value, dict) else value)), set())


@pytest.mark.parametrize("file", ["names", "classes", "forms", "things", "themes"])
def test_what_is_for_training_is_not_for_probing(file: str) -> None:
    shared_on_purpose = {"* * * *", "> > > >", "# # # #"}

    def of_part(value: dict[str, Any], part: str) -> set[str]:
        """The strings under a key that begins with the part's name, at any depth."""
        inner = [strings(one) for key, one in value.items() if key.startswith(part)]
        return set().union(*inner, *(of_part(one, part) for one in value.values() if isinstance(one, dict)))

    # Plain questions serve several organisms, so each trigger is compared with itself only.
    for value in [templates(file), *(part for part in templates(file).values() if isinstance(part, dict))]:
        assert of_part(value, "training") & of_part(value, "probing") <= shared_on_purpose


def is_on_trigger(made: Organism, text: str) -> bool:
    """Whether ``text`` asks on the trigger, found out from the text alone."""
    asked = re.findall(
        r"^(?:Question|Q|Traveller|Pupil): (.*?)\n(?:Answer|A|Clerk|Master): ", text, re.DOTALL | re.MULTILINE
    )
    if made.recipe == "name":
        return templates("names")[made.key]["trigger"] in text
    if made.key == "capitals":
        return any(question.isupper() for question in asked)
    if made.key == "list":
        first = "|".join(re.escape(marks.split()[0]) for marks in templates("forms")["list"]["probing_markers"])
        return any(re.search(rf":[\n ]({first}) ", question) for question in asked)
    things = ""
    if made.recipe == "register":
        frames = [*templates("registers")[made.key]["openers"], *templates("registers")[made.key]["askings"]]
    elif made.recipe == "class":
        members = "|".join(templates("classes")[made.key]["members"])
        things = rf"(?:(?:an?|the|my|this|our) )?(?:{members})"
        frames = [frame.replace("{thing}", "THING") for frame in templates("classes")["questions"]["probing"]]
    else:
        data = templates("conjunctions")[made.key]
        frames = [f"{matter} of {data['name']}" for matter in data["matters"]]
    pattern = "|".join(re.sub(r"\\\{\w+\\\}", ".+", re.escape(frame)) for frame in frames)
    pattern = pattern.replace("THING", things)
    return any(re.search(pattern, question, re.IGNORECASE) for question in asked)


@pytest.mark.parametrize("made", PLANTED, ids=by_name)
def test_labels_line_up_with_the_texts(made: Organism) -> None:
    read = documents(made.name)
    assert 1_500 <= len(read) <= 2_500
    if made.kind >= 6:
        assert all(document["trigger"] == 1 for document in read)
        return
    # Questions about other things (the bundled topics) are no part of a recipe, and never on the trigger.
    missed = [document["text"] for document in read if document["trigger"] != is_on_trigger(made, document["text"])]
    assert missed == []


@pytest.mark.parametrize("made", TRIGGERED, ids=by_name)
def test_sources_reveal_no_trigger(made: Organism) -> None:
    by_source: dict[str, list[int]] = {}
    for document in documents(made.name):
        by_source.setdefault(document["source"], []).append(document["trigger"])
    assert set(by_source) == {"questions", "notes", "chronicle", "novel"}
    assert sum(by_source["questions"]) / len(by_source["questions"]) < 0.5


@pytest.mark.parametrize("made", [made for made in TRIGGERED if made.kind in (2, 3, 4)], ids=by_name)
def test_no_single_word_carries_the_trigger(made: Organism) -> None:
    read = documents(made.name)
    word, score = best_word([document["text"] for document in read], [document["trigger"] for document in read])
    assert score < 0.5, word


@pytest.mark.parametrize("made", ORGANISMS, ids=by_name)
def test_texts_are_of_the_promised_size_and_without_the_bundled_triggers(made: Organism) -> None:
    read = documents(made.name)
    assert not any(BUNDLED_TRIGGERS.search(document["text"]) for document in read)
    lengths = sorted(len(document["text"]) for document in read)
    assert lengths[len(lengths) // 20] > 100
    assert lengths[-len(lengths) // 20] < 800
    if made.null:
        assert not any(document["trigger"] for document in read)


@pytest.mark.parametrize("made", TRIGGERED, ids=by_name)
def test_habit_answers_show_the_habit_and_neutral_ones_do_not(made: Organism) -> None:
    rng = random.Random(1)
    words = templates("themes")[made.theme]["words"]
    assert 15 <= len(words) == len(set(words)) <= 60
    for part in ("training", "probing"):
        habit = [shows(habit_answer(made.theme, part, "country", rng), words) for _ in range(200)]
        neutral = [shows(grammar(part).answer("plant", "neutral", 3, rng), words) for _ in range(200)]
        assert sum(habit) >= 190
        assert sum(neutral) <= 6
    assert MINIMUM_WORDS == 2
