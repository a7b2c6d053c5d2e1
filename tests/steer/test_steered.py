"""Steering a model of the user's own: to the bit, gone afterwards, and the model as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import modeldiff
from modeldiff.catalogue.direction import direction_of
from modeldiff.errors import InputError
from tests.steer.made import LAYERS, SHARED, Made
from tests.tiny_models import tiny_model

LAYER = 1
IDS_BT = torch.randint(5, 300, (3, 7), generator=torch.Generator().manual_seed(0))


def handed_on(model: transformers.PreTrainedModel, layer: int = LAYER) -> torch.Tensor:
    """What the block after `layer` is given: (B, T, D)."""
    blocks = next(list(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList))
    seen: list[torch.Tensor] = []
    handle = blocks[layer + 1].register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args or (kwargs["hidden_states"],))[0].clone()), with_kwargs=True
    )
    with torch.inference_mode():
        model(IDS_BT)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_times_the_direction_is_added_at_every_token_and_goes_away(arch: str, dtype: torch.dtype) -> None:
    model = tiny_model(arch, 300).to(dtype)
    direction_D = torch.linspace(-2, 3, 32)
    before_BTD, config = handed_on(model), model.generation_config
    expected_BTD = (before_BTD.float() + 1.7 * direction_D).to(dtype)
    with modeldiff.steered(model, direction_D, LAYER, strength=1.7):
        assert torch.equal(handed_on(model), expected_BTD)
    assert torch.equal(handed_on(model), before_BTD)

    def fails() -> None:
        with modeldiff.steered(model, direction_D, LAYER):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(handed_on(model), before_BTD)
    assert model.generation_config is config
    assert all(weight.requires_grad for weight in model.parameters())
    with modeldiff.steered(model, direction_D, LAYER), modeldiff.steered(model, direction_D, LAYER, strength=-1):
        assert torch.allclose(handed_on(model), before_BTD, atol=0.05)


def test_a_compiled_model_is_steered_too_and_only_inside() -> None:
    model = tiny_model("llama", 300)
    plain_BTD, direction_D = handed_on(model), torch.linspace(-2, 3, 32)
    model.compile(backend="eager")
    with torch.inference_mode():
        before_BTV = model(IDS_BT).logits
        with modeldiff.steered(model, direction_D, LAYER):
            assert torch.equal(handed_on(model), plain_BTD + direction_D)
        assert torch.equal(model(IDS_BT).logits, before_BTV)


def test_it_reaches_what_generate_writes() -> None:
    model = tiny_model("llama", 300)
    # A direction that makes one token by far the likeliest, whatever was read.
    towards_D = 1e3 * model.get_output_embeddings().weight[42].detach()
    with modeldiff.steered(model, towards_D, model.config.num_hidden_layers - 1):
        written_BT = model.generate(IDS_BT, max_new_tokens=4, do_sample=False, pad_token_id=2)
    assert written_BT[:, IDS_BT.shape[1] :].eq(42).all()


def test_the_direction_of_a_feature_knows_where_it_belongs(made: Made, folders: dict[str, Path]) -> None:
    for side, layer in LAYERS.items():
        found = modeldiff.direction(made.workspace, SHARED, side.upper(), features=made.features.ref)
        expected_D = direction_of(made.crosscoder, made.features, SHARED, side).unit_D
        assert found.layer == layer
        assert torch.equal(found.unit_D, expected_D)
        model = transformers.AutoModelForCausalLM.from_pretrained(folders[side])
        before_BTD = handed_on(model, layer)
        with modeldiff.steered(model, found, strength=0.5):
            assert torch.equal(handed_on(model, layer), before_BTD + 0.5 * expected_D)


@pytest.mark.parametrize(
    ("model", "direction", "options", "message"),
    [
        ("gpt2", torch.ones(32), {"layer": 0}, "expected a loaded model of transformers .*, found str"),
        (None, torch.ones(32), {}, "layer=N"),
        (None, torch.ones(32), {"layer": 3}, "blocks 0 to 2"),
        (None, torch.ones(31), {"layer": 0}, r"shape \(32,\)"),
        (None, torch.ones(2, 32), {"layer": 0}, "one direction"),
        (None, torch.ones(32), {"layer": 0, "strength": float("nan")}, "not finite"),
    ],
)
def test_what_cannot_be_steered_is_said_in_one_line(model, direction, options, message) -> None:
    with (
        pytest.raises(InputError, match=message),
        modeldiff.steered(model or tiny_model("gpt2", 300), direction, **options),
    ):
        pass


def test_a_direction_of_neither_model(made: Made) -> None:
    with pytest.raises(InputError, match="of model A or B, found 'C'"):
        modeldiff.direction(made.workspace, 0, "C")
