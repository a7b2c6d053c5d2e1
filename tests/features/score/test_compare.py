"""The arithmetic of effects on numbers whose answer is known.

Legend: N subjects, R random directions, S strengths, K buckets, P places.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.features.score.compare import compare, similarity, steerability, without_common
from modeldiff.features.score.effect import tangents


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ones(n: int, strengths: int) -> torch.Tensor:
    return torch.ones(n, strengths)


@given(st.integers(0, 2**31))
def test_a_tangent_leads_from_one_distribution_to_the_other(seed: int) -> None:
    base_PK, pushed_PK = (normal(4, 6, seed=seed + i).softmax(dim=1).sqrt() for i in (0, 1))
    tangent_PK, angle_P = tangents(base_PK, pushed_PK)
    assert torch.allclose(tangent_PK.norm(dim=1), angle_P, atol=1e-5)
    assert torch.allclose((tangent_PK * base_PK).sum(dim=1), torch.zeros(4), atol=1e-5)
    along_P1 = angle_P[:, None]
    arrived_PK = base_PK * along_P1.cos() + tangent_PK * along_P1.sin() / along_P1
    assert torch.allclose(arrived_PK, pushed_PK, atol=1e-5)


def test_nothing_moves_nothing_and_all_moves_by_a_right_angle() -> None:
    base = torch.tensor([[1.0, 0.0, 0.0]])
    assert tangents(base, base)[0].tolist() == [[0, 0, 0]]
    tangent, angle = tangents(base, torch.tensor([[0.0, 1.0, 0.0]]))
    assert angle.item() == pytest.approx(math.pi / 2)
    assert tangent[0].tolist() == pytest.approx([0, math.pi / 2, 0])


def test_equal_effects_are_5_and_unrelated_or_opposite_ones_1() -> None:
    e = torch.eye(4)[:, None, :]  # four effects that share nothing
    same = compare(e, e, ones(4, 1), ones(4, 1))
    assert same.similarity_N.tolist() == [5, 5, 5, 5]
    assert set(same.mismatched.tolist()) == {1.0}
    assert len(same.mismatched) == 4 * 3
    opposite = compare(e, -e, ones(4, 1), ones(4, 1))
    assert opposite.similarity_N.tolist() == [1, 1, 1, 1]
    assert similarity(np.array([0.5, -0.5])).tolist() == [3, 1]


def test_the_length_of_an_effect_does_not_count_and_the_best_pair_of_strengths_does() -> None:
    effect_K, other_K = torch.eye(3)[0], torch.eye(3)[1]
    source = torch.stack([effect_K, other_K])[None]
    target = torch.stack([torch.eye(3)[2], 7 * effect_K])[None]
    found = compare(source, target, ones(1, 2), ones(1, 2))
    assert found.similarity_N.tolist() == [5]
    assert found.strengths_N2.tolist() == [[0, 1]]  # the weaker push in the source, the stronger one in the target


def test_an_effect_that_is_only_rounding_is_like_no_other() -> None:
    e = torch.ones(1, 1, 3)
    assert compare(e, e, ones(1, 1), torch.full((1, 1), 1e-6)).similarity_N.tolist() == [1]
    assert compare(e, torch.zeros(1, 1, 3), ones(1, 1), ones(1, 1)).similarity_N.tolist() == [1]


def test_what_any_push_does_is_no_likeness() -> None:
    common_K = torch.eye(400)[0]
    a, b = (normal(1, 1, 400, seed=seed) + 100 * common_K for seed in (0, 1))
    randoms = [normal(30, 1, 400, seed=seed) + 100 * common_K for seed in (2, 3)]
    raw = compare(a, b, ones(1, 1), ones(1, 1)).similarity_N[0]
    left = compare(
        without_common(a, randoms[0], [None]), without_common(b, randoms[1], [None]), ones(1, 1), ones(1, 1)
    ).similarity_N[0]
    assert raw > 4.8
    assert left < 1.5


def test_a_random_direction_is_not_in_its_own_mean() -> None:
    randoms = torch.eye(3)[:, None, :]
    rest = without_common(randoms, randoms, [0, 1, 2])
    assert torch.allclose(rest, randoms)  # orthogonal to the mean of the two others
    assert not torch.allclose(without_common(randoms, randoms, [None] * 3), randoms)


def test_steerable_is_what_exceeds_95_percent_of_the_random_directions() -> None:
    randoms = np.arange(1, 101) / 100
    assert steerability(0.5, randoms) == (pytest.approx(0.49), False)
    assert steerability(0.95, randoms)[1] is False
    assert steerability(0.97, randoms)[1] is True
    assert steerability(2.0, randoms) == (1.0, True)
    assert steerability(0.0, randoms) == (0.0, False)
