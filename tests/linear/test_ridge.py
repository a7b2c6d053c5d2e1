"""Held-out R² of a linear map, from sums over pairs, against scikit-learn and known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from modeldiff.linear.ridge import RIDGE, Moments, held_out_r2, ridge_weights

N_FIT, N_HELD, WIDTH = 300, 100, 6


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(x_ND: torch.Tensor, f_NG: torch.Tensor, chunk: int = 1000) -> Moments:
    made = Moments.empty(x_ND.shape[1], f_NG.shape[1])
    for start in range(0, len(x_ND), chunk):
        made.add_dense(x_ND[start : start + chunk], f_NG[start : start + chunk])
    return made


def measured(x_ND: torch.Tensor, f_NG: torch.Tensor, chunk: int = 1000) -> torch.Tensor:
    """(G,) R² on the last pairs of the map fitted on the first."""
    parts = (slice(None, N_FIT), slice(N_FIT, None))
    fit, held = (moments(x_ND[part], f_NG[part], chunk) for part in parts)
    return held_out_r2(fit, held)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs with a mean, and sparse targets that follow them in part."""
    x_ND = normal(N_FIT + N_HELD, WIDTH, seed=0) + 3
    f_NG = torch.relu(x_ND @ normal(WIDTH, 4, seed=1) + normal(len(x_ND), 4, seed=2))
    return x_ND, f_NG


@given(chunk=st.integers(1, N_FIT))
def test_equals_scikit_learn_however_the_pairs_are_cut(chunk: int) -> None:
    x_ND, f_NG = pairs()
    found_G = measured(x_ND, f_NG, chunk)
    alpha = RIDGE * float((x_ND[:N_FIT] - x_ND[:N_FIT].mean(0)).square().sum()) / WIDTH
    model = Ridge(alpha=alpha).fit(x_ND[:N_FIT].numpy(), f_NG[:N_FIT].numpy())
    expected_G = r2_score(f_NG[N_FIT:].numpy(), model.predict(x_ND[N_FIT:].numpy()), multioutput="raw_values")
    np.testing.assert_allclose(found_G.numpy(), expected_G, atol=1e-9)
    assert found_G.min() > 0.1
    weights_DG = ridge_weights(moments(x_ND[:N_FIT], f_NG[:N_FIT], chunk))
    np.testing.assert_allclose(weights_DG.numpy(), model.coef_.T, atol=1e-9)


def test_a_linear_target_is_explained_in_full() -> None:
    x_ND, _ = pairs()
    f_NG = x_ND @ normal(WIDTH, 3, seed=3) + 7
    torch.testing.assert_close(measured(x_ND, f_NG), torch.ones(3, dtype=torch.float64))


def test_an_unrelated_target_is_not_explained() -> None:
    x_ND, _ = pairs()
    found_G = measured(x_ND, normal(N_FIT + N_HELD, 200, seed=4))
    # On other pairs, what is fitted to chance costs WIDTH / N_FIT of the variance, and the mean 1 / N_FIT + 1 / N_HELD.
    assert float(found_G.mean()) == pytest.approx(-(WIDTH + 1) / N_FIT - 1 / N_HELD, abs=0.01)
    assert float(found_G.max()) < 0.1


def test_targets_do_not_disturb_each_other() -> None:
    x_ND, f_NG = pairs()
    alone_G = torch.cat([measured(x_ND, f_NG[:, [target]]) for target in range(4)])
    torch.testing.assert_close(measured(x_ND, f_NG), alone_G)


def test_a_target_that_does_not_vary_has_no_r2() -> None:
    x_ND, f_NG = pairs()
    f_NG[:, 1] = 0
    f_NG[N_FIT:, 2] = 0.5
    assert measured(x_ND, f_NG).isnan().tolist() == [False, True, True, False]


def test_without_pairs_there_is_no_r2() -> None:
    x_ND, f_NG = pairs()
    some, none = moments(x_ND, f_NG), Moments.empty(WIDTH, 4)
    assert held_out_r2(some, none).isnan().all()
    assert held_out_r2(none, some).isnan().all()


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e6])
def test_an_input_that_does_not_vary_predicts_the_mean(value: float) -> None:
    _, f_NG = pairs()
    found_G = measured(torch.full((len(f_NG), WIDTH), value, dtype=torch.float64), f_NG)
    mean_G = measured(torch.zeros(len(f_NG), WIDTH, dtype=torch.float64), f_NG)
    assert ((mean_G <= 0) & (mean_G > -0.1)).all()
    torch.testing.assert_close(found_G, mean_G)


def test_dimensions_that_do_not_vary_change_nothing() -> None:
    x_ND, f_NG = pairs()
    padded_ND = torch.cat([x_ND, torch.full((len(x_ND), 3), 0.1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(measured(padded_ND, f_NG), measured(x_ND, f_NG), rtol=1e-4, atol=0)
