"""The command on two copies of one model: what must be equal, what must be nothing, refusals and interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import modeldiff.features.measures.impact.removal as removal
from modeldiff.errors import DamagedError, InputError
from modeldiff.features.measures.impact import ImpactSettings
from modeldiff.features.measures.impact.result import Impact, read_impact
from modeldiff.features.measures.impact.run import run
from modeldiff.workspace import Artifact
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

PARTS: dict[str, Any] = {"device": "cpu", "outlier_factor": 0.0}


def impact_of(made: Made, a_to_b: torch.Tensor | None = None, **changes: Any) -> Artifact:
    """With the identity as the stitch, unless there is another one."""
    publish_stitch(made, torch.eye(WIDTH) if a_to_b is None else a_to_b, "identity" if a_to_b is None else "other")
    return run(ImpactSettings(**{**PARTS, **changes}), made.workspace)


def measured(*given: Any, **changes: Any) -> Impact:
    return read_impact(impact_of(*given, **changes))


def test_the_same_model_twice_and_the_identity_have_no_asymmetry(pair: Made) -> None:
    impact = measured(pair)
    partition_F, alive_F = impact.partition_F, impact.arrays["windows"] > 0
    assert partition_F.tolist() == ["A"] * 4 + ["shared"] * 4 + ["B"] * 4
    for side, other in (("A", "B"), ("B", "A")):
        columns = impact.columns(side)
        has_F = alive_F & (partition_F != other) & (np.arange(12) % 4 != MUTE)
        np.testing.assert_allclose(columns["asymmetry"][has_F], 0, atol=1e-4)
        np.testing.assert_allclose(impact.arrays[f"stitched_{side.lower()}"][has_F], columns["own"][has_F], rtol=1e-3)
        assert np.isnan(columns["other"][partition_F == other]).all()
        assert (columns["own"][has_F] > 0).all()
        controls = impact.info["controls"][side.lower()]
        assert controls["asymmetry"]["95%"] == pytest.approx(0, abs=1e-4)
        assert controls["directions"] == 64


def test_what_the_model_ignores_has_no_impact_and_what_never_fires_has_no_number(pair: Made) -> None:
    impact = measured(pair)
    own_F = impact.columns("A")["own"]
    # Along the all-ones vector, which the final LayerNorm takes off.
    assert own_F[MUTE] < 1e-6 * own_F[LOUD]
    assert np.isnan(own_F[DEAD])
    assert impact.arrays["windows"][DEAD] == impact.arrays["firings"][DEAD] == 0
    assert DEAD not in [row["id"] for row in impact.rows("A")]
    assert impact.of_feature(DEAD) == {}


def test_weak_features_cost_to_second_order_what_removing_them_costs(pair: Made) -> None:
    weak = crosscoder()
    with torch.no_grad():
        for decoder in (weak.w_dec_a, weak.w_dec_b):
            decoder *= 1e-3
    publish(pair.workspace, weak, pair.activations, "weak")
    impact = measured(pair, samples=30)
    for side in ("a", "b"):
        # Six features fire, two of which do nothing.
        second, exact = (impact.arrays[f"check_{side}_{what}"] for what in ("second", "exact"))
        felt = impact.arrays[f"check_{side}_feature"] % 4 != MUTE
        assert (len(felt), felt.sum()) == (6, 4)
        assert second[felt].sum() == pytest.approx(exact[felt].sum(), rel=0.5)
        assert impact.info["exact"][side]["rank_correlation"] > 0.5


def test_a_stitch_that_moves_nothing_leaves_the_other_model_alone(pair: Made) -> None:
    impact = measured(pair, torch.zeros(WIDTH, WIDTH))
    a, b = (impact.columns(side)["asymmetry"] for side in ("A", "B"))
    assert a[LOUD] == b[B_LOUD] == 1
    # The other model has a shared feature's own decoder row; it is the stitch that loses it.
    assert a[SHARED_LOUD] == pytest.approx(0, abs=1e-4)
    assert impact.info["shared"]["a"]["asymmetry_stitched"]["50%"] == 1
    assert impact.info["controls"]["a"]["other"]["95%"] == 0
    (first, *_) = impact.rows("A", exclusive=True, top=1)
    assert (first["partition"], first["asymmetry"]) == ("A", 1)


def test_the_seed_and_the_stitch_count_and_batches_do_not(pair: Made) -> None:
    first = impact_of(pair)
    assert impact_of(pair, batch_tokens=77).ref == first.ref
    again = run(ImpactSettings(**PARTS), pair.workspace, force=True)
    assert again.manifest.digest == first.manifest.digest
    seeds = [impact_of(pair, samples=60, seed=seed) for seed in (0, 1)]
    one, other = (read_impact(artifact).columns("A")["own"][LOUD] for artifact in seeds)
    assert 0 < abs(other / one - 1) < 0.4
    assert impact_of(pair, swapped()).ref not in (first.ref, again.ref, seeds[1].ref)
    assert impact_of(pair, swapped(), stitch="stitch:1").ref == again.ref


def test_an_interrupted_run_ends_like_a_straight_one(
    pair: Made, monkeypatch: pytest.MonkeyPatch, dying: Callable[..., list[Any]]
) -> None:
    monkeypatch.setattr(removal, "_PART_WINDOWS", 4)
    straight = impact_of(pair, batch_tokens=64)
    dying(removal, "sampled_scores", 3, 20)
    order = ImpactSettings(**PARTS, batch_tokens=64)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(order, pair.workspace, force=True)
    resumed = run(order, pair.workspace, force=True)
    assert resumed.ref != straight.ref
    assert resumed.manifest.files == straight.manifest.files


def test_refusals_and_damage(pair: Made) -> None:
    with pytest.raises(InputError, match=r"no stitch of activations:1 yet.*run `modeldiff features stitch"):
        run(ImpactSettings(**PARTS), pair.workspace)
    with pytest.raises(InputError, match="no pair is left to measure on"):
        measured(pair, outlier_factor=1e-6)
    artifact = impact_of(pair)
    path = artifact.file("impact.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedError, match=r"impact\.safetensors"):
        read_impact(artifact)


def test_the_command(pair: Made, printed: Callable[..., str]) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")

    def call(*args: str) -> str:
        return printed(pair.workspace, "impact", "--device", "cpu", "--outlier-factor", "0", *args)

    shown = call()
    for said in ("features of A", "features of B", "random directions (64)", "shared features (3)", "last word"):
        assert said in shown
    found = json.loads(call("--json", "--exclusive", "A", "--min-windows", "1", "--top", "2"))
    assert list(found["features"]) == ["A"]
    assert [row["partition"] for row in found["features"]["A"]] == ["A", "A"]
    assert found["impact"]["samples"] == 3
