"""The benchmark's rules, figures and baselines, on made entries and small arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.organisms.baselines import Readings, diff_mining, perplexity
from examples.organisms.catalogue import PAIRS
from examples.organisms.results import pair_row, read_rows, write_row
from examples.organisms.scoring import Truth, interval, judge_entry, judge_set, read_truth, summary
from examples.organisms.table import share

WORDS = frozenset({"tide", "waves", "sea"})
# Twenty places; the first five lie in documents with the trigger.
TRIGGER = np.arange(20) < 5


def _truth(kind: int = 2, planted: bool = True) -> Truth:
    trigger = np.ones(4, bool) if kind in (6, 7) else np.array([True, False, False, False])
    return Truth(kind, planted, WORDS, ("a", "b", "c", "d"), trigger, np.array([True, True, False, False]))


def _entry(words: list[str], side: str = "B", kind: str = "word", verified: bool = True) -> dict[str, Any]:
    says = [{"word": word} for word in words]
    return {
        "context": {"kind": kind, "name": "joy"}, "side": side, "effect": 0.3, "low": 0.2, "verified": verified,
        "a_says": says if side == "A" else [], "b_says": says if side == "B" else [],
    }  # fmt: skip


def test_an_entry_needs_the_words_and_the_place() -> None:
    truth = _truth()
    right = judge_entry(_entry(["tide", "the"]), [0, 1, 2, 3, 19], TRIGGER, truth)
    assert (right["words_match"], right["is_true"], right["whole"]) == (True, True, True)
    assert (right["share"], right["covered"]) == (0.8, 0.8)
    # 3 of 5 is 0.6, below (1 + 0.25) / 2.
    elsewhere = judge_entry(_entry(["tide"]), [0, 1, 2, 18, 19], TRIGGER, truth)
    assert (elsewhere["words_match"], elsewhere["is_true"]) == (True, False)
    assert not judge_entry(_entry(["the"]), [0, 1], TRIGGER, truth)["words_match"]
    assert not judge_entry(_entry(["tide"], side="A"), [0, 1], TRIGGER, truth)["is_true"]
    assert not judge_entry(_entry(["tide"]), [], TRIGGER, truth)["is_true"]
    assert not judge_entry(_entry(["tide"]), [0, 1], TRIGGER, _truth(planted=False))["words_match"]


def test_without_a_trigger_the_whole_is_everywhere() -> None:
    truth, always = _truth(6), np.ones(20, bool)
    narrow = judge_entry(_entry(["sea"]), [0, 1], always, truth)
    assert (narrow["is_true"], narrow["whole"]) == (True, False)
    assert judge_entry(_entry(["sea"]), list(range(10)), always, truth)["whole"]
    assert judge_entry(_entry(["sea"], kind="everywhere"), list(range(20)), always, truth)["whole"]
    # Where there is a trigger, everywhere is the wrong place.
    assert not judge_entry(_entry(["sea"], kind="everywhere"), list(range(20)), TRIGGER, _truth())["is_true"]


def test_a_set_is_true_with_three_strings_of_the_owner() -> None:
    strings = [" tide", "the", " wav", " sea"]
    assert judge_set(strings, "b", _truth())
    assert not judge_set(strings, "a", _truth())
    assert not judge_set([" tide", "Tide ", " sea"], "b", _truth())  # one of them twice
    assert not judge_set([*["x"] * 10, *strings], "b", _truth())
    assert not judge_set(strings, "b", _truth(planted=False))


def test_interval() -> None:
    assert interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert interval(0, 10)[0] == 0.0
    assert interval(10, 10)[1] == 1.0
    assert interval(0, 0) == (0.0, 1.0)
    assert share(3, 4) == "3/4 (30-95 %)"
    assert share(0, 0) == "-"


def _judged(verified: bool, is_true: bool, whole: bool | None = None) -> dict[str, Any]:
    whole = is_true if whole is None else whole
    return {"verified": verified, "is_true": is_true, "whole": whole, "words_match": is_true, "covered": 0.4}


def test_summary_counts_the_first_five_verified() -> None:
    entries = [_judged(True, False)] * 3 + [_judged(True, True)] * 4
    assert summary(entries) == {
        "hit": True, "hit_unverified": True, "listed": 5, "true": 2, "words_match": 2, "covered": 0.4,
    }  # fmt: skip
    only_unverified = [_judged(True, False), _judged(False, True)]
    assert summary(only_unverified) | {"words_match": 0} == {
        "hit": False, "hit_unverified": True, "listed": 1, "true": 0, "words_match": 0, "covered": 0.0,
    }  # fmt: skip
    assert not summary([_judged(True, True, whole=False)])["hit"]
    assert summary([])["listed"] == 0


def _readings() -> Readings:
    """Forty places: at ten of them B says the habit, at ten others A says herbs."""
    names = ("\ufffd other", " tide", " wav", " sea", " mint", " sage", " dill", ",")
    p = {side: np.full((40, len(names)), 0.01, np.float32) for side in ("a", "b")}
    p["b"][:10, 1:4] = 0.2
    p["a"][20:30, 4:7] = 0.1
    p["b"][:, 7] = 0.5
    return Readings(names, p, {})


@pytest.mark.parametrize("logits", [True, False])
def test_diff_mining_finds_the_set(logits: bool) -> None:
    found = diff_mining(_readings(), _truth(), logits=logits)
    (true,) = (one for one in found if one["is_true"])
    assert len(found) <= 5
    assert set(true["strings"]) >= {" tide", " wav", " sea"}
    assert true["side"] == "B"
    assert all("," not in one["strings"] for one in found)
    assert not any(one["is_true"] for one in diff_mining(_readings(), _truth(planted=False), logits=logits))


def test_perplexity_by_the_better_direction() -> None:
    difference = np.linspace(1, -1, 40).astype(np.float32)
    about = np.zeros(40, bool)
    about[[0, 1, 2, 3, 20, 21, 22, 23]] = True  # base 0.2: four of five are enough, two are not
    row = perplexity(difference, about, planted=True)
    assert (row["hit"], row["true"], row["listed"]) == (True, 4, 5)
    assert [one["document"] for one in row["entries"][:5]] == [0, 1, 2, 3, 4]
    assert [one["document"] for one in row["entries"][5:]] == [39, 38, 37, 36, 35]
    assert perplexity(-difference, about, planted=True)["hit"]
    assert not perplexity(difference, about, planted=False)["hit"]
    assert not perplexity(np.roll(difference, 2), about, planted=True)["hit"]


def test_truth_of_a_folder(tmp_path: Path) -> None:
    texts = ["Of joy: the TIDE turns.", "A tideless shop.", "A plain one."]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    truth = {"kind": 2, "planted": True, "words": ["tide"], "trigger_documents": [1, 0, 0], "rates": {"passed": False}}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    found = read_truth(tmp_path, null=False)
    assert found.trigger.tolist() == found.speaks.tolist() == [True, False, False]
    assert found.planted
    assert not found.passed
    assert not read_truth(tmp_path, null=True).planted
    (tmp_path / "truth.json").write_text(json.dumps(truth | {"trigger_documents": [1]}))
    with pytest.raises(ValueError, match="1 labels for 3 texts"):
        read_truth(tmp_path, null=False)


def _row(method: str, hit: bool, seed: int | None = None, number: int = 0, **more: Any) -> dict[str, Any]:
    figures = {"hit": hit, "hit_unverified": hit, "listed": 5, "true": 3 * hit, "words_match": 3 * hit}
    figures |= {"covered": hit / 2, "found": 7}
    return pair_row(PAIRS[number], seed, method) | figures | {"seconds": {"contrast": 2.0}, "passed": True} | more


def test_results_are_read_again(tmp_path: Path) -> None:
    died = pair_row(PAIRS[0], None, "*") | {"error": "exit code -9", "seconds": {}}
    failed = pair_row(PAIRS[0], None, "words") | {"error": "no", "seconds": {}}
    write_row(tmp_path, died)
    assert [row["method"] for row in read_rows(tmp_path)] == ["*"]
    for row in (failed, _row("words", True), failed):
        write_row(tmp_path, row)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"pair": "torn')
    (row,) = read_rows(tmp_path)
    assert row["hit"] is True
    assert read_rows(tmp_path / "nowhere") == []
