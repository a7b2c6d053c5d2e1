"""Every loss term has the value of an independent dense formula, moves the weights it should, and no others."""

from __future__ import annotations

import math

import pytest
import torch

from modeldiff.crosscoder.training.losses import (
    add_auxk,
    inliers,
    reconstruction_gradient,
    reconstruction_loss,
)
from tests.crosscoder.dense import dense_pre
from tests.crosscoder.made import random_crosscoder


def test_squared_and_norm_reconstruction() -> None:
    e_a, e_b = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    assert reconstruction_loss(e_a, e_b, "squared").item() == pytest.approx((25 + 4 + 1) / 2)
    assert reconstruction_loss(e_a, e_b, "norm").item() == pytest.approx(((5 + 2) / 2 + (0 + 1) / 2) / 2)


@pytest.mark.parametrize("kind", ["squared", "norm"])
@pytest.mark.parametrize("pairs", [1, 7, 512])
def test_the_gradients_have_the_bits_of_autograd(kind: str, pairs: int) -> None:
    generator = torch.Generator().manual_seed(pairs)
    x_a, x_b = torch.randn(pairs, 33, generator=generator), torch.randn(pairs, 20, generator=generator)
    xhat = [torch.randn(x.shape, generator=generator) for x in (x_a, x_b)]
    xhat[0][0] = x_a[0]
    leaves = [one.clone().requires_grad_() for one in xhat]
    reconstruction_loss(x_a - leaves[0], x_b - leaves[1], kind).backward()
    for x, one, leaf in zip((x_a, x_b), xhat, leaves, strict=True):
        assert torch.equal(reconstruction_gradient(x - one, kind), leaf.grad)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("combine", ["mean", "sum"])
@pytest.mark.parametrize(("count", "dead"), [(2, [0, 2, 3, 4, 7, 8, 9, 10]), (100, [3, 4, 5, 7]), (1, [0, 9])])
def test_auxk_against_the_dense_formula_and_autograd(
    combine: str, count: int, dead: list[int], normalised: bool
) -> None:
    crosscoder = random_crosscoder(n_a_only=3, n_shared=5, n_b_only=3, combine=combine)
    generator = torch.Generator().manual_seed(5)
    e_a, e_b = (torch.randn(40, width, generator=generator) for width in (6, 9))
    before = e_a.clone(), e_b.clone()
    is_dead_F = torch.zeros(crosscoder.n_features).index_fill(0, torch.tensor(dead), 1.0)
    pre_BF = (dense_pre(crosscoder, e_a, e_b) - crosscoder.b_enc).masked_fill(is_dead_F == 0, -torch.inf)
    top = pre_BF.topk(min(count, len(dead)), dim=1)
    z_BF = torch.zeros_like(pre_BF).scatter(1, top.indices, torch.relu(top.values))
    rest_a = e_a - z_BF[:, :8] @ crosscoder.w_dec_a
    rest_b = e_b - z_BF[:, 3:] @ crosscoder.w_dec_b
    expected = ((rest_a**2).sum(1) + (rest_b**2).sum(1)).mean()
    if normalised:
        expected = expected / (((e_a - e_a.mean(0)) ** 2).sum(1) + ((e_b - e_b.mean(0)) ** 2).sum(1)).mean()
    names = ("w_enc_a", "w_enc_b", "w_dec_a", "w_dec_b")
    gradients = torch.autograd.grad(0.25 * expected, [getattr(crosscoder, name) for name in names])
    for parameter in crosscoder.parameters():
        parameter.grad = torch.ones_like(parameter)
    seen = [sum(i < 8 for i in dead), sum(i >= 3 for i in dead)]
    found = add_auxk(crosscoder, torch.tensor(dead), seen, count, (e_a, e_b), weight=0.25, normalised=normalised)
    torch.testing.assert_close(found, expected.detach())
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(getattr(crosscoder, name).grad - 1, gradient, rtol=1e-5, atol=1e-5)
    assert all((getattr(crosscoder, name).grad == 1).all() for name in ("b_enc", "b_dec_a", "b_dec_b"))
    assert torch.equal(e_a, before[0]), "the error itself stays"
    assert torch.equal(e_b, before[1]), "the error itself stays"


def test_a_pair_goes_when_either_side_is_beyond_twice_the_median() -> None:
    x_a, x_b = torch.ones(7, 4), torch.ones(7, 9)
    x_a[1] *= 2.0
    x_a[2] *= 2.1
    x_b[3] *= 50
    x_b[4] *= 0.0
    x_b[6, 3] = math.inf
    keep_B, finite_B = inliers(x_a, x_b, 2.0)
    assert keep_B.tolist() == [True, True, False, False, True, True, False]
    assert finite_B.tolist() == [True] * 6 + [False]
