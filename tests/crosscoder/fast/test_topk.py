"""BatchTopK against brute force."""

from __future__ import annotations

from unittest.mock import patch

import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.crosscoder.fast import topk as topk_module
from modeldiff.crosscoder.fast.topk import Scores


def brute_force(score_BF: torch.Tensor, count: int) -> list[int]:
    scores = score_BF.reshape(-1).tolist()
    ranked = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-scores[i], i))
    return sorted(ranked[:count])


@given(
    rows=st.integers(1, 200),
    features=st.integers(1, 12),
    share=st.floats(0, 1.1),
    levels=st.sampled_from([2, 5, 10**6]),
    biased=st.booleans(),
    weighted=st.booleans(),
    looked_up=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_batch_topk_equals_brute_force_over_the_matrix_of_scores_also_with_ties(
    rows: int, features: int, share: float, levels: int, biased: bool, weighted: bool, looked_up: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pre_BF = torch.randint(-levels, levels, (rows, features), generator=generator) / levels
    bias_F = torch.randint(-levels, levels, (features,), generator=generator) / levels if biased else None
    weight_F = torch.randint(0, 4, (features,), generator=generator) / 3 if weighted else None  # also 0
    scores = Scores(pre_BF, bias_F, weight_F)
    whole_BF = pre_BF if bias_F is None else pre_BF + bias_F
    score_BF = whole_BF if weight_F is None else whole_BF * weight_F
    count = int(share * rows * features)
    # Matrices as small as these would always have all their scores made.
    with patch.object(topk_module, "_FEW_SCORES", 0 if looked_up else 1 << 18):
        kept_K, score_K = scores.top(count)
    assert kept_K.tolist() == brute_force(score_BF, count)
    assert torch.equal(score_K, score_BF.reshape(-1)[kept_K])
    assert torch.equal(scores.pre(kept_K), whole_BF.reshape(-1)[kept_K])


def test_batch_topk_where_the_sampled_rows_mislead() -> None:
    score_BF = torch.full((1000, 8), 0.5)
    score_BF[::31] = 2.0  # the sample sees only large ones: too high a bound, then the fallback
    assert Scores(score_BF).top(4000)[0].tolist() == brute_force(score_BF, 4000)
