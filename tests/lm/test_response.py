"""Means over a response's tokens equal those of passes over one sequence at a time."""

from __future__ import annotations

import pytest
import torch

from modeldiff.errors import InputError
from modeldiff.lm.load import ModelRef, load_model
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual, residual_after
from modeldiff.lm.response import Response, mean_log_probs, mean_residuals
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


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_mean_log_probability_is_that_of_the_response(lm: LanguageModel, batch_size: int) -> None:
    vector_D = torch.linspace(-1, 1, lm.width)
    plain_N = mean_log_probs(lm, RESPONSES, batch_size=batch_size)
    with add_to_residual(lm, 1, vector_D):
        steered_N = mean_log_probs(lm, RESPONSES, batch_size=batch_size)
        for one, steered in zip(RESPONSES, steered_N, strict=True):
            log_prob_TV = lm.model(torch.tensor([one.prompt_ids + one.ids])).logits[0].log_softmax(dim=-1)
            at = len(one.prompt_ids) - 1
            by_hand = torch.stack([log_prob_TV[at + i, token] for i, token in enumerate(one.ids)]).mean()
            torch.testing.assert_close(steered, by_hand, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain_N, steered_N, atol=1e-3)


def test_what_cannot_be_read(lm: LanguageModel) -> None:
    with pytest.raises(InputError, match="no tokens"):
        mean_residuals(lm, 1, [Response([5], [])])
    with pytest.raises(InputError, match="positions"):
        mean_log_probs(lm, [Response([5] * 10, [6] * 10)])


def test_a_response_after_another_prompt() -> None:
    assert RESPONSES[0].after(RESPONSES[1]) == Response([11], [8, 9])
