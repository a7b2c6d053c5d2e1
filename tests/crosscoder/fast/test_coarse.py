"""Selection by coarse upper bounds keeps what selection by exact products keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from modeldiff.crosscoder.fast.coarse import CoarseScores
from modeldiff.crosscoder.fast.scores import batch_topk

from modeldiff.crosscoder import Crosscoder
from tests.crosscoder.made import random_crosscoder


def exact_scores(crosscoder: Crosscoder, x_a: torch.Tensor, x_b: torch.Tensor) -> torch.Tensor:
    """(B, F), float64."""
    config = crosscoder.config
    pre_BF = crosscoder.b_enc.detach().double().repeat(len(x_a), 1)
    both = slice(config.n_a_only, config.n_a)
    from_a = x_a.double() @ crosscoder.w_enc_a.detach().double().T
    from_b = x_b.double() @ crosscoder.w_enc_b.detach().double().T
    pre_BF[:, : config.n_a_only] += from_a[:, : config.n_a_only]
    pre_BF[:, config.n_a :] += from_b[:, config.n_shared :]
    pre_BF[:, both] += crosscoder.encoder_share * (from_a[:, config.n_a_only :] + from_b[:, : config.n_shared])
    weights_F = crosscoder.score_weights()
    return pre_BF if weights_F is None else pre_BF * weights_F


@given(
    rows=st.integers(1, 90),
    sizes=st.tuples(st.integers(0, 9), st.integers(1, 30), st.integers(0, 9)),
    selection=st.sampled_from(["activation", "l2", "mean"]),
    combine=st.sampled_from(["mean", "sum"]),
    spread=st.sampled_from([0.0, 0.01, 1.0]),
    share=st.floats(0, 1.1),
    seed=st.integers(0, 10**6),
)
def test_the_kept_scores_are_the_largest_ones(
    rows: int, sizes: tuple[int, int, int], selection: str, combine: str, spread: float, share: float, seed: int
) -> None:
    a, shared, b = sizes
    crosscoder = random_crosscoder(n_a_only=a, n_shared=shared, n_b_only=b, k=1, selection=selection, combine=combine)
    generator = torch.Generator().manual_seed(seed)
    # With a small spread all rows are alike and their scores closer together than bfloat16 can tell.
    x_a, x_b = (
        torch.randn(width, generator=generator) + spread * torch.randn(rows, width, generator=generator)
        for width in (crosscoder.config.width_a, crosscoder.config.width_b)
    )
    score_BF = exact_scores(crosscoder, x_a, x_b)
    room = torch.empty(score_BF.shape, dtype=torch.bfloat16)
    with torch.no_grad():
        scores = CoarseScores(crosscoder, x_a, x_b, room)
        count = int(share * score_BF.numel())
        kept_K, kept_score_K = batch_topk(scores, count)
        pre_K = scores.pre(kept_K)
    flat, tiny = score_BF.view(-1), 1e-5 * float(score_BF.abs().max())
    assert torch.equal(kept_K, kept_K.unique())
    torch.testing.assert_close(kept_score_K.double(), flat[kept_K], rtol=0, atol=tiny)
    weights_F = crosscoder.score_weights()
    weight_K = 1.0 if weights_F is None else weights_F[kept_K % crosscoder.n_features]
    torch.testing.assert_close(pre_K * weight_K, kept_score_K)
    positive = flat[flat > 0]
    assert abs(len(kept_K) - min(count, len(positive))) <= int((flat.abs() < tiny).sum())
    if 0 < len(kept_K) < len(positive):
        assert float(flat[kept_K].min()) >= float(positive.sort(descending=True).values[len(kept_K) - 1]) - tiny


@pytest.mark.parametrize("width", [1, 40, 700])
def test_the_bound_is_above_every_pre_activation(width: int) -> None:
    crosscoder = random_crosscoder(n_a_only=50, n_shared=300, n_b_only=50, width_a=width, width_b=width, k=1)
    x_a, x_b = torch.randn(200, width) * 100, torch.randn(200, width).exp()
    with torch.no_grad():
        bound_BF = CoarseScores(crosscoder, x_a, x_b, torch.empty(200, 400, dtype=torch.bfloat16)).pre_BF.double()
    exact_BF = exact_scores(crosscoder, x_a, x_b) - crosscoder.b_enc.detach().double()
    assert bool((bound_BF + 2**-8 * bound_BF.abs() >= exact_BF).all())
