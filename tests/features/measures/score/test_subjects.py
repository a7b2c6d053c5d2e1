"""What is pushed: a seeded sample of living features, random directions, and where the stitch moves both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from modeldiff.features.measures.score.settings import ScoreSettings
from modeldiff.features.measures.score.subjects import Subjects, find_subjects
from modeldiff.linear.stitch import load_stitch
from tests.features.made_pair import DEAD, LOUD, WIDTH, Made, crosscoder, publish_stitch


def found_in(pair: Made, a_to_b: torch.Tensor, bias: torch.Tensor | None = None, **values: Any) -> Subjects:
    settings = ScoreSettings(judge="local", judge_model="m", **values)
    return find_subjects(settings, crosscoder(), pair.features, load_stitch(publish_stitch(pair, a_to_b, "it", bias)))


def test_the_sample_is_alive_seeded_and_bounded(pair: Made) -> None:
    def drawn(seed: int) -> list[tuple[str, str, int]]:
        found = found_in(pair, torch.eye(WIDTH), sample=2, seed=seed)
        return [(one.partition, one.source, one.number) for one in found.all if not one.is_random]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1
    for seed in range(4):
        assert len(drawn(seed)) == 2 + 2 + 2 * 2  # shared ones both ways
        assert all(number % 4 != DEAD for _, _, number in drawn(seed))


def test_only_the_partitions_asked_for_and_the_random_directions_of_their_models(pair: Made) -> None:
    found = found_in(pair, torch.eye(WIDTH), features_from=("A",), random_directions=15)
    assert [(partition, source, len(group)) for partition, source, group in found.groups()] == [
        ("A", "a", 3), ("random", "a", 15),
    ]  # fmt: skip


def test_random_directions_are_as_long_as_features_usually_are(pair: Made) -> None:
    found = found_in(pair, 2 * torch.eye(WIDTH), random_directions=12)
    max_F = load_file(pair.features.file("statistics.safetensors"))["max_activation"]
    for side, features in (("a", max_F[:8]), ("b", max_F[4:])):
        usual = float(np.median(features[features > 0]))  # decoder rows have length 1
        assert found.typical_norm[side] == pytest.approx(usual, rel=1e-5)
        randoms = found.of("random", side)
        assert len(randoms) == 12
        for one in randoms:
            assert float(one.source_D.norm()) == pytest.approx(usual, rel=1e-5)
            assert torch.allclose(one.target_D, 2 * one.source_D)


def test_the_bias_is_added_when_it_is_asked_for(pair: Made) -> None:
    bias = 20 * torch.eye(WIDTH)[1]
    (without,), (with_bias,) = (
        found_in(pair, torch.eye(WIDTH), bias, feature=(LOUD,), random_directions=0, stitch_bias=wanted).all
        for wanted in (False, True)
    )
    assert torch.allclose(without.target_D, without.source_D)
    assert torch.allclose(with_bias.target_D, with_bias.source_D + bias)
