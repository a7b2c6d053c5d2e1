"""Which share of a gap in words closes when features are removed: places, tokens, texts, and what follows.

Legend: P places, N pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from modeldiff.contrast import cause
from modeldiff.contrast.cause import VARIANTS, CauseOf, CausePlace, cause_places, causes_of, generate_variants
from modeldiff.contrast.contexts import PairsBefore, pairs_before
from modeldiff.contrast.documents import open_document, open_given
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.ref import ModelRef
from modeldiff.lm.residual import Shown
from modeldiff.sides import OTHER
from modeldiff.texts.sources import Record
from modeldiff.texts.tokenize import Reader
from tests.contrast.made_continuations import opened
from tests.crosscoder.made import random_crosscoder
from tests.tiny_models import CHAT_TEMPLATE, TEXTS, tiny_model, tiny_tokenizer

CONTEXT = {"a": 200, "b": 200}


def _readers(**arguments: Any) -> dict[str, Reader]:
    """Two tokenizers that cut texts differently."""
    made = {"a": tiny_tokenizer(vocab_size=320, **arguments), "b": tiny_tokenizer(vocab_size=280, add_bos=True)}
    if arguments.get("chat_template"):
        made["b"].chat_template = arguments["chat_template"].replace("<|im_end|>", "<|im_end|> ")
    return {side: Reader(tokenizer) for side, tokenizer in made.items()}


def _plain(documents: int) -> tuple[Any, PairsBefore]:
    """Plain texts with two places each, and the pairs before them."""
    readers = _readers()
    records = [Record("x", f"Number {i} is here: {TEXTS[i % 2]}") for i in range(documents)]
    read = [open_document(record, i, readers, CONTEXT, 0) for i, record in enumerate(records)]
    continuations = opened(records, [(i, end) for i, one in enumerate(read) for end in one.ends[-2:]])
    return continuations, pairs_before(continuations, readers, CONTEXT)


def test_a_prompt_is_what_the_continuations_were_made_from() -> None:
    said = ["Hello there, fox ", "It is.", "And the dog?"]
    messages = tuple({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said))
    texts = [TEXTS[0], TEXTS[1] + "\n", "\n".join(said), "The lazy dog jumps "]
    records = [Record("x", text, messages if i == 2 else ()) for i, text in enumerate(texts)]
    readers = _readers(chat_template=CHAT_TEMPLATE)
    read = [open_document(record, i, readers, CONTEXT, 0) for i, record in enumerate(records[:3])]
    read.append(open_given(records[3], 3, readers, CONTEXT))
    continuations = opened(records, [(i, end) for i, one in enumerate(read) for end in one.ends], given=(2, 3))
    pairs = pairs_before(continuations, readers, CONTEXT)
    for place, one in enumerate(continuations.places):
        for side in "ab":
            ids = cause.prompt_before(continuations, pairs, place, side, readers)
            assert ids == read[one.document].prompt(side, one.end)


def test_places_are_drawn_at_random_where_the_context_holds() -> None:
    continuations, pairs = _plain(20)
    on_P = np.arange(40) % 4 < 2
    entries = [CauseOf("b", [], [3], on_P), CauseOf("a", [], [3], on_P)]

    def drawn(count: int) -> list[CausePlace]:
        return cause_places(entries, continuations, pairs, _readers(), ContrastSettings(cause_places=count))

    everything = drawn(99)
    for number in (0, 1):
        assert sorted(one.place for one in everything if one.entry == number) == np.flatnonzero(on_P).tolist()
    some = drawn(4)
    assert [one.entry for one in some] == [0] * 4 + [1] * 4
    assert {one.place for one in some[:4]} != {one.place for one in some[4:]}
    assert len({one.number for one in some}) == 8
    assert [one.place for one in drawn(4)] == [one.place for one in some]


def test_what_cannot_be_measured_has_no_places() -> None:
    continuations, pairs = _plain(10)
    three, one_document = np.arange(20) < 3, np.arange(20) < 2
    entries = [CauseOf("b", ["must"], [3], on_P) for on_P in (three, np.ones(20, bool), one_document)]
    places = cause_places(entries, continuations, pairs, _readers(), ContrastSettings(cause_places=6))
    assert {one.entry for one in places} == {1}
    said = {side: [["x"] * 3] * len(places) for side in "ab"}
    found = causes_of(entries, continuations, places, said)
    assert [one is None for one in found] == [True, False, True]


def test_variants_share_their_random_numbers_and_differ_by_what_is_removed() -> None:
    tokenizer = tiny_tokenizer()
    lm = LanguageModel(tiny_model("gpt2", len(tokenizer)), tokenizer, ModelRef("tiny"))
    ids = [[5 + (7 * i + j) % 250 for j in range(3 + i % 5)] for i in range(40)]
    places = [CausePlace(0, i, i, {"b": one}) for i, one in enumerate(ids)]
    row_D = torch.randn(32, generator=torch.Generator().manual_seed(0)) * 20
    # A feature that is always active, and one that never is; the second alone; none.
    both = Shown(torch.zeros(2, 32), torch.ones(2), torch.tensor([0.0, 2.0]), torch.stack([row_D, row_D * 5]))
    silent = Shown(torch.zeros(1, 32), torch.ones(1), torch.tensor([2.0]), row_D[None] * 5)
    removed = [(both, silent, None)[i % 3] for i in range(40)]
    done: list[int] = []
    arguments: dict[str, Any] = {"layer": 0, "tokens": 8, "seed": 0}
    made = generate_variants(lm, "b", places, removed, **arguments, note=done.append)
    assert sum(done) == 40
    assert [len(one) for one in made] == [(3, 3, 1)[i % 3] for i in range(40)]
    assert np.mean([len(set(one)) == 3 for one in made[::3]]) > 0.7
    assert all(one[0] == one[1] == one[2] for one in made[1::3])
    assert made == generate_variants(lm, "b", places, removed, **arguments)
    order = sorted(range(40), key=lambda i: len(ids[i]))[:32]
    plain = continue_tokens(lm, [ids[i] for i in order], max_new_tokens=8, temperature=1.0, seed=1_000_003)
    assert [made[i][0] for i in order] == [one.text for one in plain]


def test_variants_come_in_smaller_batches_where_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    lm = LanguageModel(tiny_model("gpt2", len(tokenizer)), tokenizer, ModelRef("tiny"))
    places = [CausePlace(0, i, i, {"b": [5 + (7 * i + j) % 250 for j in range(3)]}) for i in range(20)]
    done: list[int] = []

    def small(lm: LanguageModel, ids: list[list[int]], **how: Any) -> Any:
        if len(ids) > 8 or (len(done) == 1 and len(ids) > 4):  # the second batch has less room than the first one
            raise torch.OutOfMemoryError("CUDA out of memory")
        return continue_tokens(lm, ids, **how)

    def made() -> list[list[str]]:
        how: dict[str, Any] = {"layer": 0, "tokens": 4, "seed": 0, "note": done.append}
        return generate_variants(lm, "b", places, [None] * 20, **how)

    monkeypatch.setattr(cause, "continue_tokens", small)
    found = made()
    assert sum(done) == 20
    monkeypatch.setitem(cause._BATCH, "cpu", 4)
    assert made() == found


def _made(rates: dict[str, tuple[float, ...]], *, places: int = 40, owner: str = "b") -> dict[str, Any]:
    """What follows from texts in which the models say a listed word so often, by what was done (VARIANTS)."""
    rng = np.random.default_rng(0)
    texts: dict[str, list[list[str]]] = {"a": [], "b": []}
    for _ in range(places):
        u = rng.random()  # all variants of a place are drawn with the same random numbers
        for side in "ab":
            says = "We Must go." if u < 0.5 else "I don\u2019t know."
            texts[side].append([says if u < rate else "Mustard, never. must" for rate in rates[side]])
    features = [1, 7] if len(rates[owner]) > 1 else []
    entry = CauseOf(owner, ["must", "don't"], features, np.ones(places, bool))
    continuations = opened([], [(i // 2, 0) for i in range(places)], given=tuple(range(places)))
    planned = [CausePlace(0, i, i, {}) for i in range(places)]
    (found,) = causes_of([entry], continuations, planned, texts)
    assert found is not None
    return found


@pytest.mark.parametrize(("removed", "share"), [(0.05, 1.0), (0.45, 0.5), (0.85, 0.0)])
@pytest.mark.parametrize("owner", ["a", "b"])
def test_the_share_that_closes_is_found(removed: float, share: float, owner: str) -> None:
    found = _made({owner: (0.85, removed, 0.85), OTHER[owner]: (0.05,)}, places=200, owner=owner)
    together = found["together"]
    assert (found["side"], found["places"], together["features"]) == (owner, 200, [1, 7])
    assert found["rates"][owner] == pytest.approx(dict(zip(VARIANTS, (0.85, removed, 0.85), strict=True)), abs=0.1)
    assert found["rates"][OTHER[owner]] == pytest.approx({"unchanged": 0.05}, abs=0.1)
    assert together["closed"]["value"] == pytest.approx(share, abs=0.12)
    assert together["closed"]["low"] <= share <= together["closed"]["high"]
    assert together["closed_random"]["value"] == 0
    assert together["beyond_random"]["value"] == pytest.approx(0.85 - removed, abs=0.1)
    assert (together["verdict"], together["settled"]) == ("cause" if share else "context", True)


@pytest.mark.parametrize("combine", ["mean", "sum"])
@pytest.mark.parametrize(("side", "features"), [("a", [3, 0]), ("b", [3, 8])])
def test_a_model_shows_the_features_that_it_has(combine: str, side: str, features: list[int]) -> None:
    """Where both models' halves say the same of a shared feature, what either shows is the crosscoder's activation."""
    crosscoder = random_crosscoder(layer_a=0, layer_b=0, scale_a=2.0, scale_b=4.0, threshold=0.3, combine=combine)
    with torch.no_grad():
        crosscoder.w_enc_b[:5, :6] = crosscoder.w_enc_a[2:] * 0.5
        crosscoder.w_enc_b[:5, 6:] = 0
    x = {"a": torch.randn(50, 6), "b": torch.zeros(50, 9)}
    x["b"][:, :6] = x["a"]  # times scale and encoder, the same
    x["b"][:, 6:] = torch.randn(50, 3)
    f_NF = crosscoder.encode(x["a"], x["b"])
    found = cause.shown(crosscoder, features, side)
    pre_NG = x[side] @ found.encoder_GD.T + found.bias_G
    torch.testing.assert_close(torch.where(pre_NG > found.threshold_G, pre_NG, 0.0), f_NF[:, features])
    torch.testing.assert_close(found.decoder_GD[1], crosscoder.direction(features[1], side))


def test_special_shares() -> None:
    """Random directions close it too; few places; removal goes beyond the other model; no gap; no features."""
    alike_removed = _made({"b": (0.85, 0.2, 0.2), "a": (0.05,)})["together"]
    assert alike_removed["closed"] == alike_removed["closed_random"]
    assert alike_removed["verdict"] == "context"
    rates: dict[str, tuple[float, ...]] = {"b": (0.3, 0.28, 0.3), "a": (0.05,)}
    assert [_made(rates, places=places)["together"]["settled"] for places in (8, 400)] == [False, True]
    share = _made({"b": (0.9, 0.0, 0.9), "a": (0.6,)}, places=60)["together"]["closed"]
    assert 2 < share["value"] < share["high"]
    no_gap = _made({"b": (0.2, 0.2, 0.2), "a": (0.15,)}, places=20)["together"]
    assert (no_gap["closed"], no_gap["verdict"], no_gap["settled"]) == (None, "context", False)
    rates_alone = _made({"b": (0.85,), "a": (0.05,)})
    assert (rates_alone["together"], list(rates_alone["rates"]["b"])) == (None, ["unchanged"])
