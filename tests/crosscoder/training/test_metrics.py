"""FVE on cases with known answers."""

from __future__ import annotations

import pytest
import torch
from modeldiff.crosscoder.training.metrics import Explained, Quality, by_partition

from tests.crosscoder.made import random_crosscoder


def test_predicting_the_mean_scores_zero_and_the_truth_scores_one() -> None:
    x_ND = torch.randn(1000, 8) + 100 * torch.randn(8)
    mean_ND = x_ND.double().mean(dim=0).expand(1000, 8)
    for predicted, expected in ((mean_ND, 0.0), (x_ND, 1.0), (x_ND + (mean_ND - x_ND) / 2, 0.75)):
        explained = Explained(torch.zeros(8))
        for start in (0, 300, 999):
            stop = {0: 300, 300: 999, 999: 1000}[start]
            explained.add(x_ND[start:stop], predicted[start:stop])
        assert explained.fve == pytest.approx(expected, abs=1e-9)


def test_data_that_do_not_vary_score_zero() -> None:
    explained = Explained(torch.zeros(3))
    assert explained.fve == 0
    explained.add(torch.ones(5, 3), torch.zeros(5, 3))
    assert explained.fve == 0


def test_the_decoder_biases_alone_score_zero_when_they_are_the_mean() -> None:
    crosscoder = random_crosscoder()
    x_a, x_b = torch.randn(500, 6), torch.randn(500, 9)
    with torch.no_grad():
        crosscoder.b_dec_a.copy_(x_a.mean(dim=0))
        crosscoder.b_dec_b.copy_(x_b.mean(dim=0))
    nothing = torch.zeros(500, 10)
    quality = Quality(crosscoder)
    quality.add_code((x_a, x_b), nothing)
    for figure in quality.figures().values():
        assert figure == pytest.approx({"a": 0, "b": 0}, abs=1e-6)


def test_gain_is_what_the_exclusive_features_add() -> None:
    crosscoder = random_crosscoder(n_a_only=2, n_shared=5, n_b_only=3)
    f_BF = torch.rand(300, 10)
    x_a, x_b = crosscoder.decode(f_BF, raw=False)
    quality = Quality(crosscoder)
    quality.add_code((x_a, x_b), f_BF)
    figures = quality.figures()
    only_a = Explained(torch.zeros(6))
    only_a.add(x_a, f_BF[:, 2:7] @ crosscoder.w_dec_a[2:].detach() + crosscoder.b_dec_a.detach())
    assert figures["fve"] == pytest.approx({"a": 1, "b": 1})
    assert figures["fve_shared"]["a"] == pytest.approx(only_a.fve)
    assert figures["gain_exclusive"]["a"] == pytest.approx(1 - only_a.fve)


def test_sums_by_partition() -> None:
    crosscoder = random_crosscoder(n_a_only=2, n_shared=5, n_b_only=3)
    assert by_partition(crosscoder, torch.arange(10)) == {"A": 1, "shared": 20, "B": 24}
