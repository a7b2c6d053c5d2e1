"""Replacing positions of the residual stream, on every architecture.

Shapes: B batch, T tokens, R replaced positions, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modeldiff.errors import InputError
from modeldiff.lm.load import LanguageModel, ModelRef
from modeldiff.lm.replace import replace_in_residual
from modeldiff.lm.residual import residual_after
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

LENGTHS = (11, 4, 1, 9)
SEQUENCE_R, POSITION_R = torch.tensor([0, 3, 0, 1]), torch.tensor([10, 2, 4, 3])


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(5, 300, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask_BT = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return ids_BT * mask_BT, mask_BT


def _logits(lm: LanguageModel) -> Tensor:
    ids_BT, mask_BT = _batch()
    with torch.inference_mode():
        logits: Tensor = lm.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    return logits


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest, lm_of: Callable[[str], LanguageModel]) -> LanguageModel:
    return lm_of(request.param)


def test_putting_back_what_is_there_changes_no_bit(lm: LanguageModel) -> None:
    plain_BTV = _logits(lm)
    for layer in range(lm.n_layers):
        x_RD = residual_after(lm, layer, *_batch())[SEQUENCE_R, POSITION_R]
        with replace_in_residual(lm, layer, SEQUENCE_R, POSITION_R, x_RD):
            assert torch.equal(_logits(lm), plain_BTV)


def test_only_the_given_positions_are_replaced_and_only_what_comes_after_changes(lm: LanguageModel) -> None:
    plain_BTD, plain_BTV = residual_after(lm, 1, *_batch()), _logits(lm)
    x_RD = torch.randn(4, lm.width, generator=torch.Generator().manual_seed(1))
    with replace_in_residual(lm, 1, SEQUENCE_R, POSITION_R, x_RD):
        found_BTD, found_BTV = residual_after(lm, 1, *_batch()), _logits(lm)
    expected_BTD = plain_BTD.clone()
    expected_BTD[SEQUENCE_R, POSITION_R] = x_RD
    assert torch.equal(found_BTD, expected_BTD)
    for sequence, first in ((0, 4), (1, 3), (2, 1), (3, 2)):
        length = LENGTHS[sequence]
        torch.testing.assert_close(found_BTV[sequence, :first], plain_BTV[sequence, :first], rtol=1e-4, atol=1e-5)
        changed_T = (found_BTV[sequence, first:length] - plain_BTV[sequence, first:length]).abs().amax(dim=-1)
        assert (changed_T > 1e-3).all()
    assert torch.equal(_logits(lm), plain_BTV)


def test_values_are_rounded_once_to_the_streams_dtype() -> None:
    lm = LanguageModel(tiny_model("gptj", 300).to(torch.bfloat16), tiny_tokenizer(), ModelRef("gptj"))
    x_RD = torch.randn(4, lm.width, generator=torch.Generator().manual_seed(1))
    with replace_in_residual(lm, 1, SEQUENCE_R, POSITION_R, x_RD):
        found_BTD = residual_after(lm, 1, *_batch())
    assert found_BTD.dtype is torch.bfloat16
    assert torch.equal(found_BTD[SEQUENCE_R, POSITION_R], x_RD.bfloat16())


def test_no_position_is_no_change_and_no_hook_stays(lm_of: Callable[[str], LanguageModel]) -> None:
    lm = lm_of("llama")
    plain_BTV = _logits(lm)
    hooks = dict(lm.blocks[1]._forward_hooks)
    none = torch.zeros(0, dtype=torch.long)
    with replace_in_residual(lm, 1, none, none, torch.zeros(0, lm.width)):
        assert torch.equal(_logits(lm), plain_BTV)
    with pytest.raises(KeyError), replace_in_residual(lm, 1, SEQUENCE_R, POSITION_R, torch.zeros(4, lm.width)):
        raise KeyError
    assert dict(lm.blocks[1]._forward_hooks) == hooks


def test_what_does_not_fit_is_refused(lm_of: Callable[[str], LanguageModel]) -> None:
    lm = lm_of("llama")
    good_RD = torch.zeros(4, lm.width)
    cases = [
        (1, POSITION_R, torch.zeros(4, lm.width + 1), r"values of shape \(4, 32\), but they have \(4,\) and \(4, 33\)"),
        (1, POSITION_R[:3], good_RD, r"have \(3,\)"),
        (1, POSITION_R, good_RD + torch.nan, "not all finite"),
        (3, POSITION_R, good_RD, "layer 3 is out of range"),
    ]
    for layer, position_R, x_RD, expected in cases:
        with (
            pytest.raises(InputError, match=expected),
            replace_in_residual(lm, layer, SEQUENCE_R, position_R, x_RD),
        ):
            pass
    with (
        replace_in_residual(lm, 1, SEQUENCE_R, POSITION_R + 1, good_RD),
        pytest.raises(InputError, match=r"11 tokens has no position \(3, 11\)"),
    ):
        _logits(lm)
