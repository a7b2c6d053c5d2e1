"""Which share of a gap in words closes when a feature is removed or added: places, tokens, texts, and what follows.

Legend: P places, N pairs, T tokens of a prompt.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from modeldiff.contrast.cause import ADDED, REMOVED, TOGETHER, Cause, causes_of, generate_variants
from modeldiff.contrast.cause_plan import (
    CauseOf,
    CausePlan,
    Edit,
    PlannedPlace,
    Pushed,
    added_along,
    alike,
    plan_causes,
    prompt_before,
    removed_along,
)
from modeldiff.contrast.contexts import Context, Contexts
from modeldiff.contrast.continuations import Continued
from modeldiff.contrast.documents import open_document, open_prompts
from modeldiff.contrast.features import PairsBefore, pairs_before
from modeldiff.linear.maps import LinearMap
from modeldiff.lm.edit import Shown
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.ref import ModelRef
from modeldiff.texts.sources import Record
from modeldiff.texts.tokenize import Reader
from tests.crosscoder.made import random_crosscoder
from tests.tiny_models import CHAT_TEMPLATE, TEXTS, tiny_model, tiny_tokenizer

FEATURES, CONTEXT = {"A": 0, "shared": 3, "B": 8}, {"a": 200, "b": 200}


def _readers(**arguments: Any) -> dict[str, Reader]:
    """Two tokenizers that cut texts differently."""
    made = {"a": tiny_tokenizer(vocab_size=320, **arguments), "b": tiny_tokenizer(vocab_size=280, add_bos=True)}
    if arguments.get("chat_template"):
        made["b"].chat_template = arguments["chat_template"].replace("<|im_end|>", "<|im_end|> ")
    return {side: Reader(tokenizer) for side, tokenizer in made.items()}


def _continuations(records: list[Record], ends: list[list[int]]) -> Any:
    given = [bool(record.messages) or record.source == "prompts" for record in records]
    places = [
        Continued(document, end, 0.1, "given" if given[document] else "uniform", {"a": [""], "b": [""]})
        for document, of_document in enumerate(ends)
        for end in of_document
    ]
    return SimpleNamespace(documents=records, places=places)


def _plain(documents: int) -> tuple[Any, PairsBefore]:
    """Plain texts with two places each, and the pairs before them."""
    readers = _readers()
    records = [Record("x", f"Number {i} is here: {TEXTS[i % 2]}") for i in range(documents)]
    opened = [open_document(record, i, readers, CONTEXT, 0) for i, record in enumerate(records)]
    continuations = _continuations(records, [one.ends[-2:] for one in opened])
    return continuations, pairs_before(continuations, readers, CONTEXT)


def _codes(pairs: PairsBefore, features: int = 10) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.random.default_rng(0).random((len(pairs.document_N), features), np.float32))


def _entry(places: int, feature: int | None, on: np.ndarray | None = None) -> CauseOf:
    on_P = np.arange(places) % 4 < 2 if on is None else on
    return CauseOf(feature, "b", {"a": [], "b": ["must"]}, on_P, on_P, np.ones(places, bool))


def test_a_feature_is_removed_with_the_activation_of_the_latest_pair_and_then_with_the_mean() -> None:
    f_n, at_n = np.array([2, 9, 5], np.float32), np.array([1, -1, 4])
    np.testing.assert_array_equal(removed_along(f_n, at_n, 5, 7.0), [0, -2, -2, -2, -5])
    np.testing.assert_array_equal(removed_along(f_n, at_n, 7, 7.0), [0, -2, -2, -2, -5, -7, -7])


def test_a_feature_is_added_from_the_first_pair_on() -> None:
    np.testing.assert_array_equal(added_along(3.0, np.array([-1, 2, 3]), 5), [0, 0, 3, 3, 3])


def test_a_prompt_is_what_the_continuations_were_made_from() -> None:
    records = [
        Record("x", TEXTS[0]),
        Record("x", TEXTS[1] + "\n"),
        Record(
            "x",
            "Hello there, fox \nIt is.\nAnd the dog?",
            (
                {"role": "user", "content": "Hello there, fox "},
                {"role": "assistant", "content": "It is."},
                {"role": "user", "content": "And the dog?"},
            ),
        ),
    ]
    readers = _readers(chat_template=CHAT_TEMPLATE)
    opened = [open_document(record, i, readers, CONTEXT, 0) for i, record in enumerate(records)]
    opened += list(open_prompts(["The lazy dog jumps "], 3, readers, CONTEXT))
    records.append(Record("prompts", opened[-1].text))
    continuations = _continuations(records, [document.ends for document in opened])
    pairs = pairs_before(continuations, readers, CONTEXT)
    for place, one in enumerate(continuations.places):
        document = opened[one.document]
        for side in "ab":
            ids, at_n = prompt_before(continuations, pairs, place, side, readers)
            assert ids == document.prompt(side, document.ends.index(one.end))
            assert (at_n >= 0).all()
            assert (np.diff(at_n) > 0).all()
            # The token that ends a pair ends with the pair's last character.
            ends_n = pairs.end_N[pairs.stop_P[place] - len(at_n) : pairs.stop_P[place]]
            for at, end in zip(at_n.tolist(), ends_n.tolist(), strict=True):
                said = readers[side].decode([ids[at]]).strip()
                assert said
                assert records[one.document].text[:end].endswith(said)
    chat = next(i for i, one in enumerate(continuations.places) if one.document == 2)
    ids, at_n = prompt_before(continuations, pairs, chat, "a", readers)
    assert readers["a"].decode(ids[at_n[-1] + 1 :]).endswith("<|im_start|>assistant\n")


def test_places_are_drawn_where_both_contexts_hold_and_where_neither_does() -> None:
    continuations, pairs = _plain(20)
    places = len(continuations.places)
    kind = np.arange(places) % 5
    entry = CauseOf(3, "b", {"a": [], "b": ["must"]}, kind < 2, (kind == 1) | (kind == 2), np.arange(places) >= 8)
    codes = _codes(pairs)
    crosscoder = random_crosscoder(layer_a=0, layer_b=1)

    def planned(count: int) -> CausePlan:
        return plan_causes(
            [entry], continuations, crosscoder, pairs, codes, _readers(), None, tokens=4, places=count, seed=1
        )

    plan = planned(100)
    assert sorted(one.place for one in plan.places if one.removes) == [p for p in range(8, places) if p % 5 == 1]
    assert sorted(one.place for one in plan.places if not one.removes) == [p for p in range(8, places) if p % 5 > 2]
    assert plan.layer == {"a": 0, "b": 1}
    f_N = codes[:, 3].toarray()[:, 0]
    windows = {one.place: f_N[pairs.first_P[one.place] : pairs.stop_P[one.place]] for one in plan.places}
    strength = np.mean([windows[one.place].max() for one in plan.places if one.removes])
    assert plan.strength == [pytest.approx(strength)]
    for one in plan.places:
        for side, edit in one.edit.items():
            last = pairs.stop_P[one.place] - 1
            assert len(edit.along_T) == len(edit.ids) == pairs.token_N[side][last] + 1
            if one.removes:
                assert edit.along_T[-1] == pytest.approx(-f_N[last])
                assert edit.after == pytest.approx(-windows[one.place].mean(), rel=1e-5)
            else:
                assert edit.along_T[-1] == edit.after == pytest.approx(strength)
    some = planned(4)
    assert [sum(one.removes for one in some.places), len(some.places)] == [4, 8]
    again = planned(4)
    assert [one.place for one in again.places] == [one.place for one in some.places]


def test_what_cannot_be_measured_has_no_places() -> None:
    continuations, pairs = _plain(10)
    places = len(continuations.places)
    one_document = np.arange(places) < 2
    entries = [_entry(places, None), _entry(places, 3), _entry(places, 3, one_document)]
    plan = plan_causes(
        entries, continuations, random_crosscoder(layer_a=0, layer_b=0), pairs, _codes(pairs), _readers(), None,
        tokens=4, places=6, seed=0,
    )  # fmt: skip
    assert {one.entry for one in plan.places} == {1}
    said = [["x"] * 3] * len(plan.places)
    found = causes_of(plan, said, said)
    assert [one is None for one in found] == [True, False, True]


def test_an_exclusive_feature_has_a_direction_in_the_other_model_only_through_a_stitch() -> None:
    continuations, pairs = _plain(10)
    crosscoder = random_crosscoder(layer_a=0, layer_b=0, scale_a=2.0, scale_b=4.0)
    entries = [_entry(len(continuations.places), feature) for feature in FEATURES.values()]
    maps: Any = SimpleNamespace(from_side=lambda _side: LinearMap(torch.ones(9, 6), torch.full((6,), 5.0), 0.0))
    found = {}
    for name, stitch in (("without", None), ("with", maps)):
        plan = plan_causes(
            entries[2:] if stitch else entries, continuations, crosscoder, pairs, _codes(pairs), _readers(), stitch,
            tokens=4, places=6, seed=0,
        )  # fmt: skip
        found[name] = [{side: one.by for side, one in by_side.items()} for by_side in plan.pushed]
        in_b = plan.pushed[-1]["b"].direction_D
        torch.testing.assert_close(in_b, crosscoder.w_dec_b[8 - 2].detach() / 4)
    assert found["without"] == [{"a": "decoder"}, {"a": "decoder", "b": "decoder"}, {"b": "decoder"}]
    assert found["with"] == [{"a": "stitch", "b": "decoder"}]
    # The map's constant is left out.
    torch.testing.assert_close(plan.pushed[0]["a"].direction_D, in_b.sum().expand(6))


def _lm() -> LanguageModel:
    tokenizer = tiny_tokenizer()
    return LanguageModel(tiny_model("gpt2", len(tokenizer)), tokenizer, ModelRef("tiny"))


def test_variants_share_their_random_numbers_and_differ_by_what_is_added() -> None:
    lm = _lm()
    generator = torch.Generator().manual_seed(0)
    ids = [[5 + (7 * i + j) % 250 for j in range(3 + i % 5)] for i in range(40)]
    edits = [Edit(one, torch.ones(len(one)) if i % 2 else torch.zeros(len(one)), i % 2) for i, one in enumerate(ids)]
    places = [PlannedPlace(i // 20, i, i, False, True, {"b": edit}) for i, edit in enumerate(edits)]
    pushed = [{"b": Pushed(torch.randn(32, generator=generator) * 20, "decoder")}, {}]
    plan = CausePlan([_entry(1, 3), _entry(1, 0)], places, pushed, [1.0, 1.0], {"a": 0, "b": 0}, 8, 0)
    done: list[int] = []
    made = generate_variants(lm, "b", plan, done.append)
    assert sum(done) == 40
    assert [len(one) for one in made] == [3] * 20 + [1] * 20
    assert all(one[0] == one[1] == one[2] for one in made[0:20:2])
    changed = [len(set(one)) == 3 for one in made[1:20:2]]
    assert np.mean(changed) > 0.7
    assert made == generate_variants(lm, "b", plan)
    # A feature that is always active, and one that never is.
    row_D = torch.randn(32, generator=generator) * 20
    shown = Shown(torch.zeros(2, 32), torch.ones(2), torch.tensor([0.0, 2.0]), torch.stack([row_D, row_D * 5]))
    pushed[0]["b"] = dataclasses.replace(pushed[0]["b"], together=shown)
    more = generate_variants(lm, "b", plan)
    assert [one[:3] for one in more] == made
    assert [len(one) for one in more] == [5] * 20 + [1] * 20
    assert np.mean([len({one[0], *one[3:]}) == 3 for one in more[:20]]) > 0.7
    order = sorted(range(40), key=lambda i: len(ids[i]))[:32]
    plain = continue_tokens(lm, [ids[i] for i in order], max_new_tokens=8, temperature=1.0, seed=1_000_003)
    assert [made[i][0] for i in order] == [one.text for one in plain]


def _made(
    rates: dict[str, dict[str, float]],
    *,
    places: int = 40,
    side: str = "b",
    has: str = "ab",
    begins: bool = True,
    seed: int = 0,
) -> Cause:
    """What follows from texts in which the models say a listed word so often, by what was done."""
    rng = np.random.default_rng(seed)
    edit = {one: Edit([1], torch.zeros(1), 0.0) for one in "ab"}
    planned = [PlannedPlace(0, i, i // 2, begins, i < places, edit) for i in range(2 * places)]
    none = Shown(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1), torch.zeros(1, 2))
    group = none if "removed_together" in rates[side] else None
    pushed = {one: Pushed(torch.zeros(2), "decoder", group if one == side else None) for one in has}
    words = {"a": ["never"], "b": ["never"]} | {side: ["must", "don't"]}
    on_P = np.ones(1, bool)
    plan = CausePlan([CauseOf(1, side, words, on_P, on_P, on_P)], planned, [pushed], [2.0], {"a": 0, "b": 0}, 4, 0)
    texts: dict[str, list[list[str]]] = {"a": [], "b": []}
    for one in planned:
        names = REMOVED if one.removes else ADDED
        u = rng.random()  # all variants of a place are drawn with the same random numbers
        for model in "ab":
            said = [
                ("We Must go." if u < 0.5 else "I don\u2019t know.")
                if u < rates[model][name]
                else "Mustard, never. must"
                for name in (
                    names[:1]
                    if model not in has
                    else (*names, *TOGETHER)
                    if group and model == side and one.removes
                    else names
                )
            ]
            texts[model].append(said)
    (found,) = causes_of(plan, texts["a"], texts["b"])
    assert found is not None
    return found


NEUTRAL = {
    "unchanged": 0.05, "removed": 0.05, "removed_random": 0.05, "elsewhere": 0.0, "added": 0.0, "added_random": 0.0,
}  # fmt: skip
OWNER = NEUTRAL | {"unchanged": 0.85, "removed_random": 0.85}


@pytest.mark.parametrize(("removed", "share"), [(0.05, 1.0), (0.45, 0.5), (0.85, 0.0)])
@pytest.mark.parametrize("side", ["a", "b"])
def test_the_share_that_closes_is_found(removed: float, share: float, side: str) -> None:
    other = "b" if side == "a" else "a"
    found = _made({side: OWNER | {"removed": removed}, other: NEUTRAL}, places=200, side=side)
    assert found.gap.value == pytest.approx(0.8, abs=0.1)
    assert found.closed_removed is not None
    assert found.closed_removed.value == pytest.approx(share, abs=0.12)
    assert found.closed_removed.low <= share <= found.closed_removed.high
    assert found.closed_random is not None
    assert found.closed_random.value == 0
    assert found.verdict == ("cause" if share else "context")
    assert found.settled
    assert found.words == ["must", "don't"]


def test_what_a_random_direction_closes_too_is_no_cause() -> None:
    found = _made({"b": OWNER | {"removed": 0.2, "removed_random": 0.2}, "a": NEUTRAL})
    assert found.closed_removed == found.closed_random
    assert found.verdict == "context"


def test_adding_is_enough_and_the_other_model_closes_the_gap() -> None:
    owner = OWNER | {"removed": 0.85, "added": 0.6}
    found = _made({"b": owner, "a": NEUTRAL | {"added": 0.4}}, places=200)
    assert found.verdict == "cause"
    assert found.closed_added is not None
    assert found.closed_added.low < 0.5 < found.closed_added.high


def test_few_places_settle_nothing() -> None:
    rates = {"b": OWNER | {"unchanged": 0.3, "removed": 0.28, "removed_random": 0.3}, "a": NEUTRAL}
    assert not _made(rates, places=8).settled
    assert _made(rates, places=400).settled


def test_without_a_gap_there_is_no_share() -> None:
    found = _made({"b": NEUTRAL, "a": NEUTRAL})
    assert (found.closed_removed, found.closed_random, found.closed_added) == (None, None, None)
    assert found.verdict == "context"
    assert not found.settled


def test_a_gap_that_may_be_none_has_no_share() -> None:
    rates = {"b": OWNER | {"unchanged": 0.2, "removed_random": 0.2}, "a": NEUTRAL | {"unchanged": 0.15}}
    found = _made(rates, places=20)
    assert found.gap.low <= 0
    assert (found.closed_removed, found.closed_random) == (None, None)
    assert found.rates["b"]["removed"] is not None


def test_a_share_is_not_cut_off_where_a_difference_of_rates_would_be() -> None:
    # Removal takes the words away three times as far as the other model is.
    rates = {"b": OWNER | {"unchanged": 0.9, "removed": 0.0, "removed_random": 0.9}, "a": NEUTRAL | {"unchanged": 0.6}}
    share = _made(rates, places=60).closed_removed
    assert share is not None
    assert 2 < share.value < share.high
    assert share.high - share.value == pytest.approx(share.value - share.low)


def test_a_model_without_a_direction_has_no_rates_of_what_was_not_done() -> None:
    rates = {"b": OWNER | {"removed": 0.05}, "a": NEUTRAL}
    found = _made(rates, has="b")
    assert found.by == {"a": None, "b": "decoder"}
    assert found.closed_added is None
    assert found.verdict == "cause"
    assert [name for name, rate in found.rates["a"].items() if rate is not None] == ["unchanged", "elsewhere"]
    owner_has_none = _made(rates, has="a")
    assert (owner_has_none.verdict, owner_has_none.closed_removed) == (None, None)
    assert json.loads(json.dumps(found.to_json()))["closed_removed"]["value"] > 0.8


def test_features_that_move_the_words_only_together_are_found() -> None:
    owner = OWNER | {"removed": 0.85, "removed_together": 0.05, "removed_together_random": 0.85}
    found = _made({"b": owner, "a": NEUTRAL}, places=200)
    assert found.verdict == "context"
    assert found.together is not None
    assert (found.together.verdict, found.together.settled) == ("cause", True)
    assert found.together.closed is not None
    assert found.together.closed.low <= 1 <= found.together.closed.high
    assert found.together.closed_random is not None
    assert found.together.closed_random.value == 0
    assert found.rates["b"]["removed_together"] == pytest.approx(0.05, abs=0.1)
    assert found.to_json()["together"]["beyond_random"]["low"] > 0.5
    assert _made({"b": OWNER, "a": NEUTRAL}).together is None


def test_features_alike_hold_at_much_the_same_places() -> None:
    on_CP = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 0, 0]], np.float32)
    which = [Context("everywhere", ""), *(Context("feature", str(i)) for i in (4, 7, 9))]
    contexts = Contexts(which, sparse.csr_matrix(on_CP))
    assert alike(contexts, 4) == (4, 7)
    assert alike(contexts, 9) == (9,)


@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_a_model_shows_the_features_that_it_has(combine: str) -> None:
    """Where both models' halves say the same of a shared feature, what either shows is the crosscoder's activation."""
    continuations, pairs = _plain(10)
    crosscoder = random_crosscoder(layer_a=0, layer_b=0, scale_a=2.0, scale_b=4.0, threshold=0.3, combine=combine)
    with torch.no_grad():
        crosscoder.w_enc_b[:5, :6] = crosscoder.w_enc_a[2:] * 0.5
        crosscoder.w_enc_b[:5, 6:] = 0
    entry = dataclasses.replace(_entry(len(continuations.places), 3), together=(3, 0, 8))
    plan = plan_causes(
        [entry], continuations, crosscoder, pairs, _codes(pairs), _readers(), None, tokens=4, places=6, seed=0
    )
    x = {"a": torch.randn(50, 6), "b": torch.zeros(50, 9)}
    x["b"][:, :6] = x["a"]  # times scale and encoder, the same
    x["b"][:, 6:] = torch.randn(50, 3)
    f_NF = crosscoder.encode(x["a"], x["b"])
    for side, features in (("a", [3, 0]), ("b", [3, 8])):
        shown = plan.pushed[0][side].together
        assert shown is not None
        assert plan.pushed[0][side].features == tuple(features)
        pre_NG = x[side] @ shown.encoder_GD.T + shown.bias_G
        f_NG = torch.where(pre_NG > shown.threshold_G, pre_NG, 0.0)
        torch.testing.assert_close(f_NG, f_NF[:, features])
        torch.testing.assert_close(shown.decoder_GD[1], crosscoder.direction(features[1], side))
