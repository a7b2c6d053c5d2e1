"""Reading the residual stream and changing it, on every architecture.

Shapes: B batch, T tokens, D width, R replaced positions, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from modeldiff.console import Progress
from modeldiff.errors import InputError, MachineError
from modeldiff.lm.load import ModelRef
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import (
    add_to_residual,
    mean_residuals,
    replace_in_residual,
    residual_after,
    verify_hook,
)
from tests.tiny_models import tiny_model, tiny_tokenizer

LENGTHS = (11, 4, 1, 9)
SEQUENCE_R, POSITION_R = torch.tensor([0, 3, 0, 1]), torch.tensor([10, 2, 4, 3])


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(5, 300, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask_BT = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return ids_BT * mask_BT, mask_BT


def _logits(lm: LanguageModel) -> Tensor:
    with torch.inference_mode():
        return lm.logits(*_batch())


def _random(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


@contextmanager
def _no_new_hooks(lm: LanguageModel) -> Iterator[None]:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())

    # transformers keeps hooks of its own once hidden states were asked for; have them there before counting.
    lm.body(input_ids=torch.zeros(1, 1, dtype=torch.long), output_hidden_states=True)
    before = hooks()
    yield
    assert hooks() == before


@pytest.fixture(scope="module")
def half() -> LanguageModel:
    return LanguageModel(tiny_model("llama", 300).to(torch.bfloat16), tiny_tokenizer(), ModelRef("llama"))


def test_it_is_the_hidden_state_after_the_layer_and_padding_changes_nothing(lm: LanguageModel) -> None:
    ids_BT, mask_BT = _batch()
    with torch.no_grad():
        states = lm.body(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True).hidden_states
    with _no_new_hooks(lm):
        for layer in range(lm.n_layers):
            verify_hook(lm, layer)
            x_BTD = residual_after(lm, layer, ids_BT, mask_BT)
            assert x_BTD.shape == (*ids_BT.shape, lm.width)
            assert x_BTD.dtype == lm.dtype
            for x_TD, ids_T, length in zip(x_BTD, ids_BT, LENGTHS, strict=True):
                row_1T = ids_T[None, :length]
                alone_TD = residual_after(lm, layer, row_1T, torch.ones_like(row_1T))[0]
                torch.testing.assert_close(x_TD[:length], alone_TD, rtol=1e-4, atol=1e-5)
            if layer < lm.n_layers - 1:
                expected_BTD = states[layer + 1]
                torch.testing.assert_close(x_BTD[mask_BT.bool()], expected_BTD[mask_BT.bool()], rtol=1e-5, atol=1e-6)


def test_steering_adds_exactly_the_vectors_and_changes_what_comes_after(lm: LanguageModel) -> None:
    ids_BT, mask_BT = _batch()
    vector_D, vectors_BD = torch.linspace(-2, 3, lm.width), _random(len(LENGTHS), lm.width)
    before = [residual_after(lm, layer, ids_BT, mask_BT) for layer in range(3)]
    with _no_new_hooks(lm):
        with add_to_residual(lm, 1, vector_D), add_to_residual(lm, 1, vectors_BD):
            assert torch.equal(residual_after(lm, 0, ids_BT, mask_BT), before[0])
            both_BTD = before[1] + vector_D + vectors_BD[:, None]
            assert torch.equal(residual_after(lm, 1, ids_BT, mask_BT), both_BTD)
        with add_to_residual(lm, 1, vector_D):
            gap_BT = (residual_after(lm, 2, ids_BT, mask_BT) - before[2]).norm(dim=-1)
            assert (gap_BT[mask_BT.bool()] > 1).all()
        with add_to_residual(lm, 1, vectors_BD):
            steered_BTD = residual_after(lm, 2, ids_BT, mask_BT)
            with pytest.raises(InputError, match="4 steering vectors were given for 3 sequences"):
                residual_after(lm, 1, ids_BT[:3], mask_BT[:3])
        for row, length in enumerate(LENGTHS):
            with add_to_residual(lm, 1, vectors_BD[row]):
                alone_BTD = residual_after(lm, 2, ids_BT, mask_BT)
            torch.testing.assert_close(steered_BTD[row, :length], alone_BTD[row, :length])
        assert all(torch.equal(residual_after(lm, k, ids_BT, mask_BT), before[k]) for k in range(3))


def test_putting_back_what_is_there_changes_no_bit(lm: LanguageModel) -> None:
    plain_BTV, none = _logits(lm), torch.zeros(0, dtype=torch.long)
    with replace_in_residual(lm, 1, none, none, torch.zeros(0, lm.width)):
        assert torch.equal(_logits(lm), plain_BTV)
    for layer in range(lm.n_layers):
        x_RD = residual_after(lm, layer, *_batch())[SEQUENCE_R, POSITION_R]
        with replace_in_residual(lm, layer, SEQUENCE_R, POSITION_R, x_RD):
            assert torch.equal(_logits(lm), plain_BTV)


def test_only_the_given_positions_are_replaced_and_only_what_comes_after_changes(lm: LanguageModel) -> None:
    plain_BTD, plain_BTV = residual_after(lm, 1, *_batch()), _logits(lm)
    x_RD = _random(4, lm.width)
    with _no_new_hooks(lm), replace_in_residual(lm, 1, SEQUENCE_R, POSITION_R, x_RD):
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


def test_changes_are_rounded_once_to_the_models_dtype(half: LanguageModel) -> None:
    vector_D, x_RD = torch.linspace(-2, 3, half.width), _random(4, half.width)
    plain_BTD = residual_after(half, 1, *_batch())
    with add_to_residual(half, 1, vector_D):
        steered_BTD = residual_after(half, 1, *_batch())
    with replace_in_residual(half, 1, SEQUENCE_R, POSITION_R, x_RD):
        replaced_BTD = residual_after(half, 1, *_batch())
    assert steered_BTD.dtype is replaced_BTD.dtype is torch.bfloat16
    assert torch.equal(steered_BTD, (plain_BTD.float() + vector_D).bfloat16())
    assert torch.equal(replaced_BTD[SEQUENCE_R, POSITION_R], x_RD.bfloat16())


def test_no_hook_stays_after_an_exception(own_lm: LanguageModel) -> None:
    def fail(*_args: object) -> None:
        raise ZeroDivisionError

    with _no_new_hooks(own_lm):
        with pytest.raises(KeyError), add_to_residual(own_lm, 1, torch.ones(own_lm.width)):
            raise KeyError
        failing = own_lm.blocks[0].register_forward_pre_hook(fail)
        for call in (lambda: residual_after(own_lm, 1, *_batch()), lambda: verify_hook(own_lm, 1)):
            with pytest.raises(ZeroDivisionError):
                call()
        failing.remove()


def test_blocks_after_the_layer_and_the_logits_are_not_computed(own_lm: LanguageModel) -> None:
    plain_BTD = residual_after(own_lm, 1, *_batch())

    def fail(*_args: object) -> None:
        raise AssertionError("this need not run")

    for module in (own_lm.blocks[2], own_lm.body.norm, own_lm.model.lm_head):
        module.register_forward_pre_hook(fail)
    assert torch.equal(residual_after(own_lm, 1, *_batch()), plain_BTD)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
def test_the_mean_residual_is_over_the_response_alone(
    lm_of: Callable[[str], LanguageModel], arch: str, batch_size: int
) -> None:
    lm = lm_of(arch)
    spoken = [([5, 6, 7], [8, 9]), ([11], [12, 13, 14, 15]), ([5, 9, 200, 7, 30], [8])]
    mean_ND = mean_residuals(lm, 1, spoken, Progress("read", 3, "responses", 0), batch_size)
    for (prompt, response), mean_D in zip(spoken, mean_ND, strict=True):
        ids_BT = torch.tensor([prompt + response])
        x_TD = residual_after(lm, 1, ids_BT, torch.ones_like(ids_BT))[0]
        torch.testing.assert_close(mean_D, x_TD[len(prompt) :].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_refused(lm_of: Callable[[str], LanguageModel]) -> None:
    lm = lm_of("llama")
    good_RD, index = torch.zeros(4, 32), (SEQUENCE_R, POSITION_R)
    long_BT = torch.ones(1, 300, dtype=torch.long)
    cases = [
        (add_to_residual, (1, torch.ones(36)), r"vector for model llama must have shape \(32,\).*, but has \(36,\)"),
        (add_to_residual, (1, torch.full((32,), torch.nan)), "not finite"),
        (add_to_residual, (3, torch.ones(32)), "layer 3 is out of range"),
        (replace_in_residual, (1, *index, good_RD + torch.nan), "not all finite"),
    ]
    for change, arguments, expected in cases:
        with pytest.raises(InputError, match=expected), change(lm, *arguments):
            pass
    for layer, ids_BT, expected in ((3, long_BT[:, :5], "layer 3 is out of range"), (0, long_BT, "300 tokens are too")):
        with pytest.raises(InputError, match=expected):
            residual_after(lm, layer, ids_BT, torch.ones_like(ids_BT))


def test_a_hook_that_would_see_another_tensor_is_found_out(own_lm: LanguageModel) -> None:
    own_lm.blocks[0], own_lm.blocks[1] = own_lm.blocks[1], own_lm.blocks[0]
    own_lm.blocks[2] = own_lm.blocks[1]
    for layer in range(3):
        with pytest.raises(InputError, match="blocks of model llama cannot be read: they do not take"):
            verify_hook(own_lm, layer)


def test_overflow_is_named(own_lm: LanguageModel) -> None:
    own_lm.model.half().get_input_embeddings().weight.data.fill_(torch.inf)
    with pytest.raises(MachineError, match=r"not finite in torch\.float16: use --dtype float32"):
        verify_hook(own_lm, 1)
