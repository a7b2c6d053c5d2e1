"""Every loss term has the value of an independent dense formula, moves the weights it should, and no others."""

from __future__ import annotations

import pytest
import torch

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.training.losses import auxk_loss, inliers, reconstruction_gradient, reconstruction_loss
from tests.crosscoder.made import random_crosscoder

B = 40


def batch(crosscoder: Crosscoder) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(B, crosscoder.config.width_a, generator=generator)
    return a, torch.randn(B, crosscoder.config.width_b, generator=generator)


def errors(crosscoder: Crosscoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x_a, x_b = batch(crosscoder)
    pre_BF = crosscoder.pre_activations(x_a, x_b)
    xhat_a, xhat_b = crosscoder.reconstruct(torch.relu(pre_BF))
    return x_a - xhat_a, x_b - xhat_b, pre_BF


def touched(weight: torch.nn.Parameter) -> list[int]:
    """Rows with a gradient."""
    grad = weight.grad
    if grad is None:
        return []
    return (grad.reshape(len(grad), -1) != 0).any(dim=1).nonzero()[:, 0].tolist()


def full(weight: torch.Tensor, crosscoder: Crosscoder, side: str) -> torch.Tensor:
    """(F, D) with zeros where the side lacks a feature: how the public code stores it."""
    out = torch.zeros(crosscoder.n_features, weight.shape[1])
    out[crosscoder.sees(side)] = weight.detach()
    return out


def test_squared_and_norm_reconstruction() -> None:
    e_a, e_b = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])
    assert reconstruction_loss(e_a, e_b, "squared").item() == pytest.approx((25 + 4 + 1) / 2)
    assert reconstruction_loss(e_a, e_b, "norm").item() == pytest.approx(((5 + 2) / 2 + (0 + 1) / 2) / 2)


def test_the_gradients_of_both_losses_in_the_reconstructions() -> None:
    e_a = torch.tensor([[3.0, 4.0], [0.0, 0.0]])  # two pairs: halves; the second one has no error
    assert reconstruction_gradient(e_a, "squared").tolist() == [[-3, -4], [0, 0]]
    torch.testing.assert_close(reconstruction_gradient(e_a, "norm"), torch.tensor([[-0.6, -0.8], [0, 0]]) / 4)


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
        assert leaf.grad is not None
        assert torch.equal(reconstruction_gradient(x - one, kind), leaf.grad)


@pytest.mark.parametrize("kind", ["squared", "norm"])
def test_reconstruction_of_a_does_not_touch_what_only_b_has(kind: str) -> None:
    crosscoder = random_crosscoder(n_a_only=2, n_shared=5, n_b_only=3)
    e_a, e_b, _ = errors(crosscoder)
    reconstruction_loss(e_a, torch.zeros_like(e_b), kind).backward()
    assert touched(crosscoder.w_enc_a) == list(range(7))
    assert touched(crosscoder.w_dec_a) == list(range(7))
    assert touched(crosscoder.b_enc) == list(range(7))
    assert touched(crosscoder.b_dec_a) == list(range(6))
    assert touched(crosscoder.w_enc_b) == list(range(5)), "shared features are encoded from B too"
    assert touched(crosscoder.w_dec_b) == []
    assert touched(crosscoder.b_dec_b) == []


@pytest.mark.parametrize("combine", ["mean", "sum"])
@pytest.mark.parametrize("count", [2, 100])
@pytest.mark.parametrize("encodes", ["error", "input"])
@pytest.mark.parametrize("normalised", [False, True])
def test_auxk_value_against_dense_formula(combine: str, count: int, encodes: str, normalised: bool) -> None:
    crosscoder = random_crosscoder(n_a_only=3, n_shared=5, n_b_only=3, combine=combine)
    e_a, e_b, pre_BF = (tensor.detach() for tensor in errors(crosscoder))
    dead_Z = torch.tensor([0, 2, 3, 6, 9])
    found = auxk_loss(
        crosscoder,
        dead_Z,
        count,
        (e_a, e_b),
        inputs=batch(crosscoder) if encodes == "input" else None,
        normalised=normalised,
    )
    from_a = e_a @ full(crosscoder.w_enc_a, crosscoder, "a").T
    from_b = e_b @ full(crosscoder.w_enc_b, crosscoder, "b").T
    both = torch.tensor([1.0] * 3 + [0.5 if combine == "mean" else 1.0] * 5 + [1.0] * 3)
    pre = (from_a + from_b) * both if encodes == "error" else pre_BF
    z_BF = torch.zeros_like(pre)
    for row in range(B):
        best = sorted(dead_Z.tolist(), key=lambda i: -float(pre[row, i]))[:count]
        for i in best:
            z_BF[row, i] = max(0.0, float(pre[row, i]))
    rest_a = e_a - z_BF @ full(crosscoder.w_dec_a, crosscoder, "a")
    rest_b = e_b - z_BF @ full(crosscoder.w_dec_b, crosscoder, "b")
    expected = (rest_a**2).sum(1) + (rest_b**2).sum(1)
    if normalised:
        expected = expected / (((e_a - e_a.mean(0)) ** 2).sum(1) + ((e_b - e_b.mean(0)) ** 2).sum(1)).mean()
    torch.testing.assert_close(found, expected.mean())


@pytest.mark.parametrize("encodes", ["error", "input"])
def test_auxk_reaches_encoder_and_decoder_of_dead_features_only(encodes: str) -> None:
    crosscoder = random_crosscoder(n_a_only=3, n_shared=5, n_b_only=3)
    e_a, e_b, _ = errors(crosscoder)
    dead_Z = torch.tensor([1, 4, 7, 8])  # A | shared, shared | B
    auxk_loss(crosscoder, dead_Z, 100, (e_a, e_b), inputs=batch(crosscoder) if encodes == "input" else None).backward()
    assert touched(crosscoder.w_enc_a) == touched(crosscoder.w_dec_a) == [1, 4, 7]
    assert touched(crosscoder.w_enc_b) == touched(crosscoder.w_dec_b) == [1, 4, 5]
    assert touched(crosscoder.b_enc) == ([1, 4, 7, 8] if encodes == "input" else [])
    assert touched(crosscoder.b_dec_a) == touched(crosscoder.b_dec_b) == []


@pytest.mark.parametrize("normalised", [False, True])
def test_auxk_gradients_against_autograd_on_the_formula(normalised: bool) -> None:
    crosscoder = random_crosscoder(n_a_only=3, n_shared=5, n_b_only=3)
    e_a, e_b, _ = (tensor.detach() for tensor in errors(crosscoder))
    before = e_a.clone(), e_b.clone()
    dead_Z = torch.tensor([3, 4, 5, 7])  # shared ones
    rows = slice(3, 8), slice(0, 5)
    weights = (
        crosscoder.w_enc_a[rows[0]],
        crosscoder.w_enc_b[rows[1]],
        crosscoder.w_dec_a[rows[0]],
        crosscoder.w_dec_b[rows[1]],
    )
    leaves = [weight.detach()[dead_Z - 3].requires_grad_() for weight in weights]
    enc_a, enc_b, dec_a, dec_b = leaves
    z_BZ = torch.relu((e_a @ enc_a.T + e_b @ enc_b.T) * crosscoder.encoder_share)
    loss = ((e_a - z_BZ @ dec_a) ** 2).sum(1).mean() + ((e_b - z_BZ @ dec_b) ** 2).sum(1).mean()
    if normalised:
        loss = loss / (((e_a - e_a.mean(0)) ** 2).sum(1) + ((e_b - e_b.mean(0)) ** 2).sum(1)).mean()
    (0.25 * loss).backward()
    (0.25 * auxk_loss(crosscoder, dead_Z, 100, (e_a, e_b), normalised=normalised)).backward()
    found = crosscoder.w_enc_a, crosscoder.w_enc_b, crosscoder.w_dec_a, crosscoder.w_dec_b
    for leaf, weight, first in zip(leaves, found, (0, 3, 0, 3), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad[dead_Z - first], leaf.grad)
    assert torch.equal(e_a, before[0]), "the error itself stays"
    assert torch.equal(e_b, before[1]), "the error itself stays"


def test_auxk_takes_no_more_than_its_count_per_pair() -> None:
    crosscoder = random_crosscoder(n_a_only=3, n_shared=5, n_b_only=3)
    e_a, e_b, _ = errors(crosscoder)
    dead_Z = torch.arange(11)
    auxk_loss(crosscoder, dead_Z, 1, (e_a[:1], e_b[:1])).backward()
    assert len(set(touched(crosscoder.w_dec_a)) | {i + 3 for i in touched(crosscoder.w_dec_b)}) == 1


def test_a_pair_goes_when_either_side_is_beyond_twice_the_median() -> None:
    x_a, x_b = torch.ones(7, 4), torch.ones(7, 9)
    x_a[1] *= 2.0
    x_a[2] *= 2.1
    x_b[3] *= 50
    x_b[4] *= 0.0
    assert inliers(x_a, x_b, 2.0).tolist() == [True, True, False, False, True, True, True]
