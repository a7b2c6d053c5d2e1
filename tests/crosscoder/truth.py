"""Crosscoders set by hand to planted concepts: what each feature is, is known.

Legend: C concepts, D width, B pairs, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from tests.crosscoder.planted import Planted

THRESHOLD = 0.25
"""Planted strengths are at least 0.5, and what noise makes of the others is far below this."""
Partitions = tuple[Sequence[int], Sequence[int], Sequence[int]]


def true_crosscoder(planted: Planted, concepts: Partitions, **config: Any) -> Crosscoder:
    """Features that are one concept each: they read its strength, from both models where both have it, and write it.

    There must be no more concepts than dimensions, and no offset, for a linear map to read them.

    Args:
        concepts: for each partition (A, shared, B), the concept of each of its features.
    """
    sizes = dict(zip(("n_a_only", "n_shared", "n_b_only"), map(len, concepts), strict=True))
    widths = {"width_a": planted.x_a.shape[1], "width_b": planted.x_b.shape[1]}
    crosscoder = Crosscoder(CrosscoderConfig(**widths, **sizes, **{"k": 1, "scale_a": 1 / 3, "scale_b": 5.0, **config}))
    concept_F = torch.tensor([concept for part in concepts for concept in part])
    is_shared_F = torch.zeros(len(concept_F), dtype=torch.bool)
    is_shared_F[crosscoder.slices["shared"]] = True
    had_F = sum((directions_CD[concept_F].norm(dim=1) > 0).long() for directions_CD in planted.concepts.values())
    # A shared feature adds up what the models that have its concept say.
    parts_F = torch.where(is_shared_F, crosscoder.encoder_share * had_F, 1.0)
    with torch.no_grad():
        for side, directions_CD in planted.concepts.items():
            rows = crosscoder.sees(side)
            reads_CD = torch.linalg.pinv(directions_CD).T
            crosscoder.encoder(side).copy_(reads_CD[concept_F[rows]] / parts_F[rows, None])
            crosscoder.decoder(side).copy_(directions_CD[concept_F[rows]])
    return crosscoder


def cut(crosscoder: Crosscoder, planted: Planted, rows: int = 512) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The planted activations in normalised units, in batches."""
    return [crosscoder.normalise(*batch) for batch in planted.batches(rows)]


def above_threshold(pre_BF: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Code and smallest score kept: exactly the concepts that are there."""
    return torch.where(pre_BF > THRESHOLD, pre_BF, 0.0), THRESHOLD
