"""BatchTopK against brute force, the four scores against their formulas, the inference threshold."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modeldiff.crosscoder.fast.scores import Scores, batch_topk
from modeldiff.crosscoder.selection import ThresholdAverage

from modeldiff.crosscoder.fast import scores as selection_module
from tests.crosscoder.made import random_crosscoder


def brute_force(score_BF: torch.Tensor, count: int) -> list[int]:
    scores = score_BF.reshape(-1).tolist()
    ranked = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-scores[i], i))
    return sorted(ranked[:count])


@given(
    rows=st.integers(1, 200),
    features=st.integers(1, 12),
    share=st.floats(0, 1.1),
    levels=st.sampled_from([2, 5, 10**6]),
    seed=st.integers(0, 10**6),
)
def test_batch_topk_equals_brute_force_also_with_ties(
    rows: int, features: int, share: float, levels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    score_BF = torch.randint(-levels, levels, (rows, features), generator=generator) / levels
    count = int(share * rows * features)
    kept_K, score_K = batch_topk(Scores(score_BF), count)
    assert kept_K.tolist() == brute_force(score_BF, count)
    assert torch.equal(score_K, score_BF.view(-1)[kept_K])


@given(
    rows=st.integers(1, 100),
    features=st.integers(1, 12),
    share=st.floats(0, 1.1),
    levels=st.sampled_from([2, 10**6]),
    weighted=st.booleans(),
    looked_up=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_bias_and_weight_of_a_feature_count_as_if_the_matrix_of_scores_were_made(
    rows: int, features: int, share: float, levels: int, weighted: bool, looked_up: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pre_BF = torch.randint(-levels, levels, (rows, features), generator=generator) / levels
    bias_F = torch.randint(-levels, levels, (features,), generator=generator) / levels
    weight_F = torch.randint(0, 4, (features,), generator=generator) / 3 if weighted else None  # also 0
    scores = Scores(pre_BF, bias_F, weight_F)
    score_BF = pre_BF + bias_F if weight_F is None else (pre_BF + bias_F) * weight_F
    count = int(share * rows * features)
    # Of a matrix as small as these all scores would be made.
    with patch.object(selection_module, "_FEW_SCORES", 0 if looked_up else 1 << 18):
        kept_K, score_K = batch_topk(scores, count)
    assert kept_K.tolist() == brute_force(score_BF, count)
    assert torch.equal(score_K, score_BF.reshape(-1)[kept_K])
    assert torch.equal(scores.pre(kept_K), (pre_BF + bias_F).reshape(-1)[kept_K])


def test_batch_topk_where_the_sampled_rows_mislead() -> None:
    score_BF = torch.full((1000, 8), 0.5)
    score_BF[::31] = 2.0  # the sample sees only large ones: too high a bound, then the fallback
    assert batch_topk(Scores(score_BF), 4000)[0].tolist() == brute_force(score_BF, 4000)


def test_scores() -> None:
    crosscoder = random_crosscoder(n_a_only=2, n_shared=5, n_b_only=3)
    a_F, b_F = crosscoder.decoder_norms()["a"], crosscoder.decoder_norms()["b"]
    expected = {
        "l2": (a_F**2 + b_F**2).sqrt(),
        "sum": a_F + b_F,
        "mean": torch.cat([a_F[:2], (a_F[2:7] + b_F[2:7]) / 2, b_F[7:]]),
    }
    for selection, weights in expected.items():
        found = random_crosscoder(n_a_only=2, n_shared=5, n_b_only=3, selection=selection).score_weights()
        assert found is not None
        torch.testing.assert_close(found, weights)
    assert crosscoder.score_weights() is None


@pytest.mark.parametrize("selection", ["activation", "sum"])
def test_inference_keeps_activations_whose_score_exceeds_the_threshold(selection: str) -> None:
    crosscoder = random_crosscoder(selection=selection, threshold=0.7)
    x_a, x_b = torch.randn(50, 6), torch.randn(50, 9)
    pre_BF = crosscoder.pre_activations(x_a, x_b)
    score_BF = pre_BF * (crosscoder.score_weights() if selection == "sum" else 1.0)
    expected = torch.where(score_BF > 0.7, pre_BF, 0.0)
    assert torch.equal(crosscoder.encode(x_a, x_b, raw=False), expected)
    assert 0 < (expected > 0).float().mean() < 1


def test_threshold_average_has_no_bias_from_its_start() -> None:
    average = ThresholdAverage(window=100)
    assert average.value == 0
    for _ in range(3):
        average.update(0.5)
    assert average.value == pytest.approx(0.5)
    for _ in range(1000):
        average.update(0.9)
    assert average.value == pytest.approx(0.9, abs=1e-3)
