"""Means over a response's tokens equal those of passes over one sequence at a time."""

from __future__ import annotations

import pytest
import torch

from modeldiff.errors import InputError
from modeldiff.lm.load import ModelRef, load_model
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import residual_after
from modeldiff.lm.response import Response, mean_residuals
from tests.tiny_models import save_tiny

RESPONSES = [Response([5, 6, 7], [8, 9]), Response([11], [12, 13, 14, 15]), Response([5, 9, 200, 7, 30], [8])]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = save_tiny(tmp_path_factory.mktemp("model"), request.param, max_positions=16)
    return load_model(ModelRef(str(folder)), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_mean_residual_is_over_the_response_alone(lm: LanguageModel, batch_size: int) -> None:
    mean_ND = mean_residuals(lm, 1, RESPONSES, batch_size=batch_size)
    for one, mean_D in zip(RESPONSES, mean_ND, strict=True):
        ids_BT = torch.tensor([one.prompt_ids + one.ids])
        x_TD = residual_after(lm, 1, ids_BT, torch.ones_like(ids_BT))[0]
        torch.testing.assert_close(mean_D, x_TD[len(one.prompt_ids) :].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_what_cannot_be_read(lm: LanguageModel) -> None:
    with pytest.raises(InputError, match="no tokens"):
        mean_residuals(lm, 1, [Response([5], [])])
    with pytest.raises(InputError, match="positions"):
        mean_residuals(lm, 1, [Response([5] * 10, [6] * 10)])
