"""Exact BatchTopK against the flattened torch.topk of the public code, on fresh and on trained-like scores.

Legend: B pairs, F features, K kept entries.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from modeldiff.crosscoder.fast.topk import Scores
from tests.benchmarks.rows import Options, Row, against, interleaved

_PAIRS, _FEATURES, _K = 2048, 8192, 64


def rows(options: Options) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    pre_BF = torch.randn(_PAIRS, _FEATURES, generator=generator)
    for name, bias in (("trained, 5.5 % positive", -1.6), ("fresh, 50 % positive", 0.0)):
        yield _row(options, name, pre_BF, torch.full((_FEATURES,), bias))


def _row(options: Options, name: str, pre_BF: torch.Tensor, bias_F: torch.Tensor) -> Row:
    count = _PAIRS * _K
    post_BF = torch.relu(pre_BF + bias_F)  # what the public code selects from: its making is not timed
    flat = post_BF.flatten()
    kept_K, score_K = Scores(pre_BF, bias_F).top(count)
    values, _ = flat.topk(count)
    assert torch.equal(score_K.sort(descending=True).values, values), "not the same scores"
    assert torch.equal(flat[kept_K], score_K)
    variants = {"ours": lambda: Scores(pre_BF, bias_F).top(count), "topk": lambda: flat.topk(count, sorted=False)}
    seconds = interleaved(variants, options.rounds)
    sizes = f"{_PAIRS} x {_FEATURES}, K {count}"
    return against(f"exact BatchTopK against torch.topk, {name}", seconds, "topk", 10, sizes)
