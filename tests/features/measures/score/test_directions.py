"""What is pushed: a seeded sample of living features, random directions, and where the stitch moves both."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modeldiff.features.measures.score import ScoreSettings
from modeldiff.features.measures.score.directions import ScoredDirection, find_directions
from modeldiff.linear.stitch import load_stitch
from tests.features.made_pair import B_LOUD, DEAD, LOUD, MUTE, WIDTH, Made, crosscoder, publish_stitch


def found_in(
    pair: Made, a_to_b: torch.Tensor, bias: torch.Tensor | None = None, **values: Any
) -> list[ScoredDirection]:
    settings = ScoreSettings(judge="local", judge_model="m", **values)
    stitch = load_stitch(publish_stitch(pair, a_to_b, str(bias), bias))
    return find_directions(settings, crosscoder(), pair.features, stitch)


def test_the_sample_is_alive_seeded_and_bounded(pair: Made) -> None:
    def drawn(seed: int) -> list[str]:
        return [one.name for one in found_in(pair, torch.eye(WIDTH), sample=2, seed=seed, random_directions=0)]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1
    for seed in range(4):
        assert len(drawn(seed)) == 2 + 2 + 2 * 2  # shared ones both ways
        assert all(int(name.split()[0]) % 4 != DEAD for name in drawn(seed))


def test_random_directions_are_as_long_as_the_features_of_their_model_usually_are(pair: Made) -> None:
    found = found_in(pair, 2 * torch.eye(WIDTH), feature=(LOUD, 1, MUTE, B_LOUD), random_directions=12)
    for side, count in (("a", 3), ("b", 1)):
        own = [one for one in found if one.source == side]
        norms = sorted(float(one.unit_D[side].norm()) for one in own if not one.is_random)
        randoms = [one for one in own if one.is_random]
        assert (len(norms), len(randoms)) == (count, 12)
        assert all(float(one.unit_D[side].norm()) == pytest.approx(norms[count // 2], rel=1e-5) for one in randoms)
    assert all(torch.allclose(one.unit_D["b"], 2 * one.unit_D["a"]) for one in found if one.source == "a")
    bias = 20 * torch.eye(WIDTH)[1]
    (one,) = found_in(pair, torch.eye(WIDTH), bias, feature=(LOUD,), random_directions=0, stitch_bias=True)
    assert torch.allclose(one.unit_D["b"], one.unit_D["a"] + bias)
