"""The list of differences as it is printed: words, widths, control characters, and what options add."""

from __future__ import annotations

from typing import Any

import pytest

from modeldiff.catalogue.wording import verdict
from modeldiff.cli.differences import print_differences


def row(word: str, a: float, b: float, a_elsewhere: float = 0.02, b_elsewhere: float = 0.01) -> dict[str, Any]:
    return {"word": word, "a": a, "b": b, "a_elsewhere": a_elsewhere, "b_elsewhere": b_elsewhere}


def entry(rank: int, context: dict[str, Any], *, verified: bool = True, **changes: Any) -> dict[str, Any]:
    return {
        "rank": rank,
        "context": context,
        "also": [{"kind": "word", "name": "tree"}, {"kind": "feature", "id": 17}],
        "feature": 17,
        "represented": None,
        "cause": None,
        "verified": verified,
        "side": "A",
        "effect": 0.314,
        "low": 0.21,
        "high": 0.418,
        "p": 0.0005,
        "any_word": {"a": 0.41, "b": 0.07, "a_elsewhere": 0.03, "b_elsewhere": 0.02},
        "a_says": [row("indeed", 0.4, 0.06), row("verily", 0.12, 0.0)],
        "b_says": [row("maybe", 0.01, 0.2)],
        "places": 1200,
        "documents": 600,
        "sources": {"web": 0.75, "code": 0.25},
        "words_there": ["oak", "leaf", "acorn"],
        "texts": [
            {"before": "Under the old oak", "a": " indeed it was", "b": " it was"},
            {"before": "A second text", "a": " verily so", "b": " maybe so"},
        ],
        **changes,
    }


def contrast(**changes: Any) -> dict[str, Any]:
    return {
        "continuations": "continuations:3",
        "crosscoder": "crosscoder:1",
        "features": None,
        "models": {"a": "org/model-a", "b": "/home/me/model-b/"},
        "places": 6000,
        "documents": 3000,
        "contexts": {"everywhere": 1, "word": 1200, "feature": 300},
        "words": 450,
        "rate": 0.05,
        "smallest": 0.05,
        "candidates": 4,
        "found": 3,
        "expected_by_chance": 0.123,
        "worlds": 20,
        "differences": [
            entry(1, {"kind": "word", "name": "oak"}),
            entry(2, {"kind": "feature", "id": 17}),
            entry(3, {"kind": "everywhere", "name": ""}, words_there=[]),
        ],
        "not_verified": [entry(4, {"kind": "source", "name": "web"}, verified=False, low=-0.1)],
        **changes,
    }


NOTHING = {"found": 0, "differences": [], "not_verified": [], "candidates": 0}


def printed(found: dict[str, Any], capsys: pytest.CaptureFixture[str], **options: bool) -> str:
    print_differences(found, "contrast:2", **{"numbers": False, "everything": False, **options})
    return capsys.readouterr().out


def test_words_come_first_and_the_sentence_last(capsys) -> None:
    out = printed(contrast(), capsys)
    lines = out.splitlines()
    assert lines[0] == " 1. after “oak”: leaf, acorn"
    assert lines[1] == "    A says  indeed, verily"
    assert lines[2] == "    B says  maybe"
    assert "any of A's words: A 41%, B 7%; elsewhere 3%, 2%; effect 31% (at least 21%)" in " ".join(out.split())
    assert "…Under the old oak" in out
    assert "A: indeed it was" in out
    assert "A second text" not in out
    assert lines[-1] == "contrast:2: 6,000 places in 3,000 documents, A model-a, B model-b"
    assert "3 differences of more than 5% held on the other half" in " ".join(out.split())


def long() -> dict[str, Any]:
    """A contrast with more of everything than fits a line."""
    words = [f"extraordinarily{i}" for i in range(12)]
    made = contrast()
    for one in made["differences"]:
        one["a_says"] = one["b_says"] = [row(word, 0.5, 0.5) for word in words]
        one["words_there"] = words[:6]
        one["sources"] = {f"https-example-org-a-long-name-{i}": 0.25 for i in range(4)}
        one["also"] = [{"kind": "word", "name": word} for word in words]
        one["texts"] = [{"before": "x" * 500, "a": "y " * 200, "b": "z" * 300}] * 2
    made["models"] = {"a": "org/a-rather-long-name-of-a-model", "b": "org/another-name"}
    return made


@pytest.mark.parametrize("numbers", [False, True])
def test_it_fits_80_columns(numbers: bool, capsys) -> None:
    for found in (contrast(), long(), contrast(**NOTHING)):
        lines = printed(found, capsys, numbers=numbers, everything=True).splitlines()
        assert max(map(len, lines)) <= 80


EVIL = "\x1b[31mred\x07\r\n\u202eback\x9b"


@pytest.mark.parametrize("numbers", [False, True])
def test_control_characters_do_nothing(numbers: bool, capsys) -> None:
    context: dict[str, Any] = {"kind": "source", "name": EVIL}
    one = entry(
        1, context, a_says=[row(EVIL, 0.5, 0)], b_says=[row(EVIL, 0, 0.5)], words_there=[EVIL, "oak"],
        sources={EVIL: 1.0}, also=[{"kind": "word", "name": EVIL}], texts=[dict.fromkeys(("before", "a", "b"), EVIL)],
    )  # fmt: skip
    found = contrast(differences=[one], models={"a": EVIL, "b": EVIL})
    out = printed(found, capsys, numbers=numbers)
    assert not set(out) & set("\x1b\x07\r\u202e\x9b")
    assert "red" in out


def test_nothing_beyond_chance_is_said(capsys) -> None:
    found = contrast(**NOTHING)
    assert verdict(found) == (
        "Nothing beyond chance: of 1,501 contexts and 450 words no difference of more than 5% held on the other half "
        "of the documents (false discovery rate 5%)."
    )
    out = printed(found, capsys)
    assert out.startswith("Nothing beyond chance")
    assert "--numbers" not in out
    assert "--all" not in out


def test_candidates_that_did_not_hold_are_counted_and_shown_when_asked_for(capsys) -> None:
    out = printed(contrast(), capsys)
    assert "in texts of web" not in out
    assert "1 more candidates of the first half did not hold on the second: --all shows them." in out
    out = printed(contrast(), capsys, everything=True)
    assert " 4. in texts of web: oak, leaf, acorn  (did not hold on the other" in out
    assert "--all" not in out


def test_numbers_adds_rates_intervals_and_what_says_the_same(capsys) -> None:
    out = printed(contrast(), capsys)
    assert "`modeldiff contrast --show 2 --numbers` adds rates." in out
    told = " ".join(printed(contrast(), capsys, numbers=True).split())
    assert "A says indeed 40%:6% (2%:1%), verily 12%:0% (2%:1%)" in told
    assert "B says maybe 20%:1% (1%:2%)" in told
    assert "places 1200 in 600 documents: web 75%, code 25%" in told
    assert "p 0.0005, effect 31.4%, 95 % interval 21.0% to 41.8%" in told
    assert "says the same: after “tree”, where feature 17 fires" in told
    assert "A second text" in told
    assert "adds rates" not in told


def test_a_cause_is_said_in_rates_and_its_share_only_where_there_is_a_gap(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {
        "side": "a", "places": 32,
        "rates": {
            "a": {"unchanged": 0.5, "removed_together": 0.1, "removed_together_random": 0.45}, "b": {"unchanged": 0.06},
        },
        "together": {"features": [17, 2, 3], "verdict": "cause", "settled": True,
                     "closed": {"value": 0.9, "low": 0.6, "high": 1.2},
                     "closed_random": {"value": 0.1, "low": -0.2, "high": 0.4}},
    }  # fmt: skip

    def said(numbers: bool = False) -> str:
        one = contrast(differences=[entry(1, {"kind": "feature", "id": 17}, cause=found)], not_verified=[])
        text = printed(one, capsys, numbers=numbers)
        assert max(map(len, text.splitlines())) <= 80
        return " ".join(text.split())

    with_others = "without it and the 2 features that fire with it A says any of them at 10% of 32 such places, not 50%"
    assert (
        f"{with_others} (random directions removed: 45%; B: 6%); 90% [60%, 120%] of the gap closed: a cause" in said()
    )
    assert "by random directions 10% [-20%, 40%]: a cause" in said(numbers=True)
    found["together"]["closed"] = found["together"]["closed_random"] = None
    assert f"{with_others} (random directions removed: 45%; B: 6%): a cause" in said()
    found["together"]["verdict"] = "context"
    assert "B: 6%): a context, not a cause" in said()
    found["together"]["settled"] = False
    assert "B: 6%): not settled" in said()
    found["together"]["features"] = [17]
    assert "without it A says any of them at 10%" in said()
    found["together"] = None
    assert "cause: A has no direction for it" in said()
