"""Fraction of variance explained, on known answers."""

from __future__ import annotations

import pytest
import torch

from modeldiff.crosscoder.training.quality import Explained, Quality
from tests.crosscoder.made import random_crosscoder


def test_predicting_the_mean_scores_zero_and_the_truth_scores_one() -> None:
    x_ND = torch.randn(1000, 8) + 100 * torch.randn(8)
    mean_ND = x_ND.double().mean(dim=0).expand(1000, 8)
    for predicted, expected in ((mean_ND, 0.0), (x_ND, 1.0), (x_ND + (mean_ND - x_ND) / 2, 0.75)):
        explained = Explained(torch.zeros(8))
        for rows in (slice(0, 300), slice(300, 999), slice(999, 1000)):
            explained.add(x_ND[rows], predicted[rows])
        assert explained.fve == pytest.approx(expected, abs=1e-9)
    constant = Explained(torch.zeros(3))
    constant.add(torch.ones(5, 3), torch.zeros(5, 3))
    assert constant.fve == 0, "data that do not vary"


def test_gain_is_what_the_exclusive_features_add() -> None:
    crosscoder = random_crosscoder()
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
