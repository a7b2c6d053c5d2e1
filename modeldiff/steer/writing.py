"""Let a model continue every prompt under every vector.

Legend: S vectors, B rows of a batch, D width.
"""

from __future__ import annotations

from typing import Any

import torch

from modeldiff.lm.generate import Generated, generate_tokens
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual


def write(
    lm: LanguageModel,
    layer: int,
    prompts: list[str],
    vectors_SD: torch.Tensor,
    *,
    batch: int,
    temperature: float,
    **options: Any,
) -> list[list[Generated]]:
    """The continuations, by vector and prompt.

    Greedily, several vectors share a batch. When drawing, each has its own with the same random numbers, so that the
    texts of a prompt differ by the push alone.

    Args:
        vectors_SD: each is added to the residual stream after block `layer` at every position.
        batch: texts written at a time.
        options: of `generate_tokens`.
    """
    options["temperature"] = temperature
    if temperature > 0:
        made = []
        for vector_D in vectors_SD:
            with add_to_residual(lm, layer, vector_D):
                made.append(generate_tokens(lm, prompts, batch_size=batch, **options))
        return made
    rows = [(vector, prompt) for vector in range(len(vectors_SD)) for prompt in prompts]
    flat: list[Generated] = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        with add_to_residual(lm, layer, vectors_SD[[vector for vector, _ in part]]):
            flat += generate_tokens(lm, [prompt for _, prompt in part], batch_size=len(part), **options)
    return [flat[i : i + len(prompts)] for i in range(0, len(flat), len(prompts))]
