"""The vector that is added equals the one computed by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modeldiff.catalogue.direction import direction_of
from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import DamagedError, InputError
from tests.crosscoder.made import random_crosscoder

MAX_F = torch.tensor([10.0, 15.0, 0.0, 3.0])


@pytest.fixture
def crosscoder() -> Crosscoder:
    """Features 0 (A), 1 and 2 (shared), 3 (B); A's activations are scaled by 4, B's by 1/2."""
    made = random_crosscoder(width_a=2, width_b=3, n_a_only=1, n_shared=2, n_b_only=1, k=2, scale_a=4.0, scale_b=0.5)
    with torch.no_grad():
        made.w_dec_a.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        made.w_dec_b.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [7.0, 8.0, 9.0]]))
    return made


def made_features(folder: Path, max_F: torch.Tensor = MAX_F) -> Any:
    """What `direction_of` asks of a features artifact."""
    save_file({"max_activation": max_F}, folder / "statistics.safetensors")
    return SimpleNamespace(file=folder.joinpath, ref="features:1", mend="make it again")


@pytest.mark.parametrize(
    ("feature", "side", "strength", "expected"),
    [
        (0, "a", 1.0, [10 * 1 / 4, 10 * 2 / 4]),
        (1, "a", 2.0, [2 * 15 * 3 / 4, 2 * 15 * 4 / 4]),
        (1, "b", -1.0, [-15 * 1 / 0.5, 0.0, -15 * 2 / 0.5]),
        (3, "b", 0.5, [0.5 * 3 * 7 / 0.5, 0.5 * 3 * 8 / 0.5, 0.5 * 3 * 9 / 0.5]),
    ],
)
def test_strength_times_maximum_times_decoder_in_raw_units(
    crosscoder: Crosscoder, tmp_path: Path, feature: int, side: str, strength: float, expected: list[float]
) -> None:
    added_D = direction_of(crosscoder, made_features(tmp_path), feature, side).at(strength)
    torch.testing.assert_close(added_D, torch.tensor(expected))
    f_BF = torch.zeros(2, 4)
    f_BF[1, feature] = strength * MAX_F[feature]
    xhat = crosscoder.decode(f_BF)["ab".index(side)]
    torch.testing.assert_close(added_D, xhat[1] - xhat[0], msg="what the feature adds to the reconstruction")


@pytest.mark.parametrize(
    ("feature", "side", "statistics", "error", "message"),
    [
        (0, "b", MAX_F, InputError, "feature 0 is A-exclusive: model B has no direction"),
        (3, "a", MAX_F, InputError, "feature 3 is B-exclusive: model A has no direction"),
        (2, "a", MAX_F, InputError, "never fires"),
        (4, "a", MAX_F, InputError, "0 to 3"),
        (1, "a", MAX_F[:3], DamagedError, "3 features, the crosscoder 4"),
    ],
)
def test_what_has_no_direction_is_refused(
    crosscoder: Crosscoder, tmp_path: Path, feature: int, side: str, statistics: torch.Tensor, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        direction_of(crosscoder, made_features(tmp_path, statistics), feature, side)
