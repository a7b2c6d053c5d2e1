"""The divergence of two models' next words, against scipy, and on models that agree."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from modeldiff.contrast.divergence import KEPT, divergence, likeliest
from modeldiff.contrast.documents import Document, Reading
from modeldiff.lm.buckets import common_buckets, token_strings
from modeldiff.lm.model import LanguageModel


def kept(p_NV: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` likeliest strings of each place."""
    best = np.argsort(-p_NV, axis=1)[:, :count]
    return best.astype(np.int32), np.take_along_axis(p_NV, best, axis=1).astype(np.float32)


def made(seed: int, places: int = 5, strings: int = 12, sharpness: float = 2.0) -> np.ndarray:
    e = np.exp(sharpness * np.random.default_rng(seed).normal(size=(places, strings)))
    return e / e.sum(axis=1, keepdims=True)


def by_scipy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.square(jensenshannon(p, q, base=2, axis=1))


@given(st.integers(0, 1000), st.floats(0.1, 6))
def test_it_is_the_jensen_shannon_divergence_in_bits(seed: int, sharpness: float) -> None:
    p, q = made(2 * seed, sharpness=sharpness), made(2 * seed + 1, sharpness=sharpness)
    np.testing.assert_allclose(divergence(kept(p, 12), kept(q, 12)), by_scipy(p, q), atol=1e-5)


def test_what_neither_model_keeps_is_one_rest() -> None:
    """Both keep the strings 0 to 3 here: the others count together."""
    p, q = ((one + 10 * (np.arange(12) < 4)) / (one.sum(axis=1, keepdims=True) + 40) for one in (made(0), made(1)))
    together = [np.concatenate([one[:, :4], one[:, 4:].sum(axis=1, keepdims=True)], axis=1) for one in (p, q)]
    np.testing.assert_allclose(divergence(kept(p, 4), kept(q, 4)), by_scipy(*together), atol=1e-5)


def test_the_likeliest_strings_are_those_the_model_says_next_at_each_place(lms: dict[str, LanguageModel]) -> None:
    """Documents with one reading of several places and with several readings."""
    plain = [Reading([5, 9, 30, 31, 40, 41, 42], [3, 5, 7])]
    chat = [Reading([8, 9, 10], [3]), Reading([8, 9, 10, 11, 12], [5])]
    documents = [
        Document("x", "made", i, list(range(sum(len(r.cuts) for r in readings))), {"a": readings, "b": readings})
        for i, readings in enumerate((plain, chat))
    ]
    lm_a = lms["a"]
    buckets = common_buckets(dict.fromkeys("ab", token_strings(lm_a.tokenizer)))
    noted: list[int] = []
    bucket_NK, p_NK = likeliest(lm_a, "a", documents, buckets, noted.append)
    assert sum(noted) == 3
    prompts = [document.prompt("a", end) for document in documents for end in document.ends]
    assert bucket_NK.shape == p_NK.shape == (5, KEPT)
    for n, prompt in enumerate(prompts):
        with torch.inference_mode():
            logits_V = lm_a.logits(torch.tensor([prompt]), torch.ones(1, len(prompt)))[0, -1]
        expected = buckets.gather("a", logits_V.softmax(dim=0)[None])[0].topk(KEPT)
        np.testing.assert_allclose(p_NK[n], expected.values.numpy(), atol=1e-5)
        assert bucket_NK[n, 0] == expected.indices[0]
