"""Held-out R² from streamed moments equals that of scikit-learn's ridge regression on the same pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import modeldiff.features.cost as cost
import modeldiff.features.evidence as evidence
import modeldiff.features.rows as rows
from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.features.codes import CodeSample, Encoder
from modeldiff.linear.ridge import RIDGE, Moments, held_out_r2
from modeldiff.splits import split
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.made_activations import make_activations

N, N_FEATURES = 700, 6


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    x_a, x_b = (3 + torch.randn(N, width, generator=generator) for width in (5, 7))
    return ActivationStore(make_activations(Workspace(tmp_path / "ws"), x_a, x_b, 250, encoding="bfloat16"))


def made_sample(store: ActivationStore) -> CodeSample:
    """Features 0 to 2 are made from A, 3 and 4 from B, 5 fires three times; a tenth of the rows is missing."""
    x = [torch.cat([store.read_side(side, block) for block in store.blocks(N)]).double().numpy() for side in ("a", "b")]
    generator = np.random.default_rng(1)
    made = [x[0] @ generator.normal(size=(5, 3)), x[1] @ generator.normal(size=(7, 2))]
    f_NF = np.concatenate([np.maximum(one - np.median(one, 0), 0) for one in made] + [np.zeros((N, 1))], 1)
    f_NF[[5, 300, 600], 5] = 1.0
    rows_N = np.flatnonzero(generator.random(N) < 0.9)
    return CodeSample(sparse.csr_matrix(f_NF[rows_N].astype(np.float32)), rows_N)


@pytest.mark.parametrize(("chunk", "block_bytes"), [(16_384, 4 << 30), (100, 6 * 8 * 7 * 4)])
def test_equals_scikit_learn(
    store: ActivationStore, chunk: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(cost, "BLOCK_BYTES", block_bytes)
    sample = made_sample(store)
    stretches = split(store, store.blocks(N))
    found = evidence.predictability(store, sample, stretches, torch.device("cpu"))
    part_N = stretches.part_of(sample.rows_N)
    fit, held = part_N == 0, part_N > 0
    assert 0.15 < held.mean() < 0.25
    assert not (fit | held).all(), "pairs between two parts are not used"
    f_NF = sample.codes_NF.toarray().astype(np.float64)
    for side in ("a", "b"):
        x_ND = torch.cat([store.read_side(side, block) for block in store.blocks(N)]).double().numpy()[sample.rows_N]
        centred = x_ND[fit] - x_ND[fit].mean(0)
        alpha = RIDGE * (centred**2).sum() / x_ND.shape[1]
        for feature in range(N_FEATURES - 1):
            model = Ridge(alpha=alpha).fit(x_ND[fit], f_NF[fit, feature])
            expected = r2_score(f_NF[held, feature], model.predict(x_ND[held]))
            assert found[side][feature] == pytest.approx(expected, abs=1e-5)


def test_sums_over_the_firings_equal_those_over_all_pairs() -> None:
    """R² from products summed in float32 over some hundred pairs, against the dense float64 sums; columns of all sizes,
    and targets that fire rarely, often and always."""
    generator = torch.Generator().manual_seed(4)
    n, width = 4000, 30
    x_ND = torch.randn(n, width, generator=generator) @ torch.randn(width, width, generator=generator)
    x_ND = (x_ND * torch.logspace(-2, 3, width)).double()
    f_NG = (x_ND.float() / 100) @ torch.randn(width, 40, generator=generator)
    f_NG = f_NG + f_NG.std() * torch.randn(n, 40, generator=generator)
    bar_G = torch.stack([f_N.quantile(q) for f_N, q in zip(f_NG.T, torch.linspace(0, 0.999, 40), strict=True)])
    f_NG = torch.relu(f_NG - bar_G)
    f_NG[:, 0] += 50
    found, expected = ([Moments.empty(width, 40) for _ in range(2)] for _ in range(2))
    for number, part in enumerate((slice(None, 3000), slice(3000, None))):
        x_part = x_ND[part] - x_ND.mean(0)
        expected[number].add_dense(x_part, f_NG[part])
        found[number].add_inputs(x_part)
        for x_nD, f_nG in zip(x_part.split(700), f_NG[part].split(700), strict=True):
            evidence.add_targets(found[number], x_nD, sparse.csr_matrix(f_nG.numpy()))
    r2_G = held_out_r2(*expected)
    assert float(r2_G.max()) > 0.3
    torch.testing.assert_close(held_out_r2(*found), r2_G, rtol=0, atol=1e-6, equal_nan=True)


def test_a_feature_that_fires_too_rarely_gets_no_number(store: ActivationStore) -> None:
    found = evidence.predictability(store, made_sample(store), split(store, store.blocks(N)), torch.device("cpu"))
    assert np.isnan(found["a"][-1])
    assert np.isnan(found["b"][-1])


def test_an_empty_sample_gives_no_numbers(store: ActivationStore) -> None:
    empty = CodeSample(sparse.csr_matrix((0, 4), dtype=np.float32), np.zeros(0, np.int64))
    assert np.isnan(evidence.predictability(store, empty, split(store, []), torch.device("cpu"))["a"]).all()


def test_permuted_pairs_explain_nothing_and_references_come_from_one_model(
    store: ActivationStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features 0 and 1 read A, 2 and 3 both, 4 and 5 B; nothing is common to the two models' activations."""
    crosscoder = Crosscoder(
        CrosscoderConfig(width_a=5, width_b=7, n_a_only=2, n_shared=2, n_b_only=2, k=2, combine="sum")
    )
    with torch.no_grad():
        crosscoder.w_enc_a.copy_(torch.eye(4, 5))
        crosscoder.w_enc_b.copy_(torch.eye(4, 7))
        crosscoder.w_dec_a.copy_(torch.eye(4, 5))
        crosscoder.w_dec_b.copy_(torch.eye(4, 7))
        crosscoder.b_enc.copy_(torch.tensor([-3.0, -3, -6, -6, -3, -3]))
    encoder = Encoder(crosscoder, store, torch.device("cpu"), 0.0)
    codes = torch.cat([encoder.dense(block)[0] for block in store.blocks(N)]).numpy()
    sample, stretches = CodeSample(sparse.csr_matrix(codes), np.arange(N)), split(store, store.blocks(N))
    found = evidence.evidence_of(crosscoder, store, sample, stretches, torch.device("cpu"))
    plain = evidence.predictability(store, sample, stretches, torch.device("cpu"))
    for side in ("a", "b"):
        np.testing.assert_array_equal(found.r2[side], plain[side])
        assert found.null[side].max() < 0.1
        for readings in (found.alone[side], found.random[side]):
            assert readings.own.min() > 0.4
            assert readings.other.max() < 0.15
            assert readings.null.max() < 0.15
    again = evidence.Evidence.from_arrays(found.arrays())
    assert again.arrays().keys() == found.arrays().keys()
    for name, values in found.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], values)
    assert found.scales(crosscoder)["a"].references == len(found.alone["a"].own)
    said = capsys.readouterr().err
    assert "700 pairs, widths 5 and 7; 6 features, 4 shared ones read from one model, 128 random directions" in said
    assert "138 of all these again in permuted pairs" in said


def test_random_directions_are_as_predictable_as_a_linear_map_between_the_models_is(tmp_path: Path) -> None:
    """B holds A's first coordinates rotated, and nothing of the others: what a direction of A loses is their share."""
    generator = torch.Generator().manual_seed(2)
    x_a = torch.randn(4000, 6, generator=generator)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    both = ActivationStore(
        make_activations(Workspace(tmp_path / "both"), x_a[:, :4].contiguous(), x_a[:, :4] @ rotation)
    )
    part = ActivationStore(make_activations(Workspace(tmp_path / "part"), x_a, x_a[:, :4] @ rotation))
    for store, all_of_it in ((both, True), (part, False)):
        width_a, width_b = store.widths
        crosscoder = Crosscoder(
            CrosscoderConfig(width_a=width_a, width_b=width_b, n_a_only=2, n_shared=2, n_b_only=2, k=2)
        )
        with torch.no_grad():
            for weights in (crosscoder.w_enc_a, crosscoder.w_enc_b, crosscoder.w_dec_a, crosscoder.w_dec_b):
                weights.copy_(torch.eye(*weights.shape))
        encoder = Encoder(crosscoder, store, torch.device("cpu"), 0.0)
        codes = torch.cat([encoder.dense(block)[0] for block in store.blocks(1000)]).numpy()
        sample = CodeSample(sparse.csr_matrix(codes), np.arange(4000))
        stretches = split(store, store.blocks(1000))
        found = evidence.evidence_of(crosscoder, store, sample, stretches, torch.device("cpu"))
        control = found.controls(crosscoder)
        assert control["a"].directions == 64
        assert control["a"].ratio_median is not None
        assert control["b"].ratio_median == pytest.approx(1, abs=0.01), "all that B has is in A"
        if all_of_it:
            assert control["a"].ratio_median == pytest.approx(1, abs=0.01)
        else:
            # The share of a random direction that lies in 4 of 6 equal dimensions is 2/3 on average.
            assert control["a"].ratio_median == pytest.approx(2 / 3, abs=0.12)
