"""Adding along sequences while they are continued, against a plain loop without cache, padding or batches."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import transformers

from modeldiff.errors import InputError
from modeldiff.lm import generate
from modeldiff.lm.edit import Shown, add_along, take_off
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.model import LanguageModel, hidden_of

LENGTHS, NEW = (7, 1, 4, 7), 6


@pytest.fixture(params=["gpt2", "llama", "bloom"])
def lm(request: pytest.FixtureRequest, lm_of: Callable[[str], LanguageModel]) -> LanguageModel:
    return lm_of(request.param)


def _batch(lm: LanguageModel, lengths: tuple[int, ...] = LENGTHS) -> tuple[list[list[int]], dict[str, object]]:
    """(prompts, arguments of `add_along`), strong enough to change what is written."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, 300, (length,), generator=generator).tolist() for length in lengths]
    edit = {
        "directions_BD": torch.randn(len(lengths), lm.width, generator=generator) * 3,
        "along": [torch.randn(length, generator=generator) for length in lengths],
        "after_B": torch.randn(len(lengths), generator=generator),
    }
    return prompts, edit


def _plainly(lm: LanguageModel, layer: int, ids: list[int], direction_D, along_T, after) -> list[int]:
    """Greedy new tokens of one prompt: every token's pass is over the whole text, what is added written out."""
    found: list[int] = []
    for _ in range(NEW):
        strength_T = torch.cat([along_T, after.expand(len(found))])

        def add(_module, _args, output, strength_T=strength_T):
            hidden_BTD = hidden_of(output) + strength_T[None, :, None] * direction_D
            return hidden_BTD if isinstance(output, torch.Tensor) else (hidden_BTD, *output[1:])

        handle = lm.blocks[layer].register_forward_hook(add)
        with torch.no_grad():
            logits_V = lm.model(input_ids=torch.tensor([ids + found]), use_cache=False).logits[0, -1]
        handle.remove()
        found.append(int(logits_V.argmax()))
        if found[-1] == lm.tokenizer.eos_token_id:
            break
    return found


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, (1, 1)])
def test_a_batch_is_edited_as_each_of_its_sequences_alone(
    lm: LanguageModel, cache: bool, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, edit = _batch(lm, lengths)
    settings = functools.partial(transformers.GenerationConfig, use_cache=cache)
    monkeypatch.setattr(generate, "GenerationConfig", settings)
    unedited = continue_tokens(lm, prompts, max_new_tokens=NEW)
    with add_along(lm, 0, **edit):
        made = continue_tokens(lm, prompts, max_new_tokens=NEW, batch_size=len(prompts))
    with add_along(lm, 0, edit["directions_BD"], [one * 0 for one in edit["along"]], edit["after_B"] * 0):
        nothing_added = continue_tokens(lm, prompts, max_new_tokens=NEW, batch_size=len(prompts))
    rows = zip(prompts, edit["directions_BD"], edit["along"], edit["after_B"], strict=True)
    assert [one.new_ids for one in made] == [_plainly(lm, 0, *row) for row in rows]
    assert made != unedited
    assert nothing_added == unedited == continue_tokens(lm, prompts, max_new_tokens=NEW)


def test_what_does_not_fit_is_refused_and_the_hook_is_gone(lm: LanguageModel) -> None:
    prompts, edit = _batch(lm)
    for wrong in (
        {"directions_BD": edit["directions_BD"][:2]},
        {"after_B": edit["after_B"][:1]},
        {"after_B": edit["after_B"] * float("nan")},
    ):
        with pytest.raises(InputError), add_along(lm, 0, **(edit | wrong)):
            pass
    hooks = len(lm.blocks[0]._forward_hooks)
    with pytest.raises(InputError, match="4 prompts of 7 tokens"), add_along(lm, 0, **edit):
        continue_tokens(lm, prompts[:2], max_new_tokens=2)
    with pytest.raises(InputError, match="pass"), add_along(lm, 0, **edit):
        continue_tokens(lm, prompts * 2, max_new_tokens=2, batch_size=4)
    assert len(lm.blocks[0]._forward_hooks) == hooks


def test_features_are_taken_off_where_the_stream_shows_them(lm: LanguageModel) -> None:
    prompts, _ = _batch(lm)
    generator = torch.Generator().manual_seed(1)

    def some(features: int) -> Shown:
        encoder_GD, decoder_GD = torch.randn(2, features, lm.width, generator=generator)
        return Shown(encoder_GD, torch.randn(features, generator=generator), torch.full((features,), 0.5), decoder_GD)

    shown = [some(count) for count in (2, 0, 1, 3)]
    with take_off(lm, 0, shown):
        made = continue_tokens(lm, prompts, max_new_tokens=NEW)
    for one, ids, features in zip(made, prompts, shown, strict=True):

        def subtract(_module, _args, output, features=features):
            hidden_BTD = hidden_of(output)
            edited_BTD = hidden_BTD.clone()
            for encoder_D, bias, threshold, decoder_D in zip(
                features.encoder_GD, features.bias_G, features.threshold_G, features.decoder_GD, strict=True
            ):
                pre_BT = hidden_BTD @ encoder_D + bias
                edited_BTD -= (pre_BT * (pre_BT > threshold))[..., None] * decoder_D
            return edited_BTD if isinstance(output, torch.Tensor) else (edited_BTD, *output[1:])

        handle = lm.blocks[0].register_forward_hook(subtract)
        alone = continue_tokens(lm, [ids], max_new_tokens=NEW)
        handle.remove()
        assert one.new_ids == alone[0].new_ids
    assert made != continue_tokens(lm, prompts, max_new_tokens=NEW)
    with pytest.raises(InputError, match="4 sequences were given for 2"), take_off(lm, 0, shown):
        continue_tokens(lm, prompts[:2], max_new_tokens=2)
