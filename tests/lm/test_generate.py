"""Continuing prompts: batches, seeds, ends, and steering while writing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers

from modeldiff.errors import InputError
from modeldiff.lm.generate import _Drawn, continue_tokens, generate, generate_tokens
from modeldiff.lm.load import LanguageModel
from modeldiff.lm.residual import add_to_residual

PROMPTS = ["The quick brown fox jumps", "It", "I love 東京 and 1989"]


def _greedy_without_cache(lm: LanguageModel, ids: list[int], n: int) -> list[int]:
    ids = list(ids)
    for _ in range(n):
        with torch.no_grad():
            logits_V = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits_V.argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id:
            break
    return ids


def test_a_batch_continues_each_prompt_as_if_it_were_alone(lm: LanguageModel) -> None:
    made = generate_tokens(lm, PROMPTS, max_new_tokens=6)
    for prompt, one in zip(PROMPTS, made, strict=True):
        assert one.prompt_ids == lm.tokenizer(prompt)["input_ids"]
        assert one.prompt_ids + one.new_ids == _greedy_without_cache(lm, one.prompt_ids, 6)
    assert [one.text for one in made] == generate(lm, PROMPTS, max_new_tokens=6, batch_size=2)


def test_steering_moves_every_written_token_and_stops_with_the_context(lm: LanguageModel) -> None:
    # The vector points along one token's unembedding, far enough to drown everything else after the last block.
    token = lm.tokenizer(",")["input_ids"][0]
    drowning_D = 1e4 * lm.model.get_output_embeddings().weight[token].float()
    vector_D = 5 * torch.randn(lm.width, generator=torch.Generator().manual_seed(1))
    plain = generate_tokens(lm, PROMPTS, max_new_tokens=6)
    for layer, one_D in ((lm.n_layers - 1, drowning_D), (0, vector_D)):
        with add_to_residual(lm, layer, one_D):
            steered = generate_tokens(lm, PROMPTS, max_new_tokens=6)
            for one in steered:
                assert one.prompt_ids + one.new_ids == _greedy_without_cache(lm, one.prompt_ids, 6)
        assert [one.new_ids for one in steered] != [one.new_ids for one in plain]
        # The same vector at every position drowns the prompt.
        assert len({tuple(one.new_ids) for one in steered}) == 1 or layer == 0
    assert generate_tokens(lm, PROMPTS, max_new_tokens=6) == plain


def test_sampling_follows_the_seed_and_leaves_the_global_random_state(lm_of: Callable[[str], LanguageModel]) -> None:
    lm = lm_of("gpt2")
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.5}
    first = generate(lm, PROMPTS, **options, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert generate(lm, PROMPTS, **options, seed=1) == first
    assert generate(lm, PROMPTS, **options, seed=2) != first
    # A nucleus of almost no mass holds only the likeliest token.
    assert generate(lm, PROMPTS, **options, top_p=1e-6) == generate(lm, PROMPTS, max_new_tokens=12)


def test_what_the_models_own_settings_recommend_is_not_applied(own_lm: LanguageModel) -> None:
    plain = generate(own_lm, PROMPTS, max_new_tokens=12)
    recommended = transformers.GenerationConfig(
        do_sample=True, temperature=3.0, top_k=1, repetition_penalty=9.0, max_length=3, eos_token_id=1
    )
    own_lm.model.generation_config = recommended
    again = LanguageModel(own_lm.model, own_lm.tokenizer, own_lm.ref)
    assert again.recommended is recommended
    assert generate(again, PROMPTS, max_new_tokens=12) == plain


def test_writing_stops_at_any_token_that_ends_a_text(own_lm: LanguageModel) -> None:
    whole = generate_tokens(own_lm, PROMPTS, max_new_tokens=8)[0].new_ids
    stop = whole[3]
    own_lm.recommended.eos_token_id = [1, stop]
    made = generate_tokens(own_lm, PROMPTS, max_new_tokens=8)
    assert made[0].new_ids == whole[: whole.index(stop) + 1]
    for one in made:
        assert stop not in one.new_ids[:-1]


def test_prompts_that_cannot_be_continued_are_refused(lm_of: Callable[[str], LanguageModel]) -> None:
    with pytest.raises(InputError, match="257 tokens are too long for model gpt2, which has 256 positions"):
        generate(lm_of("gpt2"), ["The"], max_new_tokens=256)
    with pytest.raises(InputError, match="a prompt is empty"):
        generate(lm_of("gpt2"), ["fine", ""], max_new_tokens=4)


def test_models_that_generate_at_the_same_time_do_not_change_each_others_texts(
    lm_of: Callable[[str], LanguageModel],
) -> None:
    lm = lm_of("llama")
    prompts = [[5, 6, 7], [8, 9]]

    def draw(seed: int) -> list[list[int]]:
        made = continue_tokens(lm, prompts, max_new_tokens=12, temperature=1.0, seed=seed)
        return [one.new_ids for one in made]

    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draw, range(4))) == alone
    assert alone[0] != alone[1]


def test_tokens_are_drawn_as_often_as_the_logits_say() -> None:
    """Each of 60,000 draws from softmax(logits / temperature); what is excluded is never drawn."""
    temperature, draws = 2.0, 60_000
    logits = torch.tensor([1.0, -torch.inf, 3.0, -2.0, 0.5, -torch.inf])
    drawn = _Drawn(temperature, torch.Generator().manual_seed(0))
    tokens = drawn(torch.zeros(draws, 1, dtype=torch.long), logits.expand(draws, -1)).argmax(dim=1)
    expected = (logits / temperature).softmax(dim=0)
    rates = torch.bincount(tokens, minlength=len(logits)) / draws
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((rates - expected).abs() <= 4 * error).all()
