"""Reading the residual stream and adding to it, on every architecture.

Shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modeldiff.errors import InputError, MachineError
from modeldiff.lm.load import LanguageModel, ModelRef, load_model
from modeldiff.lm.residual import add_rows_to_residual, add_to_residual, residual_after, verify_hook
from tests.tiny_models import ARCHITECTURES, tiny_model, tiny_tokenizer

LENGTHS = (11, 4, 1, 9)


def _batch(lm: LanguageModel) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(5, 300, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask_BT = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return ids_BT * mask_BT, mask_BT


def _hooks(lm: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


@contextmanager
def _no_new_hooks(lm: LanguageModel) -> Iterator[None]:
    # transformers keeps hooks of its own once hidden states were asked for; have them there before counting.
    lm.body(input_ids=torch.zeros(1, 1, dtype=torch.long), output_hidden_states=True)
    before = _hooks(lm)
    yield
    assert _hooks(lm) == before


@pytest.fixture(params=ARCHITECTURES)
def lm(request: pytest.FixtureRequest, lm_of: Callable[[str], LanguageModel]) -> LanguageModel:
    return lm_of(request.param)


def test_it_is_the_hidden_state_after_the_layer_and_padding_changes_nothing(lm: LanguageModel) -> None:
    ids_BT, mask_BT = _batch(lm)
    with _no_new_hooks(lm):
        for layer in range(lm.n_layers):
            x_BTD = residual_after(lm, layer, ids_BT, mask_BT)
            assert x_BTD.shape == (*ids_BT.shape, lm.width)
            assert x_BTD.dtype == lm.dtype
            for x_TD, ids_T, length in zip(x_BTD, ids_BT, LENGTHS, strict=True):
                row_1T = ids_T[None, :length]
                torch.testing.assert_close(
                    x_TD[:length],
                    residual_after(lm, layer, row_1T, torch.ones_like(row_1T))[0],
                    rtol=1e-4,
                    atol=1e-5,
                )
            if layer < lm.n_layers - 1:
                with torch.no_grad():
                    states = lm.body(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
                expected_BTD = states.hidden_states[layer + 1]
                torch.testing.assert_close(x_BTD[mask_BT.bool()], expected_BTD[mask_BT.bool()], rtol=1e-5, atol=1e-6)


def test_the_hook_is_verified_on_the_first_middle_and_last_layer(lm: LanguageModel) -> None:
    with _no_new_hooks(lm):
        for layer in range(lm.n_layers):
            verify_hook(lm, layer)


def test_steering_adds_exactly_the_vector_and_changes_what_comes_after(lm: LanguageModel) -> None:
    ids_BT, mask_BT = _batch(lm)
    vector_D = torch.linspace(-2, 3, lm.width)
    before_BTD = [residual_after(lm, layer, ids_BT, mask_BT) for layer in range(3)]
    with _no_new_hooks(lm):
        with add_to_residual(lm, 1, vector_D):
            assert torch.equal(residual_after(lm, 0, ids_BT, mask_BT), before_BTD[0])
            assert torch.equal(residual_after(lm, 1, ids_BT, mask_BT), before_BTD[1] + vector_D)
            gap_BT = (residual_after(lm, 2, ids_BT, mask_BT) - before_BTD[2]).norm(dim=-1)
            assert (gap_BT[mask_BT.bool()] > 1).all()
        assert all(torch.equal(residual_after(lm, k, ids_BT, mask_BT), before_BTD[k]) for k in range(3))


def test_each_sequence_gets_its_own_vector(lm: LanguageModel) -> None:
    ids_BT, mask_BT = _batch(lm)
    vectors_BD = torch.randn(len(LENGTHS), lm.width, generator=torch.Generator().manual_seed(1))
    vectors_BD[2] = 0
    plain_BTD = residual_after(lm, 1, ids_BT, mask_BT)
    with _no_new_hooks(lm):
        with add_rows_to_residual(lm, 1, vectors_BD):
            assert torch.equal(residual_after(lm, 1, ids_BT, mask_BT), plain_BTD + vectors_BD[:, None])
            steered_BTD = residual_after(lm, 2, ids_BT, mask_BT)
            with pytest.raises(InputError, match="4 steering vectors were given for 3 sequences"):
                residual_after(lm, 1, ids_BT[:3], mask_BT[:3])
        for row, vector_D in enumerate(vectors_BD):
            with add_to_residual(lm, 1, vector_D):
                alone_BTD = residual_after(lm, 2, ids_BT, mask_BT)
            torch.testing.assert_close(steered_BTD[row][mask_BT[row].bool()], alone_BTD[row][mask_BT[row].bool()])
    with pytest.raises(InputError, match="steering vectors"), add_rows_to_residual(lm, 1, vectors_BD[:, 1:]):
        pass


def test_nested_steering_adds_up_and_leaves_no_hook(lm: LanguageModel) -> None:
    ids_BT, mask_BT = _batch(lm)
    one_D, two_D = torch.full((lm.width,), 0.5), torch.full((lm.width,), -2.0)
    plain_BTD = residual_after(lm, 0, ids_BT, mask_BT)
    with _no_new_hooks(lm), add_to_residual(lm, 0, one_D), add_to_residual(lm, 0, two_D):
        assert torch.equal(residual_after(lm, 0, ids_BT, mask_BT), plain_BTD + one_D + two_D)


def test_steering_sums_in_float32_and_keeps_the_models_dtype() -> None:
    model = tiny_model("llama", 300).to(torch.bfloat16)
    lm = LanguageModel(model, tiny_tokenizer(), ModelRef("llama"))
    ids_BT, mask_BT = _batch(lm)
    vector_D = torch.linspace(-2, 3, lm.width)
    plain_BTD = residual_after(lm, 1, ids_BT, mask_BT)
    with add_to_residual(lm, 1, vector_D):
        steered_BTD = residual_after(lm, 1, ids_BT, mask_BT)
    assert steered_BTD.dtype is torch.bfloat16
    assert torch.equal(steered_BTD, (plain_BTD.float() + vector_D).bfloat16())


def test_no_hook_stays_after_an_exception(lm_of: Callable[[str], LanguageModel]) -> None:
    lm = lm_of("llama")
    ids_BT, mask_BT = _batch(lm)
    plain_BTD = residual_after(lm, 1, ids_BT, mask_BT)

    def fail(*_args: object) -> None:
        raise ZeroDivisionError

    with _no_new_hooks(lm):
        with pytest.raises(KeyError), add_to_residual(lm, 1, torch.ones(lm.width)):
            raise KeyError
        failing = lm.blocks[0].register_forward_pre_hook(fail)
        for call in (lambda: residual_after(lm, 1, ids_BT, mask_BT), lambda: verify_hook(lm, 1)):
            with pytest.raises(ZeroDivisionError):
                call()
        failing.remove()
    assert torch.equal(residual_after(lm, 1, ids_BT, mask_BT), plain_BTD)


def test_blocks_after_the_layer_and_the_logits_are_not_computed(lm_of: Callable[[str], LanguageModel]) -> None:
    lm = lm_of("qwen3")
    plain_BTD = residual_after(lm, 1, *_batch(lm))

    def fail(*_args: object) -> None:
        raise AssertionError("this need not run")

    needless = [lm.blocks[2], lm.body.norm, lm.model.lm_head]
    handles = [module.register_forward_pre_hook(fail) for module in needless]
    try:
        x_BTD = residual_after(lm, 1, *_batch(lm))
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(x_BTD, plain_BTD)


def test_vectors_and_layers_that_do_not_fit_are_refused(lm_of: Callable[[str], LanguageModel]) -> None:
    lm = lm_of("gpt_oss")
    not_finite_D = torch.full((36,), torch.nan)
    cases = [
        (1, torch.ones(32), r"vector for model gpt_oss must have shape \(36,\), but has \(32,\)"),
        (1, torch.ones(1, 36), r"must have shape \(36,\), but has \(1, 36\)"),
        (1, not_finite_D, "not finite"),
        (3, torch.ones(36), "layer 3 is out of range"),
    ]
    for layer, vector_D, expected in cases:
        with pytest.raises(InputError, match=expected), add_to_residual(lm, layer, vector_D):
            pass
    with pytest.raises(InputError, match="layer 3 is out of range"):
        residual_after(lm, 3, *_batch(lm))
    with pytest.raises(InputError, match="300 tokens are too long"):
        residual_after(lm, 0, torch.ones(1, 300, dtype=torch.long), torch.ones(1, 300, dtype=torch.long))


def test_a_hook_that_would_see_another_tensor_is_found_out(folder_of: Callable[[str], Path]) -> None:
    lm = load_model(ModelRef(str(folder_of("llama"))), torch.device("cpu"), torch.float32)
    lm.blocks[0], lm.blocks[1] = lm.blocks[1], lm.blocks[0]
    for layer in (0, 1):
        with pytest.raises(InputError, match=f"output of block {layer} of model llama is not its hidden_states"):
            verify_hook(lm, layer)


def test_a_last_layer_that_is_not_what_the_final_norm_takes_is_found_out(folder_of: Callable[[str], Path]) -> None:
    lm = load_model(ModelRef(str(folder_of("llama"))), torch.device("cpu"), torch.float32)
    lm.blocks[2] = lm.blocks[1]
    with pytest.raises(InputError, match="output of block 2 of model llama is not its hidden_states"):
        verify_hook(lm, 2)


def test_overflow_in_float16_is_named(folder_of: Callable[[str], Path]) -> None:
    lm = load_model(ModelRef(str(folder_of("llama"))), torch.device("cpu"), torch.float16)
    lm.model.get_input_embeddings().weight.data.fill_(torch.inf)
    with pytest.raises(MachineError, match=r"not finite in torch\.float16: use --dtype float32"):
        verify_hook(lm, 1)
