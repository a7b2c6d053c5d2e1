"""Is a feature the cause of a difference, or only the context in which it shows?

At held-out places where the entry's context holds and the feature is active, the model whose words show the difference
(the owner) goes on again: as it is, with the feature removed, and with random directions of the same size removed. How
often it says any of its words then, as a share of the gap to the other model, tells how much of the difference the
feature carries. One meaning is often spread over several features, of which one alone moves little: those that hold at
much the same places are removed with it, at every token, written ones too, wherever the owner's half of the crosscoder
shows them.

All variants of a place are drawn with the same random numbers: an edit that does nothing changes no word.

Legend: P places, K places of an entry, C contexts, D width of the owner, F features, G those removed, V variants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from modeldiff.contrast.contexts import Contexts, PairsBefore, jaccard
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.documents import Place, given_tokens
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.contrast.statistics import Bools, Floats, Gap, Longs, gap_of
from modeldiff.contrast.words import whole_words, words_of
from modeldiff.controls import random_directions
from modeldiff.crosscoder import Crosscoder
from modeldiff.lm.batches import while_memory_lasts
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import Shown, take_off
from modeldiff.sides import OTHER, SIDES
from modeldiff.texts.tokenize import Reader

# An entry with fewer places, or in fewer documents, is not measured.
LEAST_PLACES, LEAST_DOCUMENTS = 4, 2
# Features go together that share so much of the places of both (Jaccard); so many at most.
LEAST_ALIKE, MOST_ALIKE = 0.15, 20
# What is sampled of the owner, in this order; of the other model the first alone.
VARIANTS = ("unchanged", "removed_together", "removed_together_random")
# Places continued at once, by kind of device, or as many as its memory suffices for. It decides the random numbers.
_BATCH = {"cpu": 32, "cuda": 256, "mps": 64}
# A gap of which removal closes less than this is shown not to hang on the features.
_MOST_OF = 0.5


@dataclass(frozen=True)
class CauseOf:
    """An entry whose cause is asked for."""

    owner: str
    """The model whose words show the difference, "a" or "b"."""
    words: list[str]
    """Its listed words."""
    features: list[int]
    """Removed all at once: those of the entry (`alike`) that the owner has. None: there is nothing to remove."""
    on_P: Bools
    """Held-out places where the entry's context and its feature's hold."""


@dataclass(frozen=True)
class CausePlace:
    """A place that is sampled again for an entry."""

    entry: int
    number: int
    """Of the place among all that an entry could have: its random directions are its own."""
    place: int
    ids: dict[str, list[int]]
    """By side, the tokens before the place."""


def alike(contexts: Contexts, feature: int) -> list[int]:
    """The features that hold at much the same places as one of them, itself first; the contexts are those of
    features."""
    ids = [int(one.name) for one in contexts.which]
    overlap_C = jaccard(contexts.on_CP, contexts.on_CP[ids.index(feature)])
    best = np.argsort(-overlap_C, kind="stable")[:MOST_ALIKE].tolist()
    return [feature, *(ids[c] for c in best if overlap_C[c] >= LEAST_ALIKE and ids[c] != feature)]


def cause_places(
    entries: list[CauseOf],
    continuations: Continuations,
    pairs: PairsBefore,
    readers: dict[str, Reader],
    settings: ContrastSettings,
) -> list[CausePlace]:
    """At most `cause_places` places of each entry, drawn at random; none of entries with too few."""
    found: list[CausePlace] = []
    for entry, of_entry in enumerate(entries):
        usable = np.flatnonzero(of_entry.on_P & (pairs.stop_P > pairs.first_P))
        chosen: list[CausePlace] = []
        for place in np.random.default_rng([settings.seed, entry]).permutation(usable).tolist():
            if len(chosen) == settings.cause_places:
                break
            ids = {side: prompt_before(continuations, pairs, place, side, readers) for side in SIDES}
            if all(ids.values()):
                chosen.append(CausePlace(entry, 2 * settings.cause_places * entry + len(chosen), place, ids))
        documents = {continuations.places[one.place].document for one in chosen}
        if len(chosen) >= LEAST_PLACES and len(documents) >= LEAST_DOCUMENTS:
            found += chosen
    return found


def prompt_before(
    continuations: Continuations, pairs: PairsBefore, place: int, side: str, readers: dict[str, Reader]
) -> list[int]:
    """The tokens that a model read before a place; none where they are not found."""
    one = continuations.places[place]
    if one.given:
        return given_tokens(continuations.documents[one.document], one.end, readers[side]).ids.tolist()
    last = pairs.stop_P[place] - 1
    if pairs.end_N[last] != one.end:
        return []
    return pairs.ids[one.document][side][: pairs.token_N[side][last] + 1].tolist()


@torch.no_grad()
def shown(crosscoder: Crosscoder, features: list[int], side: str) -> Shown:
    """Features as one model shows them: of a shared one, the other model's encoder is taken to say the same."""
    shared = torch.tensor([crosscoder.partition_of(g) == "shared" for g in features])
    times_G = torch.where(shared, 2 * crosscoder.encoder_share, 1.0)
    threshold_G = crosscoder.thresholds().cpu()[features]
    weights_F = crosscoder.score_weights()
    if weights_F is not None:
        threshold_G = threshold_G / weights_F.cpu()[features].clamp_min(1e-12)
    rows = [g - crosscoder.sees(side).start for g in features]
    w_GD, bias_G = crosscoder.config.raw_encoder(side, crosscoder.encoder(side)[rows].float().cpu())
    return Shown(
        w_GD * times_G[:, None],
        crosscoder.b_enc[features].float().cpu() + times_G * bias_G,
        threshold_G.float(),
        torch.stack([crosscoder.direction(g, side).float().cpu() for g in features]),
    )


def generate_variants(
    lm: LanguageModel, side: str, places: list[CausePlace], removed: list[Shown | None],
    *, layer: int, tokens: int, seed: int, note: Callable[[int], None] = lambda _: None,
) -> list[list[str]]:  # fmt: skip
    """For each place what the model says as it is and, where it is the owner, without the features (VARIANTS).

    removed: of each place, the features as the model shows them; None: it is not the owner. They are removed after
    block `layer`. tokens: of a continuation, at most. note: told how many places are done, batch by batch.
    """
    told = 0

    def tell(done: int) -> None:
        nonlocal told
        note(max(0, done - told))
        told = max(told, done)

    # One size for all places: the random numbers of a place's variants depend on its batch.
    made = partial(_generated, lm, side, places, removed, layer=layer, tokens=tokens, seed=seed, tell=tell)
    return while_memory_lasts(lambda size: made(size=size), _BATCH.get(lm.device.type, 32))


def _generated(
    lm: LanguageModel, side: str, places: list[CausePlace], removed: list[Shown | None],
    *, layer: int, tokens: int, seed: int, size: int, tell: Callable[[int], None],
) -> list[list[str]]:  # fmt: skip
    """`generate_variants`, of `size` places at once. tell: told how many places are done so far."""
    made: list[list[str]] = [[] for _ in places]
    order = np.argsort([len(one.ids[side]) for one in places], kind="stable").tolist()
    first_seed = (seed * 2 + SIDES.index(side)) * 1_000_003
    nothing = Shown(torch.zeros(0, lm.width), torch.zeros(0), torch.zeros(0), torch.zeros(0, lm.width))
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        ids = [places[i].ids[side] for i in batch]
        own = [removed[i] or nothing for i in batch]
        random = [_random(one, first_seed + 500_000 + places[i].number) for one, i in zip(own, batch, strict=True)]
        edits: list[AbstractContextManager[None]] = [nullcontext()]
        if any(removed[i] for i in batch):
            edits += [take_off(lm, layer, own), take_off(lm, layer, random)]
        sampling: dict[str, Any] = {"temperature": 1.0, "seed": first_seed + start, "batch_size": len(batch)}
        for variant, edited in enumerate(edits):
            with edited:
                said = continue_tokens(lm, ids, max_new_tokens=tokens, **sampling)
            for i, one in zip(batch, said, strict=True):
                if not variant or removed[i]:
                    made[i].append(one.text)
        tell(start + len(batch))
    return made


def _random(one: Shown, seed: int) -> Shown:
    """The same activations with random directions of the same norms."""
    drawn = [random_directions(1, row_D, seed * 1_009 + g) for g, row_D in enumerate(one.decoder_GD)]
    return dataclasses.replace(one, decoder_GD=torch.cat(drawn)) if drawn else one


def causes_of(
    entries: list[CauseOf], continuations: Continuations, places: list[CausePlace], texts: dict[str, list[list[str]]]
) -> list[dict[str, Any] | None]:
    """The cause of each entry, from what both models said; None of those that were not measured.

    Each has
        side        the owner, "a" or "b"
        places      at how many places it was sampled again
        rates       by side, and by what was done (VARIANTS): how often the model says any of the words
        together    null: the owner has none of the features. Else
            features        that were removed
            closed          share of the gap between the models, both as they are, that closes; null: no gap is shown
            closed_random   the same for random directions
            beyond_random   rate of the words: random directions removed, minus the features removed
            verdict         cause: this is above 0; context: it is not
            settled         false for a context where removal might still close half of the gap: too few places to say
                            that nothing moves

    closed and beyond_random are intervals: value, low and high, 95 % over documents.
    """
    found: list[dict[str, Any] | None] = []
    for number, entry in enumerate(entries):
        mine = [i for i, one in enumerate(places) if one.entry == number]
        at = [continuations.places[places[i].place] for i in mine]
        said = {
            side: np.array([_say_any(texts[side][i], entry.words, one) for i, one in zip(mine, at, strict=True)])
            for side in SIDES
        }
        found.append(_cause(entry, said, np.array([one.document for one in at])) if mine else None)
    return found


def _cause(entry: CauseOf, said: dict[str, Floats], document_K: Longs) -> dict[str, Any]:
    """The cause of an entry (`causes_of`), from `said`: by side, (K, V) 1 where the model says a word."""
    rates = {side: dict(zip(VARIANTS, said[side].mean(axis=0).tolist(), strict=False)) for side in SIDES}
    together = None
    if entry.features:
        gap_K = said[entry.owner][:, 0] - said[OTHER[entry.owner]][:, 0]
        together = {"features": entry.features, **_removal(said[entry.owner], gap_K, document_K)}
    return {"side": entry.owner, "places": len(document_K), "rates": rates, "together": together}


def _removal(own_KV: Floats, gap_K: Floats, document_K: Longs) -> dict[str, Any]:
    """What removal did to the owner (`causes_of`); own_KV: 1 where it says a word, by what was done (VARIANTS)."""
    unchanged_K, removed_K, random_K = own_KV.T
    beyond = _mean(random_K - removed_K, document_K)
    caused = beyond.low() > 0
    return {
        "closed": _share(unchanged_K - removed_K, gap_K, document_K),
        "closed_random": _share(unchanged_K - random_K, gap_K, document_K),
        "beyond_random": {"value": float(beyond.value), "low": float(beyond.low()), "high": float(beyond.high())},
        "verdict": "cause" if caused else "context",
        "settled": bool(caused or _mean(random_K - removed_K - _MOST_OF * gap_K, document_K).high() < 0),
    }


def _say_any(texts: list[str], words: list[str], place: Place) -> list[float]:
    """Of each text, 1 if it holds any of the words."""
    return [float(not set(words).isdisjoint(words_of(whole_words(text, begins=place.given)))) for text in texts]


def _mean(score_K: Floats, document_K: Longs) -> Gap:
    """The mean over places, documents being independent of each other."""
    return gap_of(score_K, np.ones(len(score_K), bool), document_K)


def _share(closed_K: Floats, gap_K: Floats, document_K: Longs) -> dict[str, float] | None:
    """Mean of what closes over the mean gap, at the same places. To first order, the error is that of the mean of what
    closes minus share times gap. A share may be any number, unlike a difference of rates. None: the gap may be none, so
    that its shares are nothing."""
    gap = _mean(gap_K, document_K)
    if gap.low() <= 0:
        return None
    share = float(closed_K.mean()) / gap.value
    rest = _mean(closed_K - share * gap_K, document_K)
    half = rest.quantile() * (rest.error / gap.value)
    return {"value": share, "low": share - half, "high": share + half}
