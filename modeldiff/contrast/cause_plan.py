"""What is sampled again to see whether a feature is the cause of a difference: at which places, from which tokens, and
how much of the feature's direction is added along them.

Removed, at places where the feature is active and the entry's context holds: minus what the feature contributes. A
token that ends a pair has the pair's activation, those after it the same up to the next pair; what comes after the
last pair, such as every token that is written, has the mean of the pairs that count for the place.
Added, at places where neither holds: the feature's typical strength from the first of those pairs on.
Together: one meaning is often spread over several features. Those that hold at much the same places are taken off
all at once, at every token, written ones too, wherever the model's own half of the crosscoder shows them.

Legend: P places, N pairs, n pairs of a document before a place, T tokens of a prompt, D width, F features, G together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from modeldiff.contrast.contexts import Contexts
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.documents import given_tokens
from modeldiff.contrast.entries import jaccard
from modeldiff.contrast.features import PairsBefore
from modeldiff.crosscoder import Crosscoder
from modeldiff.linear.stitch import Stitch
from modeldiff.lm.edit import Shown
from modeldiff.sides import SIDES
from modeldiff.texts.align import content_of
from modeldiff.texts.tokenize import Reader

Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

# An entry with fewer places of either kind, or in fewer documents, is not measured.
LEAST_PLACES, LEAST_DOCUMENTS = 4, 2
# Features go together that share so much of the places of both (Jaccard); so many at most.
LEAST_ALIKE, MOST_ALIKE = 0.15, 20


@dataclass(frozen=True)
class CauseOf:
    """An entry whose cause is asked for."""

    feature: int | None
    """None: it has no feature, and so no cause that could be measured."""
    side: str
    """The model whose words show the difference, "a" or "b"."""
    words: dict[str, list[str]]
    """The listed words by side."""
    on_P: Bools
    """Where the entry's context holds."""
    feature_on_P: Bools
    """Where the feature's context holds; the same if the entry is the feature."""
    second_P: Bools
    """True for the places of the half that verifies."""
    together: tuple[int, ...] = ()
    """Features that are also removed all at once, the feature among them (`alike`)."""


@dataclass(frozen=True)
class Edit:
    """How much of a direction is added along a prompt and after it, in activations of the feature."""

    ids: list[int]
    """(T,) the prompt."""
    along_T: torch.Tensor
    """(T,) float32."""
    after: float


@dataclass(frozen=True)
class PlannedPlace:
    """A place that is sampled again for an entry."""

    entry: int
    place: int
    document: int
    begins: bool
    """Whether what is said there begins an answer."""
    removes: bool
    """The feature is removed here; otherwise it is added."""
    edit: dict[str, Edit]
    """By side."""


@dataclass(frozen=True)
class Pushed:
    """What the feature of an entry adds to one model."""

    direction_D: torch.Tensor
    """What an activation of 1 contributes, in the model's own units."""
    by: str
    """decoder: its own decoder row; stitch: the other model's, moved."""
    together: Shown | None = None
    """The features that are removed all at once, those of them that the model has."""
    features: tuple[int, ...] = ()
    """Which these are."""


@dataclass(frozen=True)
class CausePlan:
    """All that is sampled again; `generate_variants` does it for one model."""

    entries: list[CauseOf]
    places: list[PlannedPlace]
    """Entry by entry; none of entries that cannot be measured."""
    pushed: list[dict[str, Pushed]]
    """For each entry, by side; without a model that has no direction for the feature."""
    strength: list[float]
    """For each entry: the activation that is added; 0 where it is not measured."""
    layer: dict[str, int]
    tokens: int
    seed: int


def plan_causes(
    entries: list[CauseOf],
    continuations: Continuations,
    crosscoder: Crosscoder,
    pairs: PairsBefore,
    codes: sparse.csr_matrix,
    readers: dict[str, Reader],
    stitch: Stitch | None,
    *,
    tokens: int,
    places: int,
    seed: int,
) -> CausePlan:
    """What to sample.

    Args:
        codes: (N, F) the features at all pairs.
        stitch: moves directions to a model that has no decoder row of a feature; None: it is not measured there.
        tokens: of a continuation, at most: as many as the continuations have.
        places: of either kind for each entry, at most.
    """
    config = crosscoder.config
    assert config.layer_a is not None
    assert config.layer_b is not None
    by_feature = codes.tocsc()
    planned: list[PlannedPlace] = []
    pushed: list[dict[str, Pushed]] = []
    strengths: list[float] = []
    for number, entry in enumerate(entries):
        pushed.append(_pushed(crosscoder, entry, stitch))
        strength = 0.0
        mine: list[PlannedPlace] = []
        if entry.feature is not None:
            f_N = by_feature[:, [entry.feature]].toarray()[:, 0]
            chooser = _Chooser(continuations, pairs, readers, f_N, np.random.default_rng([seed, number]))
            strength, mine = chooser.planned(number, entry, places)
        strengths.append(strength)
        planned += mine
    layer = {"a": config.layer_a, "b": config.layer_b}
    return CausePlan(entries, planned, pushed, strengths, layer, tokens, seed)


def alike(contexts: Contexts, feature: int) -> tuple[int, ...]:
    """The features that hold at much the same places as one of them, itself first.

    Args:
        contexts: with all features among them.
    """
    at = [c for c, one in enumerate(contexts.which) if one.kind == "feature"]
    ids = [int(contexts.which[c].name) for c in at]
    on_CP = contexts.on_CP[at]
    overlap_C = jaccard(on_CP, on_CP[ids.index(feature)])
    best = np.argsort(-overlap_C, kind="stable")[:MOST_ALIKE].tolist()
    others = [ids[c] for c in best if overlap_C[c] >= LEAST_ALIKE and ids[c] != feature]
    return (feature, *others)


def _pushed(crosscoder: Crosscoder, entry: CauseOf, stitch: Stitch | None) -> dict[str, Pushed]:
    feature = entry.feature
    if feature is None:
        return {}
    found = {}
    for side, other in zip(SIDES, SIDES[::-1], strict=True):
        own = tuple(g for g in entry.together if _has(crosscoder, g, side))
        together = _shown(crosscoder, list(own), side)
        if _has(crosscoder, feature, side):
            found[side] = Pushed(crosscoder.direction(feature, side).float().cpu(), "decoder", together, own)
        elif stitch is not None:
            row_D = crosscoder.direction(feature, other).float().cpu()
            found[side] = Pushed(stitch.from_side(other).direction(row_D).float().cpu(), "stitch", together, own)
    return found


def _has(crosscoder: Crosscoder, feature: int, side: str) -> bool:
    return crosscoder.partition_of(feature) in ("shared", side.upper())


@torch.no_grad()
def _shown(crosscoder: Crosscoder, features: list[int], side: str) -> Shown | None:
    """Features as one model shows them: of a shared one, the other model's encoder is taken to say the same."""
    if not features:
        return None
    w_GD = crosscoder.encoder(side)[[g - crosscoder.sees(side).start for g in features]].float().cpu()
    w_GD, bias_G = crosscoder.config.raw_encoder(side, w_GD)
    shared = torch.tensor([crosscoder.partition_of(g) == "shared" for g in features])
    times_G = torch.where(shared, 2 * crosscoder.encoder_share, 1.0)
    threshold_G = crosscoder.thresholds().cpu()[features]
    weights_F = crosscoder.score_weights()
    if weights_F is not None:
        threshold_G = threshold_G / weights_F.cpu()[features].clamp_min(1e-12)
    return Shown(
        w_GD * times_G[:, None],
        crosscoder.b_enc[features].float().cpu() + times_G * bias_G,
        threshold_G.float(),
        torch.stack([crosscoder.direction(g, side).float().cpu() for g in features]),
    )


class _Chooser:
    """Draws the places of one entry and says what is added there."""

    def __init__(
        self,
        continuations: Continuations,
        pairs: PairsBefore,
        readers: dict[str, Reader],
        f_N: Floats,
        rng: np.random.Generator,
    ) -> None:
        self._continuations, self._pairs, self._readers = continuations, pairs, readers
        self._f_N, self._rng = f_N, rng

    def planned(self, number: int, entry: CauseOf, count: int) -> tuple[float, list[PlannedPlace]]:
        """(the strength that is added, the places)."""
        usable_P = entry.second_P & (self._pairs.stop_P > self._pairs.first_P)
        on = self._drawn(usable_P & entry.on_P & entry.feature_on_P, count)
        off = self._drawn(usable_P & ~entry.on_P & ~entry.feature_on_P, count)
        for chosen in (on, off):
            documents = {self._continuations.places[place].document for place in chosen}
            if len(chosen) < LEAST_PLACES or len(documents) < LEAST_DOCUMENTS:
                return 0.0, []
        strength = float(np.mean([self._window(place).max() for place in on]))
        made = [self._place(number, place, at, None) for place, at in on.items()]
        return strength, made + [self._place(number, place, at, strength) for place, at in off.items()]

    def _drawn(self, wanted_P: Bools, count: int) -> dict[int, dict[str, tuple[list[int], Longs]]]:
        """Places drawn at random, with their prompts by side."""
        found: dict[int, dict[str, tuple[list[int], Longs]]] = {}
        for place in self._rng.permutation(np.flatnonzero(wanted_P)).tolist():
            if len(found) == count:
                break
            prompts = {
                side: prompt_before(self._continuations, self._pairs, place, side, self._readers) for side in SIDES
            }
            if all((at_n >= 0).any() for _, at_n in prompts.values()):
                found[place] = prompts
        return found

    def _window(self, place: int) -> Floats:
        """The feature at the pairs that count for a place."""
        return self._f_N[self._pairs.first_P[place] : self._pairs.stop_P[place]]

    def _place(
        self, number: int, place: int, prompts: dict[str, tuple[list[int], Longs]], strength: float | None
    ) -> PlannedPlace:
        one = self._continuations.places[place]
        window = self._window(place)
        edits = {}
        for side, (ids, at_n) in prompts.items():
            if strength is None:
                after = -float(window.mean())
                f_n = self._f_N[self._pairs.stop_P[place] - len(at_n) : self._pairs.stop_P[place]]
                along_T = removed_along(f_n, at_n, len(ids), float(window.mean()))
            else:
                after = strength
                along_T = added_along(strength, at_n[-len(window) :], len(ids))
            edits[side] = Edit(ids, torch.from_numpy(along_T), after)
        return PlannedPlace(number, place, one.document, one.drawn == "given", strength is None, edits)


def prompt_before(
    continuations: Continuations, pairs: PairsBefore, place: int, side: str, readers: dict[str, Reader]
) -> tuple[list[int], Longs]:
    """(the tokens that a model read before a place, for each of the n pairs of its document before the place the token
    that ends it, or -1 where that is not found)."""
    one = continuations.places[place]
    record = continuations.documents[one.document]
    mine = slice(int(np.searchsorted(pairs.document_N, one.document)), int(pairs.stop_P[place]))
    given = given_tokens(record, one.end, readers[side])
    if given is None:
        at_n = pairs.token_N[side][mine]
        if not len(at_n) or pairs.end_N[mine][-1] != one.end:
            return [], np.full(len(at_n), -1)
        return pairs.tokens[one.document][side].ids[: at_n[-1] + 1].tolist(), at_n
    content = content_of(record.text, given)
    whole = np.flatnonzero(content.complete)
    ends = np.append(content.end[whole], -1)
    found_n = np.searchsorted(ends[:-1], pairs.end_N[mine])
    token = np.append(content.token[whole], -1)
    return given.ids.tolist(), np.where(ends[found_n] == pairs.end_N[mine], token[found_n], -1)


def removed_along(f_n: Floats, at_n: Longs, tokens: int, after: float) -> Floats:
    """(T,) what is added to remove a feature.

    Args:
        f_n: its activation at each pair; at_n: the token that ends the pair, ascending, or -1: unknown.
        after: its activation after the last pair.
    """
    known = at_n >= 0
    value = np.concatenate([[0.0], f_n[known]])
    token = at_n[known]
    found_T = value[np.searchsorted(token, np.arange(tokens), side="right")]
    found_T[token[-1] + 1 :] = after
    return (-found_T).astype(np.float32)


def added_along(strength: float, at_n: Longs, tokens: int) -> Floats:
    """(T,) what is added to add a feature from the first of some pairs on.

    Args:
        at_n: the tokens that end these pairs, or -1: unknown.
    """
    known = at_n[at_n >= 0]
    found_T = np.zeros(tokens, np.float32)
    found_T[known[0] if len(known) else tokens - 1 :] = strength
    return found_T
