"""What one batch does: k exactly, outliers left out, dead features revived, errors instead of silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modeldiff.crosscoder.training.trainer import ThresholdAverage
from modeldiff.errors import DamagedError, InputError
from tests.crosscoder.made import BATCH, make_trainer
from tests.crosscoder.made import planted_batches as batches


@pytest.mark.parametrize(
    "values", [*({"selection": one} for one in ("activation", "l2", "sum", "mean")), {"architecture": "dsf-norms"}]
)
def test_exactly_k_per_pair_are_kept_while_k_falls(values: dict[str, Any]) -> None:
    trainer = make_trainer(k_start=7, anneal_steps=6, steps=10, **values)
    left_out = 0
    for step, (x_a, x_b) in enumerate(batches(10)):
        line = trainer.update(x_a, x_b)
        rows = BATCH - (line["left_out"] - left_out)
        left_out = line["left_out"]
        k = 7 - 5 * step / 6 if step < 6 else 2
        assert round(sum(line["l0"].values()) * rows) == round(k * rows)
        assert sum(line["slots"].values()) == pytest.approx(1)


def test_an_outlier_pair_changes_nothing() -> None:
    x_a, x_b = (x / x.norm(dim=1, keepdim=True) for x in batches(1)[0])
    plain, disturbed = make_trainer(), make_trainer()
    plain.update(x_a, x_b)
    disturbed.update(torch.cat([x_a, x_a[:1] * 100]), torch.cat([x_b, x_b[:1]]))
    assert (plain.left_out, disturbed.left_out) == (0, 1)
    for name, value in plain.crosscoder.state_dict().items():
        torch.testing.assert_close(disturbed.crosscoder.state_dict()[name], value)


def test_dead_features_are_counted_in_pairs_and_revived() -> None:
    trainer = make_trainer(steps=100, dead_tokens=2 * BATCH, auxk_alpha=1.0)
    with torch.no_grad():
        trainer.crosscoder.b_enc[5] = -1e6  # never active on its own
    x_a, x_b = batches(1)[0]
    first = trainer.update(x_a, x_b)
    assert first["auxk"] is None
    rows = BATCH - trainer.left_out
    assert trainer.since_active_F[5] == rows
    before = trainer.crosscoder.w_dec_a[5].clone()
    while not trainer.dead()[5]:
        trainer.update(x_a, x_b)
    line = trainer.update(x_a, x_b)
    assert line["auxk"] is not None
    assert line["dead"]["shared"] >= 1
    assert not torch.equal(trainer.crosscoder.w_dec_a[5], before)


def test_an_auxiliary_loss_that_is_not_a_number_counts_and_does_no_harm() -> None:
    trainer = make_trainer(dead_tokens=0)
    with torch.no_grad():
        trainer.crosscoder.b_enc[5] = -1e6  # dead, and its decoder makes no number of anything
        trainer.crosscoder.w_dec_a[5] = float("nan")
    line = trainer.update(*batches(1)[0])
    assert (line["auxk"], trainer.auxk_nan) == (None, 1)
    trainer.crosscoder.w_dec_a.data[5] = 0
    assert all(value.isfinite().all() for value in trainer.crosscoder.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_stop_the_run(value: float) -> None:
    x_a, x_b = batches(1)[0]
    x_b[3, 4] = value
    trainer = make_trainer()
    with pytest.raises(DamagedError, match="activations of step 0 are not finite"):
        trainer.update(x_a, x_b)


def test_a_batch_of_outliers_alone_stops_the_run() -> None:
    trainer = make_trainer(outlier_factor=0.01)
    with pytest.raises(InputError, match="all pairs of step 0 are outliers: use a larger --outlier-factor"):
        trainer.update(*batches(1)[0])


def test_divergence_stops_the_run() -> None:
    trainer = make_trainer(lr=1e30, warmup=0)
    trainer.update(*batches(1)[0])
    with pytest.raises(InputError, match=r"training diverged at step 1: .* use a smaller --lr \(now 1e\+30\)"):
        trainer.update(*batches(1)[0])


def test_a_starving_partition_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(steps=20, auxk_alpha=0.0)
    with torch.no_grad():
        trainer.crosscoder.b_enc[trainer.crosscoder.slices["B"]] = -1e6
    for x_a, x_b in batches(20):
        trainer.update(x_a, x_b)
    shown = capsys.readouterr().err
    assert shown.count("warning: no B feature has been active") == 1
    assert "no A feature" not in shown


def test_bfloat16_products_with_float32_weights_train_to_nearly_the_same() -> None:
    exact, coarse = make_trainer(k=8), make_trainer(k=8)
    coarse.crosscoder.matmul_dtype = torch.bfloat16
    for x_a, x_b in batches(5):
        a, b = exact.update(x_a, x_b), coarse.update(x_a, x_b)
    assert coarse.crosscoder.w_enc_a.dtype == torch.float32
    assert b["loss"] == pytest.approx(a["loss"], rel=0.02)
    assert b["loss"] != a["loss"]


def test_threshold_average_has_no_bias_from_its_start() -> None:
    average = ThresholdAverage(window=100)
    assert average.value == 0
    for _ in range(3):
        average.update(0.5)
    assert average.value == pytest.approx(0.5)
    for _ in range(1000):
        average.update(0.9)
    assert average.value == pytest.approx(0.9, abs=1e-3)
