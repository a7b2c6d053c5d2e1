"""Shared features read from one model: as often as the feature, from that model's activations only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from modeldiff.features.alone import (
    DIRECTIONS,
    Readers,
    median_firings,
    random_readers,
    read_alone,
    reference_features,
    shared_readers,
)
from modeldiff.features.codes import CodeSample, Encoder
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.features.made_crosscoder import N_A, N_SHARED, THRESHOLD, made_crosscoder
from tests.made_activations import make_activations

N = 400


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    generator = torch.Generator().manual_seed(0)
    x_a, x_b = (torch.randn(N, width, generator=generator) for width in (8, 9))
    return ActivationStore(make_activations(Workspace(tmp_path / "ws"), x_a, x_b, 150, encoding="float32"))


def made_sample(store: ActivationStore) -> CodeSample:
    encoder = Encoder(made_crosscoder(), store, torch.device("cpu"), 0.0)
    f_NF = torch.cat([encoder.dense(block)[0] for block in store.blocks(N)]).numpy()
    rows_N = np.arange(0, N, 2)
    return CodeSample(sparse.csr_matrix(f_NF[rows_N]), rows_N)


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_feature_read_alone_is_its_encoder_on_one_side(side: str, store: ActivationStore) -> None:
    sample = made_sample(store)
    references = np.array([N_A, N_A + 2])
    readers = shared_readers(made_crosscoder(), sample, references, side)
    alone = read_alone(made_crosscoder(), store, sample, readers, side).toarray()
    x = torch.cat([store.read_side(side, block) for block in store.blocks(N)]).numpy()[sample.rows_N]
    for column, feature in enumerate(references):
        fires = int((sample.codes_NF[:, [feature]].toarray() > 0).sum())
        read = x[:, feature if side == "a" else feature - N_A]
        order = np.argsort(-read)
        assert set(np.flatnonzero(alone[:, column])) == set(order[:fires].tolist())
        expected = read[order[:fires]] - read[order[fires]] + THRESHOLD
        assert alone[order[:fires], column] == pytest.approx(expected, abs=1e-5)


def test_references_are_shared_features_that_fire_and_that_no_model_dominates(store: ActivationStore) -> None:
    crosscoder, sample = made_crosscoder(), made_sample(store)
    shared = list(range(N_A, N_A + N_SHARED))
    assert reference_features(crosscoder, sample, 1).tolist() == shared
    assert reference_features(crosscoder, sample, N).tolist() == []
    with torch.no_grad():
        crosscoder.w_dec_b[0] *= 0.1
    assert reference_features(crosscoder, sample, 1).tolist() == shared[1:]


def test_a_feature_that_fires_on_every_pair(store: ActivationStore) -> None:
    rows_N = np.arange(N)
    codes = np.zeros((N, 10), np.float32)
    codes[:, N_A] = 1.0
    sample = CodeSample(sparse.csr_matrix(codes), rows_N)
    readers = shared_readers(made_crosscoder(), sample, np.array([N_A]), "a")
    alone = read_alone(made_crosscoder(), store, sample, readers, "a")
    assert alone.nnz == N - 1
    assert np.isfinite(alone.toarray()).all()


def test_random_directions_are_as_common_as_the_variance_makes_them(tmp_path: Path) -> None:
    """Coordinate 0 of A varies 100 times as much as the others, coordinate 1 not at all."""
    generator = torch.Generator().manual_seed(1)
    x_a, x_b = torch.randn(4000, 8, generator=generator), torch.randn(4000, 9, generator=generator)
    x_a = 5 + x_a * torch.tensor([100.0, 0, 1, 1, 1, 1, 1, 1])
    store = ActivationStore(make_activations(Workspace(tmp_path / "ws"), x_a, x_b, 1500))
    crosscoder = made_crosscoder()
    codes = np.zeros((4000, 10), np.float32)
    codes[:300, :5], codes[:100, 5:9] = 1.0, 1.0  # one is dead, of the others the median fires 300 times
    sample = CodeSample(sparse.csr_matrix(codes), np.arange(4000))
    readers = random_readers(crosscoder, store, sample, "a")
    assert readers.w_RD.shape == (DIRECTIONS, 8)
    assert readers.fires_R.tolist() == [median_firings(sample)] * DIRECTIONS == [300] * DIRECTIONS
    torch.testing.assert_close(readers.w_RD.norm(dim=1), torch.ones(DIRECTIONS))  # as long as the encoders
    assert readers.w_RD[:, 1].abs().max() == 0
    assert readers.w_RD[:, 0].abs().median() > 0.99
    assert torch.equal(random_readers(crosscoder, store, sample, "a").w_RD, readers.w_RD), "always the same"
    read = read_alone(crosscoder, store, sample, readers, "a")
    assert np.diff(read.tocsc().indptr).tolist() == [300] * DIRECTIONS


def test_too_few_pairs_give_fewer_directions(store: ActivationStore) -> None:
    few = CodeSample(sparse.csr_matrix(np.ones((5, 10), np.float32)), np.arange(5))
    assert len(random_readers(made_crosscoder(), store, few, "b").w_RD) == 2
    none = CodeSample(sparse.csr_matrix((0, 10), dtype=np.float32), np.zeros(0, np.int64))
    readers = random_readers(made_crosscoder(), store, none, "b")
    assert isinstance(readers, Readers)
    assert read_alone(made_crosscoder(), store, none, readers, "b").shape == (0, 0)
