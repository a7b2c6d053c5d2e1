"""Held-out R² from streamed moments, against scikit-learn; and the controls that it is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import modeldiff.features.predictability as predictability_module
from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.features.codes import CodeSample, Encoder
from modeldiff.features.evidence import (
    REFERENCE_FIRINGS,
    evidence_of,
    read_alone,
    reference_features,
    reference_readers,
    scales_of,
)
from modeldiff.features.predictability import predictability
from modeldiff.linear.ridge import RIDGE
from modeldiff.linear.verdict import Scale, baseline_of
from modeldiff.splits import split
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.features.made_crosscoder import N_A, N_SHARED, THRESHOLD, made_crosscoder
from tests.made_activations import make_activations

N, N_FEATURES = 700, 6
CPU = torch.device("cpu")
NAN = float("nan")


def store_of(folder: Path, x_a: torch.Tensor, x_b: torch.Tensor, encoding: str = "float32") -> ActivationStore:
    return ActivationStore(make_activations(Workspace(folder / "ws"), x_a, x_b, 250, encoding=encoding))


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    return store_of(tmp_path, *(3 + torch.randn(N, width, generator=generator) for width in (5, 7)), "bfloat16")


@pytest.fixture
def wide(tmp_path: Path) -> ActivationStore:
    """As wide as `made_crosscoder` reads."""
    generator = torch.Generator().manual_seed(0)
    return store_of(tmp_path, *(torch.randn(N, width, generator=generator) for width in (8, 9)))


def side_of(store: ActivationStore, side: str) -> np.ndarray:
    return torch.cat([store.read_side(side, block) for block in store.blocks(N)]).double().numpy()


def sample_of(f_NF: np.ndarray, rows_N: np.ndarray | None = None) -> CodeSample:
    rows_N = np.arange(len(f_NF)) if rows_N is None else rows_N
    return CodeSample(sparse.csr_matrix(f_NF[rows_N].astype(np.float32)), rows_N)


def encoded(crosscoder: Crosscoder, store: ActivationStore) -> np.ndarray:
    encoder = Encoder(crosscoder, store, CPU, 0.0)
    return torch.cat([encoder.dense(block)[0] for block in store.blocks(N)]).numpy()


def coordinates(width_a: int, width_b: int, **more: Any) -> Crosscoder:
    """Two features in each partition, that read and write one coordinate each."""
    sizes = {"n_a_only": 2, "n_shared": 2, "n_b_only": 2}
    crosscoder = Crosscoder(CrosscoderConfig(width_a=width_a, width_b=width_b, **sizes, k=2, **more))
    with torch.no_grad():
        for weights in (crosscoder.w_enc_a, crosscoder.w_enc_b, crosscoder.w_dec_a, crosscoder.w_dec_b):
            weights.copy_(torch.eye(*weights.shape))
    return crosscoder


def made_sample(store: ActivationStore) -> CodeSample:
    """Features 0 to 2 are made from A, 3 and 4 from B, 5 fires three times; a tenth of the rows is missing."""
    generator = np.random.default_rng(1)
    made = [side_of(store, "a") @ generator.normal(size=(5, 3)), side_of(store, "b") @ generator.normal(size=(7, 2))]
    f_NF = np.concatenate([np.maximum(one - np.median(one, 0), 0) for one in made] + [np.zeros((N, 1))], 1)
    f_NF[[5, 300, 600], 5] = 1.0
    return sample_of(f_NF, np.flatnonzero(generator.random(N) < 0.9))


@pytest.mark.parametrize(("chunk", "block_bytes"), [(16_384, 4 << 30), (100, 6 * 8 * 7 * 4)])
def test_equals_scikit_learn(
    store: ActivationStore, chunk: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictability_module, "_CHUNK_ROWS", chunk)
    monkeypatch.setitem(predictability_module._BLOCK_BYTES, "cpu", block_bytes)
    sample, stretches = made_sample(store), split(store, store.blocks(N))
    found = predictability(store, sample, stretches, CPU)
    part_N = stretches.part_of(sample.rows_N)
    fit, held = part_N == 0, part_N > 0
    assert 0.15 < held.mean() < 0.25
    assert not (fit | held).all(), "pairs between two parts are not used"
    f_NF = sample.codes_NF.toarray().astype(np.float64)
    for side in ("a", "b"):
        x_ND = side_of(store, side)[sample.rows_N]
        centred = x_ND[fit] - x_ND[fit].mean(0)
        alpha = RIDGE * (centred**2).sum() / x_ND.shape[1]
        for feature in range(N_FEATURES - 1):
            model = Ridge(alpha=alpha).fit(x_ND[fit], f_NF[fit, feature])
            expected = r2_score(f_NF[held, feature], model.predict(x_ND[held]))
            assert found[side][feature] == pytest.approx(expected, abs=1e-5)
        assert np.isnan(found[side][-1]), "what fires too rarely gets no number"


def test_permuted_pairs_explain_nothing_and_controls_come_from_one_model(store: ActivationStore) -> None:
    """Features 0 and 1 read A, 2 and 3 both, 4 and 5 B; nothing is common to the two models' activations."""
    crosscoder = coordinates(5, 7, combine="sum")
    with torch.no_grad():
        crosscoder.b_enc.copy_(torch.tensor([-3.0, -3, -6, -6, -3, -3]))
    sample, stretches = sample_of(encoded(crosscoder, store)), split(store, store.blocks(N))
    found = evidence_of(crosscoder, store, sample, stretches, CPU)
    plain = predictability(store, sample, stretches, CPU)
    for side in ("a", "b"):
        np.testing.assert_array_equal(found[f"r2_{side}"], plain[side])
        assert found[f"null_{side}"].max() < 0.1
        for name in (f"reference_{side}", f"difference_{side}"):
            assert found[f"{name}_own"].min() > 0.4
            assert max(found[f"{name}_other"].max(), found[f"{name}_null"].max()) < 0.15
    assert scales_of(found, crosscoder)["a"].references == len(found["reference_a_own"])


def test_differences_are_as_predictable_as_a_linear_map_between_the_models_is(tmp_path: Path) -> None:
    """B holds A's first coordinates rotated, and nothing of the others: what a direction of A loses is their share."""
    generator = torch.Generator().manual_seed(2)
    x_a = torch.randn(4000, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    # The share of a random direction that lies in 4 of 6 equal dimensions is 2/3 on average.
    for width_a, ratio, tolerance in ((4, 1, 0.01), (6, 2 / 3, 0.12)):
        store = store_of(tmp_path / str(width_a), x_a[:, :width_a].contiguous(), x_a[:, :4] @ rotation)
        crosscoder = coordinates(width_a, 4)
        sample = sample_of(encoded(crosscoder, store))
        found = evidence_of(crosscoder, store, sample, split(store, store.blocks(N)), CPU)
        a, b = (
            baseline_of(*(found[f"difference_{side}_{what}"] for what in ("own", "other", "null")), scale=scale)
            for side, scale in scales_of(found, crosscoder).items()
        )
        assert a.directions == 64
        assert a.ratio_median == pytest.approx(ratio, abs=tolerance)
        assert b.ratio_median == pytest.approx(1, abs=0.01), "all that B has is in A"


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_feature_read_alone_is_its_encoder_on_one_side(side: str, wide: ActivationStore) -> None:
    crosscoder = made_crosscoder()
    sample = sample_of(encoded(crosscoder, wide), np.arange(0, N, 2))
    references = np.array([N_A, N_A + 2])
    alone = read_alone(
        crosscoder, wide, sample, reference_readers(crosscoder, sample, references, side), side
    ).toarray()
    x = side_of(wide, side)[sample.rows_N]
    for column, feature in enumerate(references):
        fires = int((sample.codes_NF[:, [feature]].toarray() > 0).sum())
        read = x[:, feature if side == "a" else feature - N_A]
        order = np.argsort(-read)
        assert set(np.flatnonzero(alone[:, column])) == set(order[:fires].tolist())
        expected = read[order[:fires]] - read[order[fires]] + THRESHOLD
        assert alone[order[:fires], column] == pytest.approx(expected, abs=1e-5)


def test_references_are_shared_features_that_fire_and_that_no_model_dominates() -> None:
    crosscoder = made_crosscoder()
    codes = np.zeros((N, 10))
    codes[:REFERENCE_FIRINGS] = 1.0
    codes[0, N_A + 1] = 0.0  # once too rarely
    sample = sample_of(codes)
    others = [N_A, *range(N_A + 2, N_A + N_SHARED)]
    assert reference_features(crosscoder, sample).tolist() == others
    with torch.no_grad():
        crosscoder.w_dec_b[0] *= 0.1
    assert reference_features(crosscoder, sample).tolist() == others[1:]


def test_a_baseline_has_medians_quantiles_and_verdicts() -> None:
    # Exclusive up to a ratio of 0.4, predictable from 0.6 on.
    scale = Scale(references=100, ratio_median=0.8, ratio_low=0.6, null=0.01)
    own = np.append(np.full(101, 0.5), [NAN, 0.001])
    other, null = own * np.append(np.linspace(0, 1, 101), [NAN, 500]), 0 * own
    found = baseline_of(own, other, null, scale=scale)
    assert found.directions == 102, "what fires too rarely was not measured"
    assert (found.own, found.other, found.null) == pytest.approx((0.5, 0.2525, 0.0))
    quantiles = (found.ratio_low, found.ratio_median, found.ratio_high)
    assert quantiles == pytest.approx((0.05, 0.5, 0.95)), "of those that can be read from their own model"
    assert found.verdicts == {"exclusive": 41, "undecided": 19, "predictable": 41, "unknown": 1}
