"""The vector that is added equals the one computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.numpy import save

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.crosscoder.direction import direction_of
from modeldiff.errors import DamagedError, InputError
from modeldiff.settings import Settings, setting, settings
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce

MAX_F = torch.tensor([10.0, 15.0, 0.0, 3.0])


@settings
class MadeSettings(Settings):
    """Stands for the settings of the features stage."""

    label: str = setting(default="made")
    """Anything."""


@pytest.fixture
def crosscoder() -> Crosscoder:
    """Features 0 (A), 1 and 2 (shared), 3 (B); A's activations are scaled by 4, B's by 1/2."""
    config = CrosscoderConfig(
        width_a=2, width_b=3, n_a_only=1, n_shared=2, n_b_only=1, k=2, scale_a=4.0, scale_b=0.5, threshold=0.1
    )
    made = Crosscoder(config)
    with torch.no_grad():
        made.w_dec_a.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        made.w_dec_b.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [7.0, 8.0, 9.0]]))
    return made


def made_features(folder: Path, max_F: torch.Tensor = MAX_F) -> Artifact:
    def build(work: Work) -> dict[str, int]:
        work.write_bytes("statistics.safetensors", save({"max_activation": max_F.numpy()}))
        return {}

    return produce(Workspace(folder / "ws"), Order("features", MadeSettings(), {}, 1), build)


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
    direction = direction_of(crosscoder, made_features(tmp_path), feature, side)
    torch.testing.assert_close(direction.at(strength), torch.tensor(expected))


def test_it_adds_to_the_model_what_the_feature_adds_to_the_reconstruction(
    crosscoder: Crosscoder, tmp_path: Path
) -> None:
    direction = direction_of(crosscoder, made_features(tmp_path), 1, "b")
    f_BF = torch.zeros(2, 4)
    f_BF[1, 1] = MAX_F[1]
    _, xhat_b = crosscoder.decode(f_BF)
    torch.testing.assert_close(direction.at(1.0), xhat_b[1] - xhat_b[0])


@pytest.mark.parametrize(
    ("feature", "side", "statistics", "error", "message"),
    [
        (0, "b", MAX_F, InputError, "exclusive"),
        (3, "a", MAX_F, InputError, "exclusive"),
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
