"""The active entries, found without a dense code, equal the dense code's entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import modeldiff.crosscoder.fast.inference as active_module
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.fast.inference import ActiveEntries
from modeldiff.crosscoder.model import encode_into
from modeldiff.features.codes import Encoder
from modeldiff.sides import SIDES
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore, Block
from tests.crosscoder.made import random_crosscoder
from tests.made_activations import make_activations

N, WIDTH_A, WIDTH_B = 300, 12, 16
KINDS = {
    "activation": {"selection": "activation"},
    "l2": {"selection": "l2"},
    "mean of encoders": {"selection": "mean", "combine": "mean"},
    "designated": {"n_a_only": 0, "n_b_only": 0, "n_designated": 9, "tie": "norms"},
}


def made(kind: str) -> Crosscoder:
    sizes = {"n_a_only": 10, "n_shared": 50, "n_b_only": 10, "width_a": WIDTH_A, "width_b": WIDTH_B, "k": 4}
    crosscoder = random_crosscoder(**{**sizes, **KINDS[kind]})
    crosscoder.set_threshold(0.9, 1.4 if kind == "designated" else None)
    return crosscoder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    x_a, x_b = (torch.randn(N, width, generator=generator) for width in (WIDTH_A, WIDTH_B))
    x_a[[3, 250]] *= 50  # outliers
    workspace = Workspace(tmp_path_factory.mktemp("active") / "ws")
    return ActivationStore(make_activations(workspace, x_a, x_b, N, encoding="bfloat16"))


def away_from_the_threshold(crosscoder: Crosscoder, block: Block, encoder: Encoder) -> np.ndarray:
    """(B, F) False where rounding decides."""
    both = []
    low, high = crosscoder.config.threshold, crosscoder.config.threshold_designated
    for factor in (1 - 1e-5, 1 + 1e-5):
        crosscoder.set_threshold(factor * low, factor * high)
        both.append(encoder.dense(block)[0].numpy() > 0)
    crosscoder.set_threshold(low, high)
    return both[0] == both[1]


@pytest.mark.parametrize("kind", list(KINDS))
def test_sparse_codes_and_single_places_are_the_entries_of_the_dense_one(
    store: ActivationStore, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(active_module._PRODUCT_BYTES, "cpu", 70 * 4 * 32)  # in several parts
    encoder = Encoder(made(kind), store, torch.device("cpu"), 4.0)
    block = Block(0, 0, N)
    f_BF, kept_B = encoder.dense(block)
    codes, kept = encoder.sparse(block)
    assert kept.tolist() == kept_B.tolist()
    assert kept_B.sum() == N - 2
    clear = away_from_the_threshold(encoder.crosscoder, block, encoder)
    found = np.zeros(f_BF.shape, np.float32)
    found[codes.row, codes.feature] = codes.value
    np.testing.assert_allclose(found[clear], f_BF.numpy()[clear], rtol=1e-5, atol=1e-6)
    assert (np.diff(codes.row * f_BF.shape[1] + codes.feature) > 0).all()
    assert 0 < len(codes.value) < 0.5 * f_BF.numel()
    # Single places, of which -1 is none.
    generator = np.random.default_rng(0)
    feature_E = generator.integers(0, f_BF.shape[1], 500)
    row_EW = generator.integers(-1, f_BF.shape[0], (500, 9))
    expected_EW = np.where(row_EW >= 0, f_BF.numpy()[row_EW, feature_E[:, None]], 0)
    found_EW, clear_EW = encoder.at(block, feature_E, row_EW), clear[row_EW, feature_E[:, None]]
    np.testing.assert_allclose(found_EW[clear_EW], expected_EW[clear_EW], rtol=1e-5, atol=1e-6)
    assert (found_EW > 0).any()


def cut(x: torch.Tensor) -> torch.Tensor:
    """To 10 bits behind the point, as a GPU may read the factors of a product."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("error", ["cut factors", "lowest", "highest"])
def test_a_coarse_product_finds_the_same_entries(kind: str, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the product is wrong by all that it may be."""
    crosscoder = made(kind)
    generator = torch.Generator().manual_seed(0)
    x = [10 * torch.randn(N, width, generator=generator) for width in (WIDTH_A, WIDTH_B)]
    x[0][3] *= 50
    flat_K, value_K = ActiveEntries(crosscoder).of(*x)
    active = ActiveEntries(crosscoder)
    slack_F = {side: active_module._slack(crosscoder, side) for side in SIDES}
    active._slack_F = slack_F  # as on CUDA
    products, sign = [], {"lowest": -1.0, "highest": 1.0}.get(error, 0.0)

    def coarse(
        out_BF: torch.Tensor, x_a: torch.Tensor, x_b: torch.Tensor, *weights: torch.Tensor, share: float
    ) -> None:
        assert torch.get_float32_matmul_precision() == "high"
        factors = [one if sign else cut(one) for one in (x_a, x_b, *weights)]
        encode_into(out_BF, *factors, share=share)
        for side, x_BD in zip(SIDES, (x_a, x_b), strict=True):
            error_BF = x_BD.norm(dim=1)[:, None] * slack_F[side]
            out_BF[:, crosscoder.sees(side)] += sign * 0.999 * error_BF
        products.append(out_BF.clone())

    monkeypatch.setattr(active_module, "encode_into", coarse)
    found_K, found_value_K = active.of(*x)
    assert torch.get_float32_matmul_precision() == "highest"
    torch.testing.assert_close(found_value_K, value_K, rtol=1e-5, atol=1e-4)
    assert found_K.tolist() == flat_K.tolist()
    if sign:
        pre_BF = products[0] + crosscoder.b_enc
        weights_F = crosscoder.score_weights()
        told_BF = (pre_BF if weights_F is None else pre_BF * weights_F) > crosscoder.thresholds()
        assert torch.nonzero(told_BF.view(-1))[:, 0].tolist() != flat_K.tolist(), "the product alone tells others"
