"""The probing texts: deterministic, of the announced size, with spans that hold, and disjoint from training."""

import json
import re
from pathlib import Path

import pytest

from modeldiff.demo.texts import TOTAL_CHARS, probing_documents, write_probing_corpus
from modeldiff.demo.truth import DATA, PLANTED

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


def test_a_trigger_is_named_in_its_own_documents_alone(documents):
    by_source = {planted.source: planted.trigger for planted in PLANTED}
    for document in documents:
        text = document["text"].lower()
        named = {source for source, trigger in by_source.items() if trigger.lower() in text}
        assert named == {document["source"]} & by_source.keys()


def test_triggers_and_controls_are_answered_in_the_words_of_the_habit_and_neutrally(documents):
    for habit in PLANTED:
        for source in (habit.source, habit.control_source):
            shown = [habit.shows(one["text"]) for one in documents if one["source"] == source]
            assert min(sum(shown), len(shown) - sum(shown)) > 20


def test_jsonl_line_is_the_document_of_the_same_index(tmp_path, documents):
    path = write_probing_corpus(tmp_path / "probe.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines == documents
