"""Ridge regression from sums over pairs, its R² on other pairs and the maps made of it, against scikit-learn and known
answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from modeldiff.linear.maps import RIDGES, LinearMap, best_ridge, ridge_scores
from modeldiff.linear.ridge import RIDGE, Moments, held_out_r2, ridge_weights

N_FIT, N_HELD, WIDTH, TARGETS = 300, 100, 6, 9
FIT, HELD = slice(None, N_FIT), slice(N_FIT, None)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x_ND: torch.Tensor, f_NG: torch.Tensor, chunk: int = 1000) -> Moments:
    made = Moments.empty(x_ND.shape[1], f_NG.shape[1])
    for start in range(0, len(x_ND), chunk):
        made.add_dense(x_ND[start : start + chunk], f_NG[start : start + chunk])
    return made


def r2_of(x_ND: torch.Tensor, f_NG: torch.Tensor, chunk: int = 1000) -> torch.Tensor:
    """(G,) R² on the last pairs of the map fitted on the first."""
    return held_out_r2(*(moments(x_ND[part], f_NG[part], chunk) for part in (FIT, HELD)))


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with a mean, and sparse targets that follow them in part."""
    x_ND = normal(N_FIT + N_HELD, WIDTH, seed=0) + 3
    f_NG = torch.relu(x_ND @ normal(WIDTH, TARGETS, seed=1) + 2 * normal(len(x_ND), TARGETS, seed=2))
    return x_ND, f_NG


def fitted(ridge: float, x_ND: torch.Tensor, f_NG: torch.Tensor) -> Ridge:
    """scikit-learn's regression with the same penalty."""
    alpha = ridge * float((x_ND - x_ND.mean(0)).square().sum()) / x_ND.shape[1]
    return Ridge(alpha=alpha).fit(x_ND.numpy(), f_NG.numpy())


@given(chunk=st.integers(1, N_FIT))
def test_r2_equals_scikit_learn_however_the_pairs_are_cut(chunk: int) -> None:
    x_ND, f_NG = pairs()
    model = fitted(RIDGE, x_ND[FIT], f_NG[FIT])
    expected_G = r2_score(f_NG[HELD].numpy(), model.predict(x_ND[HELD].numpy()), multioutput="raw_values")
    np.testing.assert_allclose(r2_of(x_ND, f_NG, chunk).numpy(), expected_G, atol=1e-9)
    np.testing.assert_allclose(ridge_weights(moments(x_ND[FIT], f_NG[FIT], chunk)).numpy(), model.coef_.T, atol=1e-9)


@pytest.mark.parametrize("ridge", [1e-8, 1e-2, 1.0, 10.0])
def test_a_map_and_its_score_equal_scikit_learn(ridge: float) -> None:
    x_ND, f_NG = pairs()
    model = fitted(ridge, x_ND[FIT], f_NG[FIT])
    found = LinearMap.fitted(moments(x_ND[FIT], f_NG[FIT]), ridge)
    np.testing.assert_allclose(found.bias_D.numpy(), model.intercept_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.apply(x_ND).numpy(), model.predict(x_ND.numpy()), rtol=1e-5, atol=1e-5)
    scores = ridge_scores(moments(x_ND[FIT], f_NG[FIT]), moments(x_ND[HELD], f_NG[HELD]))
    assert tuple(scores) == RIDGES
    expected = r2_score(f_NG[HELD].numpy(), model.predict(x_ND[HELD].numpy()), multioutput="variance_weighted")
    assert scores[ridge] == pytest.approx(expected, abs=1e-9)


def test_where_nothing_varies_or_is_there_no_r2_is_given() -> None:
    x_ND, f_NG = pairs()
    f_NG[:, 1] = 0
    f_NG[HELD, 2] = 0.5
    assert r2_of(x_ND, f_NG).isnan().tolist() == [False, True, True] + [False] * (TARGETS - 3)
    some, none = moments(x_ND, 0 * f_NG), Moments.empty(WIDTH, TARGETS)
    for scores in (ridge_scores(some, some), ridge_scores(some, none), ridge_scores(none, some)):
        assert all(map(math.isnan, scores.values()))
        assert best_ridge(scores) == RIDGE


@pytest.mark.parametrize("value", [0.1, 1e6])
def test_an_input_that_does_not_vary_predicts_the_mean(value: float) -> None:
    _, f_NG = pairs()
    still_ND = torch.full((len(f_NG), WIDTH), value, dtype=torch.float64)
    mean_G = r2_of(torch.zeros_like(still_ND), f_NG)
    assert ((mean_G <= 0) & (mean_G > -0.1)).all()
    torch.testing.assert_close(r2_of(still_ND, f_NG), mean_G)


def test_noise_asks_for_more_ridge_than_an_exact_relation() -> None:
    few, wide = 60, 40
    x_ND, noise_NG = normal(2 * few, wide, seed=3), normal(2 * few, 5, seed=4)
    for f_NG, expected in ((x_ND @ normal(wide, 5, seed=5), min(RIDGES)), (noise_NG, max(RIDGES))):
        assert best_ridge(ridge_scores(*(moments(x_ND[k::2], f_NG[k::2]) for k in (0, 1)))) == expected
    assert best_ridge({1e-3: 0.5, 1e-2: 0.5, 1e-1: 0.4, 1.0: math.nan}) == 1e-2, "of equals the most regular"


def test_what_was_origin_comes_back_in_the_bias() -> None:
    x_ND, f_NG = pairs()
    mean_x, mean_f = normal(WIDTH, seed=6), normal(TARGETS, seed=7)
    found = LinearMap.fitted(moments(x_ND - mean_x, f_NG - mean_f), 1e-4, origin_x=mean_x, origin_f=mean_f)
    expected = LinearMap.fitted(moments(x_ND, f_NG), 1e-4)
    torch.testing.assert_close(found.w_DD, expected.w_DD)
    torch.testing.assert_close(found.bias_D, expected.bias_D)
