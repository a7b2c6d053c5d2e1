"""Affine maps between activations, against scikit-learn and known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from modeldiff.linear.maps import RIDGES, LinearMap, best_ridge, ridge_scores
from modeldiff.linear.ridge import RIDGE, Moments, ridge_weights

N_FIT, N_HELD, WIDTH_X, WIDTH_F = 300, 100, 6, 9


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x_ND: torch.Tensor, f_NG: torch.Tensor) -> Moments:
    made = Moments.empty(x_ND.shape[1], f_NG.shape[1])
    made.add_dense(x_ND, f_NG)
    return made


def noisy_pairs() -> tuple[torch.Tensor, torch.Tensor]:
    x_ND = normal(N_FIT + N_HELD, WIDTH_X, seed=0) + 3
    f_NG = x_ND @ normal(WIDTH_X, WIDTH_F, seed=1) + 2 * normal(len(x_ND), WIDTH_F, seed=2) - 5
    return x_ND, f_NG


def alpha_of(ridge: float, x_ND: torch.Tensor) -> float:
    return ridge * float((x_ND - x_ND.mean(0)).square().sum()) / x_ND.shape[1]


@pytest.mark.parametrize("ridge", [1e-8, 1e-2, 1.0, 10.0])
def test_weights_and_bias_equal_scikit_learn(ridge: float) -> None:
    x_ND, f_NG = noisy_pairs()
    model = Ridge(alpha=alpha_of(ridge, x_ND)).fit(x_ND.numpy(), f_NG.numpy())
    np.testing.assert_allclose(ridge_weights(moments(x_ND, f_NG), ridge).numpy(), model.coef_.T, atol=1e-9)
    found = LinearMap.fitted(moments(x_ND, f_NG), ridge)
    assert found.widths == (WIDTH_X, WIDTH_F)
    assert (found.w_DD.dtype, found.bias_D.dtype, found.ridge) == (torch.float32, torch.float32, ridge)
    np.testing.assert_allclose(found.bias_D.numpy(), model.intercept_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.apply(x_ND).numpy(), model.predict(x_ND.numpy()), rtol=1e-5, atol=1e-5)


def test_scores_equal_scikit_learn() -> None:
    x_ND, f_NG = noisy_pairs()
    fit, held = slice(None, N_FIT), slice(N_FIT, None)
    scores = ridge_scores(moments(x_ND[fit], f_NG[fit]), moments(x_ND[held], f_NG[held]))
    assert tuple(scores) == RIDGES
    for ridge, score in scores.items():
        model = Ridge(alpha=alpha_of(ridge, x_ND[fit])).fit(x_ND[fit].numpy(), f_NG[fit].numpy())
        expected = r2_score(f_NG[held].numpy(), model.predict(x_ND[held].numpy()), multioutput="variance_weighted")
        assert score == pytest.approx(expected, abs=1e-9)


def test_the_default_is_the_ridge_of_predictability() -> None:
    fit = moments(*noisy_pairs())
    assert torch.equal(ridge_weights(fit), ridge_weights(fit, RIDGE))


def test_noise_asks_for_more_ridge_than_an_exact_relation() -> None:
    few, wide = 60, 40
    x_ND, noise_NG = normal(2 * few, wide, seed=3), normal(2 * few, 5, seed=4)
    exact_NG = x_ND @ normal(wide, 5, seed=5)

    def chosen(f_NG: torch.Tensor) -> float:
        return best_ridge(ridge_scores(moments(x_ND[:few], f_NG[:few]), moments(x_ND[few:], f_NG[few:])))

    assert chosen(exact_NG) == min(RIDGES)
    assert chosen(exact_NG + 5 * noise_NG) >= 0.1
    assert chosen(noise_NG) == max(RIDGES)


def test_what_was_taken_off_comes_back_in_the_bias() -> None:
    x_ND, f_NG = noisy_pairs()
    mean_x, mean_f = normal(WIDTH_X, seed=6), normal(WIDTH_F, seed=7)
    found = LinearMap.fitted(moments(x_ND - mean_x, f_NG - mean_f), 1e-4, taken_off_x=mean_x, taken_off_f=mean_f)
    expected = LinearMap.fitted(moments(x_ND, f_NG), 1e-4)
    torch.testing.assert_close(found.w_DD, expected.w_DD)
    torch.testing.assert_close(found.bias_D, expected.bias_D)


def test_a_direction_moves_without_the_bias_unless_asked() -> None:
    w_DD, bias_D = normal(3, 4, seed=8).float(), normal(4, seed=9).float()
    one = LinearMap(w_DD, bias_D, 0.1)
    d_D = torch.tensor([1.0, -2.0, 0.5])
    torch.testing.assert_close(one.direction(d_D), d_D @ w_DD)
    torch.testing.assert_close(one.direction(d_D, bias=True), d_D @ w_DD + bias_D)
    assert torch.equal(one.direction(torch.zeros(2, 3)), torch.zeros(2, 4))
    # A direction is a difference of activations: moved, it is the difference of the moved ones.
    x_ND = normal(2, 3, seed=10).float()
    torch.testing.assert_close(one.apply(x_ND + d_D) - one.apply(x_ND), one.direction(d_D).expand(2, 4))


@pytest.mark.parametrize(
    ("given", "computed"), [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2]
)
def test_computes_at_least_in_float32(given: torch.dtype, computed: torch.dtype) -> None:
    one = LinearMap(torch.eye(2, 3), torch.ones(3), 0.1)
    x_ND = torch.tensor([[1.5, -2.0]], dtype=given)
    assert one.apply(x_ND).dtype == one.direction(x_ND).dtype == computed
    assert one.apply(x_ND).tolist() == [[2.5, -1.0, 1.0]]


def test_where_nothing_can_be_measured_the_default_is_taken() -> None:
    x_ND, _ = noisy_pairs()
    still = torch.zeros(len(x_ND), 2, dtype=torch.float64)
    some, none = moments(x_ND, still), Moments.empty(WIDTH_X, 2)
    for scores in (ridge_scores(some, some), ridge_scores(some, none), ridge_scores(none, some)):
        assert all(map(math.isnan, scores.values()))
        assert best_ridge(scores) == RIDGE


def test_of_equal_scores_the_most_regular_map_is_taken() -> None:
    assert best_ridge({1e-3: 0.5, 1e-2: 0.5, 1e-1: 0.4, 1.0: math.nan}) == 1e-2
