"""Directions that are worth planting: the concepts of one model alone, and nothing that the other one has too.

Legend: C concepts, D width of one model, M candidates.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.audits.candidates import Candidates, found_exclusive, found_shared
from modeldiff.crosscoder.audits.judging import judge, sample
from tests.crosscoder.planted import Planted, plant, rotated_pair
from tests.crosscoder.truth import THRESHOLD, above_threshold, cut, true_crosscoder

DECODER_NORM = 0.8
OWN = {"a": [0, 1, 2], "b": [29, 30, 31]}


@pytest.fixture(scope="module")
def planted() -> Planted:
    """Concepts that rarely occur together: else their sums recur as well."""
    return plant(4096, concepts=32, widths=(40, 44), offset=0, active=1.0)


def look(
    crosscoder: Crosscoder, planted: Planted, side: str, *, kept_GD: Any = None, released: int | None = None
) -> Candidates:
    """`released`: place in its partition of an A-exclusive feature that loses its slot."""
    sampled = sample(crosscoder, cut(crosscoder, planted), above_threshold)
    nothing = torch.zeros(0, sampled.errors[side][0].shape[1])
    released_GD = torch.zeros(len(sampled.judged[side]), nothing.shape[1])
    if released is not None:
        released_GD[released] = crosscoder.w_dec_a.detach()[released]
    return found_exclusive(
        sampled,
        judge(crosscoder, sampled, side),
        side,
        40,
        kept_GD=nothing if kept_GD is None else kept_GD,
        released_GD=released_GD,
        decoder_norm=DECODER_NORM,
        random=torch.Generator().manual_seed(0),
    )


def cosines(found: Candidates, planted: Planted, side: str) -> torch.Tensor:
    """(M, C)"""
    unit_MD = found.decoder_MD / found.decoder_MD.norm(dim=1, keepdim=True)
    return unit_MD @ planted.concepts[side].T


@pytest.mark.parametrize("side", ["a", "b"])
def test_the_concepts_of_one_model_are_found_and_no_others(side: str, planted: Planted) -> None:
    """Concepts 20 to 28, which both models have, are missing from the dictionary as well."""
    crosscoder = true_crosscoder(planted, ([], range(3, 20), []))
    found = look(crosscoder, planted, side)
    nearest = cosines(found, planted, side).max(dim=1)
    assert sorted(nearest.indices[:3].tolist()) == OWN[side]
    assert nearest.values[:3].min() > 0.9
    assert set(nearest.indices.tolist()) <= set(OWN[side]), "what else there is, are their sums"
    assert found.gain_M.tolist() == sorted(found.gain_M.tolist(), reverse=True)
    assert found.gain_M.min() > 0


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_candidate_is_a_feature_that_fires_with_its_concept(side: str, planted: Planted) -> None:
    crosscoder = true_crosscoder(planted, ([], range(3, 29), []))
    found = look(crosscoder, planted, side).take(slice(3))
    x_ND = torch.cat([batch[side == "b"] for batch in cut(crosscoder, planted)])
    concept_M = cosines(found, planted, side).argmax(dim=1)
    strength_NM = x_ND @ torch.linalg.pinv(planted.concepts[side])[:, concept_M]
    there_NM = strength_NM > THRESHOLD
    f_NM, _ = above_threshold(x_ND @ found.encoder_MD.T + found.bias_M)
    fires_NM = f_NM > 0
    assert (there_NM & fires_NM).sum(dim=0).div(fires_NM.sum(dim=0)).min() > 0.5
    assert (there_NM & fires_NM).sum(dim=0).div(there_NM.sum(dim=0)).min() > 0.2
    e_ND = torch.cat(sample(crosscoder, cut(crosscoder, planted), above_threshold).errors[side])
    for number in range(len(found)):
        left_ND = e_ND - f_NM[:, number, None] * found.decoder_MD[number]
        explained = float((e_ND.square() - left_ND.square()).sum(dim=1).mean())
        assert explained == pytest.approx(float(found.gain_M[number]), rel=0.01)
    norm_M = found.decoder_MD.norm(dim=1)
    assert ((norm_M > DECODER_NORM / 2) & (norm_M < DECODER_NORM * 2)).all()


def test_what_is_kept_or_explained_already_is_not_found_again(planted: Planted) -> None:
    kept = look(true_crosscoder(planted, ([], range(3, 29), [])), planted, "a", kept_GD=planted.concepts["a"][:1])
    near_M = cosines(kept, planted, "a").max(dim=1)
    assert sorted(near_M.indices[near_M.values > 0.9].tolist()) == [1, 2]
    explained = look(true_crosscoder(planted, ([0, 2], range(3, 29), [])), planted, "a")
    assert cosines(explained, planted, "a").argmax(dim=1)[0] == 1
    assert float(explained.gain_M[1:].sum()) < 0.1 * float(explained.gain_M[0])


def test_what_a_feature_that_goes_explained_is_found_again(planted: Planted) -> None:
    crosscoder = true_crosscoder(planted, ([0, 1, 2], range(3, 29), []))
    assert not len(look(crosscoder, planted, "a")) or look(crosscoder, planted, "a").gain_M.max() < 0.01
    found = look(crosscoder, planted, "a", released=1)
    assert cosines(found, planted, "a").argmax(dim=1)[0] == 1
    assert cosines(found, planted, "a")[0, 1] > 0.95


@pytest.mark.parametrize("dense", [False, True])
def test_a_direction_in_which_a_model_varies_all_the_time_is_no_concept(dense: bool, planted: Planted) -> None:
    """The other model predicts neither of them; one is active in 3 % of the pairs, one in all."""
    random = torch.Generator().manual_seed(1)
    direction_D = torch.linalg.svd(planted.concepts["a"]).Vh[-1]  # orthogonal to all concepts
    often_N = torch.randn(len(planted.x_a), generator=random)
    rarely_N = (torch.rand(len(planted.x_a), generator=random) < 0.03) * 1.0
    x_a = planted.x_a + 3.0 * (often_N if dense else rarely_N)[:, None] * direction_D
    pair = Planted(x_a, planted.x_b, planted.concepts)
    found = look(true_crosscoder(pair, ([0, 1, 2], range(3, 29), [])), pair, "a")
    alike = (found.decoder_MD / found.decoder_MD.norm(dim=1, keepdim=True) @ direction_D).abs() > 0.8
    assert bool(alike.any()) is not dense


def test_candidates_for_shared_features_are_concepts_that_both_models_have(planted: Planted) -> None:
    """Concepts 20 to 28 of both models are missing, and those of one model as well: these are not wanted here."""
    crosscoder = true_crosscoder(planted, ([], range(3, 20), []))
    sampled = sample(crosscoder, cut(crosscoder, planted), above_threshold)
    random = torch.Generator().manual_seed(0)
    found = found_shared(sampled, 60, decoder_norm=DECODER_NORM, random=random).take(slice(9))
    concepts = torch.cat(list(planted.concepts.values()), dim=1)
    near = torch.cosine_similarity(found.decoder_MD[:, None], concepts[None], dim=2).max(dim=1)
    assert sorted(near.indices.tolist()) == list(range(20, 29))
    assert near.values.min() > 0.9


@pytest.mark.parametrize("side", ["a", "b"])
def test_nothing_is_found_in_a_pair_that_is_a_rotation(side: str) -> None:
    pair = rotated_pair(32, rows=4096, active=3.0)
    for shared in (range(24), range(12)):
        assert len(look(true_crosscoder(pair, ([], shared, [])), pair, side)) == 0
