"""Taking features off while sequences are continued, against each sequence alone with the sums written out."""

from collections.abc import Callable

import pytest
import torch

from modeldiff.errors import InputError
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.model import LanguageModel, hidden_of
from modeldiff.lm.residual import Shown, take_off

LENGTHS, NEW = (7, 1, 4, 7), 6


@pytest.fixture(params=["gpt2", "llama", "bloom"])
def lm(request: pytest.FixtureRequest, lm_of: Callable[[str], LanguageModel]) -> LanguageModel:
    return lm_of(request.param)


def test_features_are_taken_off_where_the_stream_shows_them(lm: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, 300, (length,), generator=generator).tolist() for length in LENGTHS]
    generator.manual_seed(1)

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
