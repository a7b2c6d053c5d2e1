"""Blocks are found by what flows through them."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from modeldiff.errors import InputError
from modeldiff.lm.model import find_blocks, hidden_of
from tests.tiny_models import tiny_model


def test_the_blocks_of_a_vision_and_text_model_are_those_of_its_text_part() -> None:
    text = tiny_model("gemma3", 300).config
    vision = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 32}
    config = transformers.Gemma3Config(
        text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=1
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    assert find_blocks(model) == (list(model.model.language_model.layers), None)


def test_a_list_of_the_same_length_beside_the_blocks_is_not_mistaken_for_them() -> None:
    model = tiny_model("llama", 300)
    blocks = list(model.model.layers)
    model.model.unused = nn.ModuleList(nn.Linear(32, 32) for _ in blocks)
    # Sees (B, T, D) in every block, but hands nothing on.
    model.model.norms = nn.ModuleList(block.input_layernorm for block in blocks)
    assert find_blocks(model) == (blocks, None)


def test_a_model_whose_blocks_cannot_be_found_is_a_clear_error() -> None:
    model = tiny_model("llama", 300)
    model.config.num_hidden_layers = 2
    with pytest.raises(InputError, match=r"LlamaForCausalLM is not supported: expected one list of 2 blocks.*none"):
        find_blocks(model)
    no_transformer = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda **_: SimpleNamespace()))
    with pytest.raises(InputError, match="no num_hidden_layers, hidden_size and vocab_size"):
        find_blocks(no_transformer)


def test_no_hook_stays_behind_when_the_pass_fails() -> None:
    model = tiny_model("llama", 300)
    model.model.norm.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_blocks(model)
    assert all(not block._forward_hooks for block in model.model.layers)


def test_the_hidden_state_of_a_block_may_come_in_a_tuple() -> None:
    hidden = torch.zeros(1, 2, 3)
    assert hidden_of(hidden) is hidden_of((hidden, None)) is hidden
    with pytest.raises(InputError, match="a block gave str"):
        hidden_of("hidden")
