"""Evidence about features whose concept is known, because they were set by hand to it.

Legend: C concepts, N pairs, G features judged.
"""

from __future__ import annotations

import pytest
import torch

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.audits.judging import Evidence, exclusive, judge, sample
from tests.crosscoder.planted import Planted, plant
from tests.crosscoder.truth import THRESHOLD, above_threshold, cut, true_crosscoder

ROWS, WIDTHS = 4096, (32, 36)
# Concepts 0 to 2 are A's alone, 21 to 23 B's.
OWN, SHARED = 0, 10


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant(ROWS, widths=WIDTHS, offset=0, active=3.0)


def evidence(crosscoder: Crosscoder, planted: Planted, side: str) -> Evidence:
    return judge(crosscoder, sample(crosscoder, cut(crosscoder, planted), above_threshold), side)


@pytest.mark.parametrize("combine", ["sum", "mean"])
@pytest.mark.parametrize(("side", "own"), [("a", OWN), ("b", 23)])
def test_what_both_models_have_is_told_from_what_one_has(side: str, own: int, combine: str, planted: Planted) -> None:
    """In each exclusive partition the first feature is a concept of its model alone, the second one of both."""
    concepts = ([OWN, SHARED], [*range(3, 10), *range(12, 20)], [23, 11])
    found = evidence(true_crosscoder(planted, concepts, combine=combine), planted, side)
    assert found.known_G.all()
    assert found.exclusive_G.tolist() == [True, False]
    torch.testing.assert_close(found.own_G, torch.ones_like(found.own_G), rtol=0, atol=0.02)
    assert abs(found.other_G[0]) < 0.05
    assert float(found.other_G[1] / found.own_G[1]) == pytest.approx(1, abs=0.02)
    assert found.null_G.abs().max() < 0.05
    assert 0 <= found.null < 0.05
    assert found.reference == pytest.approx(1, abs=0.1)
    x = planted.x_a / 3 if side == "a" else planted.x_b * 5
    there_N = x @ torch.linalg.pinv(planted.concepts[side])[:, own] > THRESHOLD
    assert found.fires_G[0] == there_N.sum()


def test_a_shared_feature_that_one_model_has_almost_alone_is_judged_as_its_own(planted: Planted) -> None:
    crosscoder = true_crosscoder(planted, ([0], [*range(3, 13), 1, 13, 22], [23]))
    with torch.no_grad():  # feature 12, concept 13, has a decoder in A only, but both models have the concept
        crosscoder.w_dec_b[12 - 1] *= 0.1
    sampled = sample(crosscoder, cut(crosscoder, planted), above_threshold)
    assert sampled.judged["a"].tolist() == [0, 11, 12]
    assert sampled.judged["b"].tolist() == [14, 13]
    assert sorted(sampled.reference_R.tolist()) == list(range(1, 11)), "neither model dominates them"
    assert judge(crosscoder, sampled, "a").exclusive_G.tolist() == [True, True, False]
    assert judge(crosscoder, sampled, "b").exclusive_G.tolist() == [True, True]


def test_the_reference_is_what_the_other_model_says_of_shared_concepts(planted: Planted) -> None:
    """B reads through a narrow window: it tells A's shared concepts only in part."""
    directions = planted.concepts
    narrow = Planted(planted.x_a, planted.x_b[:, :12], {"a": directions["a"], "b": directions["b"][:, :12]})
    shared = list(range(3, 20))
    crosscoder = true_crosscoder(planted, ([OWN, 20], shared, [23]))
    crosscoder_narrow = true_crosscoder(narrow, ([OWN, 20], shared, [23]))
    with torch.no_grad():  # they are read from A alone, exactly; B has decoders for them
        crosscoder_narrow.w_enc_a[2:] = 2 * crosscoder.w_enc_a[2:]
        crosscoder_narrow.w_enc_b[:] = 0
    found = evidence(crosscoder_narrow, narrow, "a")
    x_a, x_b = (torch.cat(x) for x in zip(*cut(crosscoder_narrow, narrow), strict=True))
    strength_NC = x_a @ torch.linalg.pinv(directions["a"])[:, shared]
    half = torch.arange(ROWS) // 512 % 2 == 0
    solved = torch.linalg.lstsq(with_ones(x_b[half]), strength_NC[half]).solution
    rest_NC = strength_NC[~half] - with_ones(x_b[~half]) @ solved
    r2_C = 1 - rest_NC.square().sum(dim=0) / (strength_NC[~half] - strength_NC[~half].mean(dim=0)).square().sum(dim=0)
    assert 0.2 < float(r2_C.median()) < 0.8
    assert found.reference == pytest.approx(float(r2_C.median()), abs=0.05)
    assert found.bar == pytest.approx(found.reference / 2)
    assert found.exclusive_G.tolist() == [True, False], "the bar is lower, and a shared concept still above it"


def with_ones(x_ND: torch.Tensor) -> torch.Tensor:
    return torch.cat([x_ND, torch.ones(len(x_ND), 1)], dim=1)


@pytest.mark.parametrize("concepts", [([], range(3, 20), []), ([0, 1], [], [23]), ([], [20], [])])
def test_partitions_may_be_empty(concepts: tuple[list[int], list[int], list[int]], planted: Planted) -> None:
    crosscoder = true_crosscoder(planted, concepts)
    for side, numbers in (("a", concepts[0]), ("b", concepts[2])):
        found = evidence(crosscoder, planted, side)
        assert found.exclusive_G.tolist() == [True] * len(numbers)
        assert found.null >= 0
        assert found.reference == 1 or len(concepts[1]) >= 17, "few shared features are no reference"


def test_a_sample_sums_up_errors_and_codes(planted: Planted) -> None:
    crosscoder = true_crosscoder(planted, ([0, 1], range(3, 12), [22]))
    batches = cut(crosscoder, planted)
    sampled = sample(crosscoder, batches, above_threshold)
    x_a, x_b = (torch.cat(x) for x in zip(*batches, strict=True))
    f_NF, _ = above_threshold(crosscoder.pre_activations(x_a, x_b).detach())
    errors = [x - xhat.detach() for x, xhat in zip((x_a, x_b), crosscoder.decode(f_NF, raw=False), strict=True)]
    torch.testing.assert_close(sampled.ff_F, f_NF.square().sum(dim=0))
    for side, e_ND in zip("ab", errors, strict=True):
        torch.testing.assert_close(torch.cat(sampled.errors[side]), e_ND)
        torch.testing.assert_close(sampled.fe[side], f_NF.T @ e_ND, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(torch.cat(sampled.codes[side]), f_NF[:, sampled.judged[side]])
    assert sampled.threshold == pytest.approx(THRESHOLD)


def test_exclusive_needs_its_own_model_and_not_the_other() -> None:
    own_G = torch.tensor([0.8, 0.8, 0.01, 0.1, torch.nan])
    other_G = torch.tensor([0.3, 0.5, -0.2, 0.015, torch.nan])
    assert exclusive(own_G, other_G, bar=0.5, null=0.02).tolist() == [True, False, False, True, False]
    assert exclusive(own_G, other_G, bar=0.1, null=0.02).tolist() == [False, False, False, True, False]
