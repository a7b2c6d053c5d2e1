"""What is measured on texts, against the model's own logits one text at a time."""

from __future__ import annotations

import pytest
import torch

import modeldiff.steer.effect as effect
from modeldiff.lm import batches
from modeldiff.lm.generate import Generated, generate_tokens
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.ref import ModelRef
from modeldiff.lm.residual import add_to_residual
from modeldiff.steer.sweep import write
from tests.steer.made import steer
from tests.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = ["The quick brown fox jumps", "It", "I love"]


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_oss"])
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    width = 36 if request.param == "gpt_oss" else 32
    return LanguageModel(tiny_model(request.param, 320, width=width), tiny_tokenizer(), ModelRef(request.param))


@pytest.fixture(scope="module")
def texts(lm: LanguageModel) -> list[Generated]:
    """Continuations of different lengths."""
    written = generate_tokens(lm, PROMPTS, max_new_tokens=7)
    return [Generated(one.prompt_ids, one.new_ids[:keep], "") for one, keep in zip(written, (7, 1, 4), strict=True)]


def log_p(lm: LanguageModel, one: Generated) -> torch.Tensor:
    """Of all tokens of the vocabulary at every place of the continuation."""
    ids = torch.tensor([one.prompt_ids + one.new_ids])
    with torch.no_grad():
        logits_TV = lm.model(input_ids=ids).logits[0]
    return logits_TV[len(one.prompt_ids) - 1 : -1].log_softmax(dim=-1)


def test_surprisal_is_minus_log_p_of_each_token(lm: LanguageModel, texts: list[Generated]) -> None:
    for one, nats in zip(texts, effect.surprisal(lm, texts), strict=True):
        expected = [-float(row[token]) for row, token in zip(log_p(lm, one), one.new_ids, strict=True)]
        assert nats == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_divergence_is_kl_of_steered_from_unsteered(lm: LanguageModel, texts: list[Generated]) -> None:
    vectors_SD = torch.randn(2, lm.width, generator=torch.Generator().manual_seed(0))
    nothing, *found = effect.divergence(lm, 1, texts, torch.cat([torch.zeros(1, lm.width), vectors_SD]))
    assert nothing == [[0.0] * len(one.new_ids) for one in texts], "exactly"
    for vector_D, of_vector in zip(vectors_SD, found, strict=True):
        for one, kl in zip(texts, of_vector, strict=True):
            plain_TV = log_p(lm, one)
            with add_to_residual(lm, 1, vector_D):
                steered_TV = log_p(lm, one)
            expected_T = (steered_TV.exp() * (steered_TV - plain_TV)).sum(dim=-1)
            assert kl == pytest.approx(expected_T.tolist(), rel=1e-3, abs=1e-5)
            assert min(kl) > 0


def test_batches_and_parts_make_no_difference(
    lm: LanguageModel, texts: list[Generated], monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors_SD = torch.ones(1, lm.width)
    whole = effect.surprisal(lm, texts), effect.divergence(lm, 1, texts, vectors_SD)[0]
    monkeypatch.setattr(effect, "_LOGIT_VALUES", 1)
    monkeypatch.setattr(batches, "CHUNK_VALUES", 2 * 320)
    parts = effect.surprisal(lm, texts), effect.divergence(lm, 1, texts, vectors_SD)[0]
    for one, other in zip(whole, parts, strict=True):
        for values, expected in zip(one, other, strict=True):
            assert values == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 4, 32])
def test_a_batch_of_pushes_writes_what_each_writes_alone(lm: LanguageModel, temperature: float, batch: int) -> None:
    vectors_SD = torch.randn(4, lm.width, generator=torch.Generator().manual_seed(0))
    vectors_SD[0] = 0
    options = {"max_new_tokens": 6, "temperature": temperature, "seed": 3}
    found = write(steer(**options), lm, 1, PROMPTS, vectors_SD, batch)
    expected = []
    for vector_D in vectors_SD:
        with add_to_residual(lm, 1, vector_D):
            expected.append(generate_tokens(lm, PROMPTS, batch_size=batch, **options))
    assert found == expected
    assert found[0] == generate_tokens(lm, PROMPTS, batch_size=batch, **options)
    assert found[0] != found[1]
