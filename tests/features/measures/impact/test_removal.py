"""Impacts against what really subtracting a feature does, and the arithmetic around them.

Legend: S draws, B copies of a window, T tokens, R pairs, D width, K directions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from modeldiff.errors import InputError
from modeldiff.features.measures.impact import ImpactSettings
from modeldiff.features.measures.impact.removal import Directions, measure, removed_kl, window_nats
from modeldiff.features.measures.models import LoadedModel, Window
from modeldiff.linear.maps import LinearMap
from modeldiff.lm.load import LanguageModel, ModelRef, load_model
from modeldiff.lm.residual import replace_in_residual, residual_after, sampled_scores
from modeldiff.workspace.activations import Block
from tests.tiny_models import save_tiny

WIDTH, LAYER, TOKENS = 16, 1, 9
# A mean over 3072 draws: its standard error is about 2.6 % (a² / 2 is spread like a chi-square).
COPIES, DRAWS = 128, 24


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = save_tiny(tmp_path_factory.mktemp("lm") / request.param, request.param, width=WIDTH)
    return load_model(ModelRef(str(folder)), torch.device("cpu"), torch.float32)


def ids_of(length: int = TOKENS) -> torch.Tensor:
    return torch.randint(5, 300, (length,), generator=torch.Generator().manual_seed(length))


def many_scores(lm: LanguageModel) -> torch.Tensor:
    """(S, T, D) of one window."""
    ids_BT = ids_of().expand(COPIES, -1)
    generator = torch.Generator().manual_seed(0)
    uniform_SBT = 1 - torch.rand(DRAWS, *ids_BT.shape, generator=generator)
    return sampled_scores(lm, LAYER, ids_BT, torch.ones_like(ids_BT), uniform_SBT).flatten(0, 1)


def true_kl(lm: LanguageModel, f_T: torch.Tensor, d_D: torch.Tensor) -> float:
    """KL(unchanged || without the feature), summed over the positions: by subtracting it, in float64."""
    double = LanguageModel(lm.model.double(), lm.tokenizer, lm.ref)
    try:
        ids_1T = ids_of()[None]
        x_TD = residual_after(double, LAYER, ids_1T, torch.ones_like(ids_1T))[0] - f_T[:, None] * d_D
        with torch.inference_mode():
            clean_TV = double.model(input_ids=ids_1T).logits[0].log_softmax(-1)
            with replace_in_residual(double, LAYER, torch.zeros(TOKENS, dtype=torch.long), torch.arange(TOKENS), x_TD):
                without_TV = double.model(input_ids=ids_1T).logits[0].log_softmax(-1)
        return float((clean_TV.exp() * (clean_TV - without_TV)).sum())
    finally:
        lm.model.float()


@pytest.mark.parametrize("fires", [{2: 1.0}, {TOKENS - 1: 1.0}, {1: 0.5, 2: 1.0, 4: 0.7, 7: 1.3}])
def test_the_mean_over_draws_is_the_kl_of_really_subtracting_the_feature(
    lm: LanguageModel, fires: dict[int, float]
) -> None:
    f_T = torch.zeros(TOKENS, dtype=torch.float64)
    f_T[list(fires)] = torch.tensor(list(fires.values()), dtype=torch.float64)
    d_D = 0.01 * torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    codes_RK = sparse.csr_matrix(f_T[:, None].numpy().astype(np.float32))
    _, (nats,) = window_nats(codes_RK, many_scores(lm), d_D[None].float())
    expected = true_kl(lm, f_T, d_D)
    assert expected > 1e-7
    assert nats == pytest.approx(expected, rel=0.1)


def test_really_removing_is_what_subtracting_by_hand_does(lm: LanguageModel) -> None:
    ids, at = ids_of().numpy(), np.array([1, 3, 4, 8])
    window = Window(Block(0, 0, 4), dict.fromkeys("ab", ids), dict.fromkeys("ab", at))
    f_R = torch.tensor([1.0, 0.0, 2.0, 0.5])
    f_T = torch.zeros(TOKENS, dtype=torch.float64)
    f_T[at] = f_R.double()
    d_D = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    expected = true_kl(lm, f_T, d_D.double())
    assert expected > 0.1
    assert removed_kl(LoadedModel("a", lm, LAYER, [window]), 0, f_R, d_D) == pytest.approx(expected, rel=1e-4)


def test_scores_have_mean_zero_and_padding_and_the_company_of_a_batch_change_nothing(lm: LanguageModel) -> None:
    score_STD = many_scores(lm)
    error_TD = score_STD.std(dim=0) / len(score_STD) ** 0.5
    assert float((score_STD.mean(dim=0).abs() / error_TD).max()) < 5
    short, long = ids_of(5), ids_of(TOKENS)
    ids_BT = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
    mask_BT = torch.tensor([[1] * 5 + [0] * 4, [1] * TOKENS])
    uniform_SBT = 1 - torch.rand(2, *ids_BT.shape, generator=torch.Generator().manual_seed(0))
    both = sampled_scores(lm, LAYER, ids_BT, mask_BT, uniform_SBT)
    alone = sampled_scores(lm, LAYER, short[None], torch.ones(1, 5), uniform_SBT[:, :1, :5])
    torch.testing.assert_close(both[:, :1, :5], alone, rtol=1e-4, atol=1e-5)
    assert (both[:, 0, 5:] == 0).all()
    assert (both[:, 1] != 0).any()
    with pytest.raises(InputError, match="layer 9 is out of range"):
        sampled_scores(lm, 9, ids_BT, mask_BT, uniform_SBT)


def made_codes(rows: int, columns: int, seed: int = 0) -> sparse.csr_matrix:
    random = np.random.default_rng(seed)
    dense = random.random((rows, columns)) * (random.random((rows, columns)) < 0.1)
    dense[:, 3] = 0
    return sparse.csr_matrix(dense.astype(np.float32))


def test_chunks_change_nothing_and_only_what_fires_is_measured() -> None:
    codes_RK, generator = made_codes(20, 50), torch.Generator().manual_seed(0)
    score_SRD, rows_KD = torch.randn(4, 20, 6, generator=generator), torch.randn(50, 6, generator=generator)
    rows_KD[7] = 0
    active, nats = window_nats(codes_RK, score_SRD, rows_KD)
    assert 3 not in active
    by_hand_SK = torch.einsum("rk,srd,kd->sk", torch.from_numpy(codes_RK.toarray()), score_SRD, rows_KD)
    np.testing.assert_allclose(nats, (by_hand_SK.square().mean(0) / 2).numpy()[active], rtol=1e-5)
    assert nats[active.tolist().index(7)] == 0
    for values in (1, 60, 500):
        chunked = window_nats(codes_RK, score_SRD, rows_KD, chunk_values=values)
        np.testing.assert_array_equal(chunked[0], active)
        np.testing.assert_allclose(chunked[1], nats, rtol=1e-5)


def test_moving_the_scores_is_moving_the_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    w_DD, rows_KD = torch.randn(5, 6, generator=generator), torch.randn(50, 5, generator=generator)
    score_SRD, codes_RK = torch.randn(3, 20, 6, generator=generator), made_codes(20, 50)
    moved = Directions(np.arange(50), rows_KD, lambda x: x / 2, LinearMap(w_DD, torch.ones(6), 0.0))
    _, nats = window_nats(codes_RK, moved.seen_by(score_SRD), rows_KD)
    _, expected = window_nats(codes_RK, score_SRD, (rows_KD / 2) @ w_DD)
    np.testing.assert_allclose(nats, expected, rtol=1e-4)


def test_the_size_of_batches_changes_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    lengths, windows, start = [7, 4, 9, 6, 5], [], 0
    for length in lengths:
        ids, at = ids_of(length).numpy(), np.arange(1, length)
        windows.append(Window(Block(0, start, start + length - 1), dict.fromkeys("ab", ids), dict.fromkeys("ab", at)))
        start += length - 1
    codes_NF = made_codes(start, 30)
    rows_KD = torch.randn(29, WIDTH, generator=torch.Generator().manual_seed(0))
    groups = {"own": Directions(np.arange(1, 30), rows_KD, lambda x: x / 1.5)}
    model = LoadedModel("a", lm, LAYER, windows)
    together, alone = (
        measure(
            model, codes_NF, groups, ImpactSettings(samples=2, seed=4, batch_tokens=tokens),
            resume=tmp_path / str(tokens),
        )["own"]
        for tokens in (100, 1)
    )  # fmt: skip
    fires_in = [sum(codes_NF[w.rows.start : w.rows.stop, k].nnz > 0 for w in windows) for k in range(1, 30)]
    np.testing.assert_array_equal(together[2], fires_in)
    np.testing.assert_allclose(alone, together, rtol=1e-3)
