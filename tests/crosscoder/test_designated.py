"""DSF crosscoders: designated features stay tied, have a selection and a threshold of their own, and k stays k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.crosscoder import CrosscoderConfig, load
from modeldiff.crosscoder.designated import pooled_topk, tie_gradients
from modeldiff.crosscoder.fast.topk import Scores
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.run import run
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import InputError
from modeldiff.workspace import Workspace
from tests.crosscoder.dense import dense_reconstruction
from tests.crosscoder.made import BATCH, DSF, make_trainer, planted_batches, random_crosscoder
from tests.crosscoder.planted import plant
from tests.made_activations import make_activations

FEATURES, DESIGNATED = 40, 6


def made_trainer(architecture: str, width_b: int = 16, **values: Any) -> Trainer:
    given = {"features": FEATURES, "designated": 0.15, "k": 3, "steps": 30, "exclusive": 0.05, **values}
    return make_trainer(widths=(16, width_b), architecture=architecture, **given)


@pytest.mark.parametrize("clip", [1.0, 0.01])
def test_tied_vectors_are_equal_to_the_bit_and_move_also_when_dead(clip: float) -> None:
    trainer, n = made_trainer("dsf-vectors", dead_tokens=2 * BATCH, auxk_alpha=1.0, clip=clip), DESIGNATED
    crosscoder = trainer.crosscoder
    with torch.no_grad():
        crosscoder.b_enc[2] = -1e6  # never active on its own: only the auxiliary loss moves it
    first_nD = crosscoder.w_dec_a[:n].detach().clone()
    assert torch.equal(first_nD, crosscoder.w_dec_b[:n])
    lines = []
    for batch in planted_batches(20, widths=(16, 16)):
        lines.append(trainer.update(*batch))
        assert torch.equal(crosscoder.w_dec_a[:n], crosscoder.w_dec_b[:n])
    assert sum(line["auxk"] is not None for line in lines) > 5
    moved_n = (crosscoder.w_dec_a[:n] != first_nD).any(dim=1)
    assert moved_n[2]
    assert moved_n.sum() > 1
    assert (crosscoder.w_dec_a[n:] != crosscoder.w_dec_b[n:]).any(dim=1).all(), "the others are free"
    assert (crosscoder.w_enc_a[:n] != crosscoder.w_enc_b[:n]).any(dim=1)[moved_n].all(), "so are encoders"


def test_the_gradient_of_a_tied_vector_is_that_of_one_parameter() -> None:
    crosscoder = made_trainer("dsf-vectors").crosscoder
    f_BF, targets = torch.rand(9, FEATURES), {side: torch.randn(9, 16) for side in "ab"}
    one_nD = crosscoder.w_dec_a[:DESIGNATED].detach().clone().requires_grad_()
    loss = torch.zeros(())
    for side, target in targets.items():
        w_dec = torch.cat([one_nD, crosscoder.decoder(side).detach()[DESIGNATED:]])
        loss = loss + (target - f_BF @ w_dec - crosscoder.decoder_bias(side).detach()).square().sum()
    (expected_nD,) = torch.autograd.grad(loss, one_nD)
    xhat = dense_reconstruction(crosscoder, f_BF)
    sum((target - one).square().sum() for target, one in zip(targets.values(), xhat, strict=True)).backward()
    tie_gradients(crosscoder)
    grad_a, grad_b = crosscoder.w_dec_a.grad, crosscoder.w_dec_b.grad
    torch.testing.assert_close(grad_a[:DESIGNATED], expected_nD)
    counted = grad_a[:DESIGNATED].square().sum() + grad_b[:DESIGNATED].square().sum()
    torch.testing.assert_close(counted, expected_nD.square().sum(), msg="the clip sees the vector once")


def test_tied_norms_stay_equal_while_directions_and_the_others_are_free() -> None:
    trainer = made_trainer("dsf-norms", width_b=20, dead_tokens=2 * BATCH, auxk_alpha=1.0)
    for batch in planted_batches(20):
        trainer.update(*batch)
        norms = trainer.crosscoder.decoder_norms()
        torch.testing.assert_close(norms["a"][:DESIGNATED], norms["b"][:DESIGNATED], rtol=1e-6, atol=0)
    assert (norms["a"][:DESIGNATED] - 0.4).abs().max() > 1e-3
    assert (norms["a"] - norms["b"])[DESIGNATED:].abs().max() > 1e-3
    torch.testing.assert_close(trainer.crosscoder.relative_norm()[:DESIGNATED], torch.full((DESIGNATED,), 0.5))


@given(
    n_rows=st.integers(1, 80),
    free=st.integers(0, 8),
    designated=st.integers(1, 6),
    k=st.floats(0, 2),
    multiplier=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_each_pool_keeps_its_own_largest_scores_and_the_total_is_exact(
    n_rows: int, free: int, designated: int, k: float, multiplier: float, seed: int
) -> None:
    n_features = free + designated
    multiplier = min(multiplier, n_features / designated)
    fields = {**DSF, "n_shared": n_features, "n_designated": designated, "designated_k": multiplier}
    config = CrosscoderConfig(width_a=3, width_b=3, k=1, **fields)
    score_BF = torch.randn(n_rows, n_features, generator=torch.Generator().manual_seed(seed))
    count = round(k * n_rows)
    kept_K, (smallest_other, smallest_designated) = pooled_topk(Scores(score_BF), count, config)
    assert kept_K.tolist() == sorted(set(kept_K.tolist()))

    n_designated = min(round(multiplier * designated / n_features * count), int((score_BF[:, :designated] > 0).sum()))
    n_other = min(count - n_designated, int((score_BF[:, designated:] > 0).sum()))
    kept_BF = torch.zeros(n_rows, n_features, dtype=torch.bool)
    kept_BF.view(-1)[kept_K] = True
    for pool, number, smallest in (
        (slice(designated), n_designated, smallest_designated),
        (slice(designated, None), n_other, smallest_other),
    ):
        largest = sorted(score_BF[:, pool].flatten().tolist(), reverse=True)[:number]
        assert sorted(score_BF[:, pool][kept_BF[:, pool]].tolist(), reverse=True) == largest
        assert smallest == (largest[-1] if largest else None)


def test_encode_uses_the_threshold_of_each_pool() -> None:
    crosscoder = random_crosscoder(**DSF)
    crosscoder.set_threshold(0.3, 1.1)
    x_a, x_b = torch.randn(50, 6), torch.randn(50, 9)
    pre_BF = crosscoder.pre_activations(x_a, x_b)
    expected = torch.cat([torch.where(pre_BF[:, :4] > 1.1, pre_BF[:, :4], 0), torch.relu(pre_BF[:, 4:])], dim=1)
    expected[:, 4:][pre_BF[:, 4:] <= 0.3] = 0
    assert torch.equal(crosscoder.encode(x_a, x_b, raw=False), expected)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="dsf-vectors needs models of equal width, found 16 and 20: use dsf-norms"):
        made_trainer("dsf-vectors", width_b=20)
    for values in ({"features": 3}, {"designated": 0.5}, {"designated_k": 7.0}):
        with pytest.raises(InputError, match="leaves nothing to them or to the others"):
            made_trainer("dsf-norms", **values)
    with pytest.raises(InputError, match="--designated must be above 0 and below 1"):
        TrainSettings(designated=1.0)


def test_a_crosscoder_of_format_1_still_loads(tmp_path: Path) -> None:
    crosscoder = random_crosscoder(threshold=0.1)
    crosscoder.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    for field in ("n_designated", "tie", "designated_k", "threshold_designated"):
        del data[field]
    (tmp_path / "config.json").write_text(json.dumps({**data, "format": 1}))
    assert load(tmp_path).config == crosscoder.config


def test_the_stage_trains_a_dsf_crosscoder(tmp_path: Path) -> None:
    planted = plant(4000)
    workspace = Workspace(tmp_path / "w")
    make_activations(workspace, planted.x_a, planted.x_b, 2000)
    given = {"features": FEATURES, "k": 2, "steps": 150, "batch": 128, "device": "cpu"}
    artifact = run(TrainSettings(architecture="dsf-norms", **given), workspace)  # type: ignore[arg-type]
    crosscoder = load(artifact)
    config = crosscoder.config
    assert (config.n_designated, config.tie, config.designated_k) == (4, "norms", 2)
    assert config.threshold > 0
    assert config.threshold_designated > 0
    f_BF = crosscoder.encode(planted.x_a, planted.x_b)
    assert float((f_BF[:, :4] > 0).sum(dim=1).float().mean()) == pytest.approx(0.4, rel=0.25), "twice their share"
    assert artifact.metrics["held_out"]["l0"] == pytest.approx(2, rel=0.2)
    assert min(artifact.metrics["held_out"]["fve"].values()) > 0.5
