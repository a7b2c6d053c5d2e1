"""A part of a crosscoder has the codes that its features have in the whole."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from modeldiff.crosscoder.part import part_of
from modeldiff.crosscoder.settings import Selection
from tests.crosscoder.made import random_crosscoder

CONFIGS: list[dict[str, Any]] = [
    *({"n_a_only": 5, "n_shared": 8, "n_b_only": 5, "selection": selection} for selection in get_args(Selection)),
    {"n_a_only": 0, "n_shared": 18, "n_b_only": 0, "combine": "sum"},
    {"n_a_only": 0, "n_shared": 18, "n_b_only": 0, "n_designated": 6, "tie": "norms", "threshold_designated": 1.2},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("features", [[0, 4, 5, 12, 13, 17], [1], [7, 8], [16, 17]], ids=str)
def test_a_part_has_the_codes_of_the_whole(config: dict[str, Any], features: list[int]) -> None:
    whole = random_crosscoder(width_a=6, width_b=7, k=4, threshold=0.3, scale_a=0.5, **config)
    generator = torch.Generator().manual_seed(1)
    x_a, x_b = (4 * torch.randn(200, width, generator=generator) for width in (6, 7))
    part = part_of(whole, features)
    f_BF = whole.encode(x_a, x_b)[:, features]
    assert (f_BF > 0).any()
    torch.testing.assert_close(part.encode(x_a, x_b), f_BF)
    assert [part.partition_of(i) for i in range(len(features))] == [whole.partition_of(f) for f in features]
    for side, norm_F in whole.decoder_norms().items():
        torch.testing.assert_close(part.decoder_norms()[side], norm_F[features])
