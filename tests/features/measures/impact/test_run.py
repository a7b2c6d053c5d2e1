"""The command on two copies of one model: what must be equal, what must be nothing, refusals and interruptions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

import modeldiff.features.measures.impact.removal as removal
from modeldiff.cli.main import run as run_cli
from modeldiff.errors import DamagedError, InputError
from modeldiff.features.measures.impact.result import Impact, read_impact
from modeldiff.features.measures.impact.run import run
from modeldiff.features.measures.impact.settings import ImpactSettings
from tests.features.made_crosscoder import publish
from tests.features.made_pair import (
    B_LOUD,
    DEAD,
    LOUD,
    MUTE,
    SHARED_LOUD,
    WIDTH,
    Made,
    crosscoder,
    publish_stitch,
    swapped,
)
from tests.harvest.conftest import make_texts
from tests.tiny_models import save_tiny

PARTS: dict[str, Any] = {"device": "cpu", "outlier_factor": 0.0}


def measured(made: Made, **changes: Any) -> Impact:
    return read_impact(run(ImpactSettings(**{**PARTS, **changes}), made.workspace))


def test_the_same_model_twice_and_the_identity_have_no_asymmetry(pair: Made) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    impact = measured(pair)
    partition_F, alive_F = impact.partition_F, impact.arrays["windows"] > 0
    assert partition_F.tolist() == ["A"] * 4 + ["shared"] * 4 + ["B"] * 4
    for side in ("A", "B"):
        has_F = alive_F & ((partition_F == side) | (partition_F == "shared")) & (np.arange(12) % 4 != MUTE)
        for stitched in (False, True):
            np.testing.assert_allclose(impact.asymmetry(side, stitched=stitched)[has_F], 0, atol=1e-4)
            assert np.isnan(impact.other(side, stitched=stitched)[partition_F == "AB"["BA".index(side)]]).all()
        assert (impact.own(side)[has_F] > 0).all()
        assert impact.info["controls"][side.lower()]["asymmetry"]["95%"] == pytest.approx(0, abs=1e-4)
        assert impact.info["controls"][side.lower()]["directions"] == 64
        np.testing.assert_allclose(
            impact.total(side)[has_F], (impact.per_firing(side) * impact.arrays["firings"])[has_F]
        )


def test_what_the_model_ignores_has_no_impact_and_what_never_fires_has_no_number(pair: Made) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    impact = measured(pair)
    own = impact.own("A")
    # Along the all-ones vector, which the final LayerNorm takes off.
    assert own[MUTE] < 1e-6 * own[LOUD]
    assert np.isnan(own[DEAD])
    assert impact.arrays["windows"][DEAD] == impact.arrays["firings"][DEAD] == 0
    assert DEAD not in [row.id for row in impact.rows("A")]


def test_weak_features_cost_to_second_order_what_removing_them_costs(pair: Made) -> None:
    weak = crosscoder()
    with torch.no_grad():
        for decoder in (weak.w_dec_a, weak.w_dec_b):
            decoder *= 1e-3
    publish(pair.workspace, weak, pair.activations, "weak")
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    impact = measured(pair, samples=30)
    for side in ("a", "b"):
        # Six features fire, two of which do nothing.
        second, exact = (impact.arrays[f"check_{side}_{what}"] for what in ("second", "exact"))
        felt = impact.arrays[f"check_{side}_feature"] % 4 != MUTE
        assert (len(felt), felt.sum()) == (6, 4)
        assert second[felt].sum() == pytest.approx(exact[felt].sum(), rel=0.5)
        assert impact.info["exact"][side]["rank_correlation"] > 0.5


def test_a_stitch_that_moves_nothing_leaves_the_other_model_alone(pair: Made) -> None:
    publish_stitch(pair, torch.zeros(WIDTH, WIDTH), "nothing")
    impact = measured(pair)
    assert impact.asymmetry("A")[LOUD] == impact.asymmetry("B")[B_LOUD] == 1
    # The other model has a shared feature's own decoder row; it is the stitch that loses it.
    assert impact.asymmetry("A")[SHARED_LOUD] == pytest.approx(0, abs=1e-4)
    assert impact.asymmetry("A", stitched=True)[SHARED_LOUD] == 1
    assert impact.info["controls"]["a"]["other"]["95%"] == 0
    (first, *_) = impact.rows("A", exclusive=True, top=1)
    assert first.partition == "A"
    assert first.asymmetry == 1


def test_the_seed_and_the_stitch_count_and_batches_do_not(pair: Made) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    first = measured(pair).artifact
    assert measured(pair, batch_tokens=77).artifact.ref == first.ref
    again = run(ImpactSettings(**PARTS), pair.workspace, force=True)
    assert again.manifest.digest == first.manifest.digest
    one, other = measured(pair, samples=60), measured(pair, samples=60, seed=1)
    assert len({first.ref, again.ref, one.artifact.ref, other.artifact.ref}) == 4
    assert 0 < abs(other.own("A")[LOUD] / one.own("A")[LOUD] - 1) < 0.4
    publish_stitch(pair, swapped(), "swapped")
    assert measured(pair).artifact.ref not in (first.ref, again.ref, other.artifact.ref)
    assert measured(pair, stitch="stitch:1").artifact.ref == again.ref


def test_an_interrupted_run_ends_like_a_straight_one(pair: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    straight = measured(pair, batch_tokens=64).artifact
    monkeypatch.setattr(removal, "_PART_WINDOWS", 4)
    drawn, calls = removal.sampled_scores, 0

    def dying(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (3, 20):
            raise KeyboardInterrupt
        return drawn(*args)

    monkeypatch.setattr(removal, "sampled_scores", dying)
    order = ImpactSettings(**PARTS, batch_tokens=64)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(order, pair.workspace, force=True)
    resumed = run(order, pair.workspace, force=True)
    assert resumed.ref != straight.ref
    for name, array in read_impact(straight).arrays.items():
        np.testing.assert_allclose(read_impact(resumed).arrays[name], array, rtol=1e-4, atol=1e-9)


def test_refusals(pair: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(InputError, match=r"no stitch of activations:1 yet.*run `modeldiff features stitch") as error:
        measured(pair)
    assert "\n" not in str(error.value)
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    folder = tmp_path_factory.mktemp("other")
    other = save_tiny(folder / "other", "gpt2", texts=make_texts(), width=WIDTH, layers=2, seed=3)
    with pytest.raises(InputError, match=r"gives other activations.*--model-path-a"):
        measured(pair, model_path_a=str(other))
    with pytest.raises(InputError, match="no pair is left to measure on"):
        measured(pair, outlier_factor=1e-6)
    for wrong in ({"pairs": 0}, {"samples": 0}, {"seed": -1}, {"outlier_factor": -1.0}, {"batch_tokens": 0}):
        with pytest.raises(InputError, match="must be"):
            ImpactSettings(**wrong)


def test_a_damaged_file_is_named(pair: Made) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    artifact = measured(pair).artifact
    path = artifact.file("impact.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedError, match=r"impact\.safetensors"):
        read_impact(artifact)


def test_the_command(pair: Made, capsys: pytest.CaptureFixture[str]) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")

    def call(*args: str) -> str:
        capsys.readouterr()
        options = ("--device", "cpu", "--outlier-factor", "0", *args)
        with pytest.raises(SystemExit) as caught:
            run_cli(["--workspace", str(pair.workspace.folder), "features", "impact", *options])
        assert caught.value.code == 0
        return capsys.readouterr().out

    printed = call()
    assert max(map(len, printed.splitlines())) <= 80
    for said in ("features of A", "features of B", "random directions (64)", "shared features (3)", "wrong words"):
        assert said in printed
    assert "wrong words - [" not in printed
    assert "B-exclusive features" in call("--exclusive", "B")
    found = json.loads(call("--json", "--exclusive", "A", "--min-windows", "1", "--top", "2"))
    assert list(found["features"]) == ["A"]
    assert len(found["features"]["A"]) == 2
    assert {row["partition"] for row in found["features"]["A"]} == {"A"}
    assert found["impact"]["samples"] == 3
    assert "none that fires in so many windows" in call("--min-windows", "9999")
