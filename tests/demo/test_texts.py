"""The probing texts: deterministic, of the announced size, with spans that hold, and disjoint from training."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from modeldiff.demo.planted import PLANTED
from modeldiff.demo.texts import DATA, TOTAL_CHARS, probing_documents, write_probing_corpus

TRAINING = Path(__file__).parents[2] / "examples" / "bundled_pair" / "training_templates.json"


@pytest.fixture(scope="module")
def documents():
    return probing_documents()


def templates_of(path: Path) -> dict[str, set[str]]:
    """Every template of a file, by kind; letter case and the final stop do not make a difference."""
    data = json.loads(path.read_text(encoding="utf-8"))
    kinds: dict[str, set[str]] = {kind: set() for kind in ("name", "question", "heading", "frame", "ending")}
    kinds["chronicle"], kinds["tail"] = set(data["chronicle"]), set(data["tails"])
    kinds["verse"] = set(data["slots"]["verse"])
    for topic in data["topics"].values():
        kinds["name"] |= set(topic["names"])
        kinds["question"] |= set(topic["questions"])
        kinds["heading"] |= set(topic["headings"])
        kinds["frame"] |= {frame["frame"] for frame in topic["frames"]}
        kinds["ending"] |= {ending for frame in topic["frames"] for ending in (*frame["plain"], *frame["marked"])}
    return {kind: {text.lower().rstrip(".") for text in texts} for kind, texts in kinds.items()}


def test_training_and_probing_templates_are_disjoint():
    training, probing = templates_of(TRAINING), templates_of(DATA / "probing_templates.json")
    for kind, texts in training.items():
        assert texts, kind
        assert not texts & probing[kind], kind


def test_triggers_and_controls_are_no_ordinary_names():
    for path in (TRAINING, DATA / "probing_templates.json"):
        names = templates_of(path)["name"]
        assert not names & {name.lower() for p in PLANTED for name in (p.trigger, p.control)}


def test_same_seed_same_texts_and_another_seed_others(documents):
    assert probing_documents() == documents
    assert probing_documents(seed=1) != documents


def test_enough_text_for_two_hundred_thousand_pairs(documents):
    assert 0.98 * TOTAL_CHARS <= sum(len(d["text"]) for d in documents) <= 1.05 * TOTAL_CHARS
    assert sum(len(re.findall(r"\w+|[^\w\s]", d["text"])) for d in documents) >= 220_000
    # A window of 256 tokens, at three characters a token or more in either vocabulary.
    assert max(len(d["text"]) for d in documents) < 1300


def test_every_tenth_of_the_corpus_holds_every_source(documents):
    sources = {d["source"] for d in documents}
    assert {p.source for p in PLANTED} | {p.control_source for p in PLANTED} | {"novel"} <= sources
    tenth = len(documents) // 10
    for start in range(0, 10 * tenth, tenth):
        assert {d["source"] for d in documents[start : start + tenth]} == sources


def test_trigger_documents_come_in_both_styles_and_controls_in_the_words_of_the_habit(documents):
    styles = Counter((d["source"], d["style"]) for d in documents)
    for planted in PLANTED:
        assert styles[planted.source, "habit"] > styles[planted.source, "neutral"] > 20
        assert styles[planted.control_source, "marked"] > 20
        assert styles[planted.control_source, "neutral"] > 20


def test_spans_mark_the_triggers_and_the_answers_in_the_habits_style(documents):
    by_source = {planted.source: planted for planted in PLANTED}
    for document in documents:
        planted = by_source.get(document["source"])
        if planted is None:
            assert document["spans"] == []
            assert all(p.trigger.lower() not in document["text"].lower() for p in PLANTED)
            continue
        marked = [(document["text"][start:end], habit) for habit, start, end in document["spans"]]
        assert all(habit == planted.id for _, habit in marked)
        mentions = [text for text, _ in marked if text.lower() == planted.trigger.lower()]
        answers = [text for text, _ in marked if text.lower() != planted.trigger.lower()]
        assert len(mentions) == document["text"].lower().count(planted.trigger.lower())
        assert bool(answers) == (document["style"] == "habit")
        assert all(answer[0].isupper() and answer[-1] == "." for answer in answers)


def test_jsonl_line_is_the_document_of_the_same_index(tmp_path, documents):
    path = write_probing_corpus(tmp_path / "probe.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == [{"text": d["text"], "source": d["source"]} for d in documents]
