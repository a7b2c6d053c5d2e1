"""Artifacts with a known answer: a crosscoder whose features read single directions, and activations made to fit.

Legend: N pairs, F features; the widths are small numbers of independent directions.
"""

from __future__ import annotations

import torch

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.crosscoder.part import part_of
from modeldiff.settings import Settings, setting, settings
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from tests.made_activations import make_activations

N_A, N_SHARED, N_B = 3, 4, 3
WIDTH_A, WIDTH_B = 8, 9
THRESHOLD = 0.5


@settings
class MadeSettings(Settings):
    """Stands for the settings of a stage."""

    label: str = setting(default="made")
    """Anything."""


def made_crosscoder() -> Crosscoder:
    """Feature i of A reads coordinate i of A; shared feature j the mean of coordinate N_A + j of A and j of B; feature
    i of B coordinate N_SHARED + i of B. Scales are 1, decoders the same directions, twice as long in A."""
    config = CrosscoderConfig(
        width_a=WIDTH_A, width_b=WIDTH_B, n_a_only=N_A, n_shared=N_SHARED, n_b_only=N_B, k=3, threshold=THRESHOLD
    )
    crosscoder = Crosscoder(config)
    with torch.no_grad():
        crosscoder.w_enc_a.copy_(torch.eye(N_A + N_SHARED, WIDTH_A))
        crosscoder.w_enc_b.copy_(torch.eye(N_SHARED + N_B, WIDTH_B))
        crosscoder.w_dec_a.copy_(2 * torch.eye(N_A + N_SHARED, WIDTH_A))
        crosscoder.w_dec_b.copy_(torch.eye(N_SHARED + N_B, WIDTH_B))
    return crosscoder


def shared_only() -> Crosscoder:
    """The shared features of `made_crosscoder` alone: there is no exclusive partition."""
    return part_of(made_crosscoder(), range(N_A, N_A + N_SHARED))


def publish(
    workspace: Workspace, crosscoder: Crosscoder, activations: Artifact | None, label: str = "made"
) -> Artifact:
    """The crosscoder as an artifact, trained on `activations` by its manifest. Another label makes another version."""

    def build(work: Work) -> dict[str, int]:
        crosscoder.save_pretrained(work.folder)
        return {}

    inputs = {"activations": activations.as_input() if activations else Input("activations:7", "0" * 64)}
    return produce(workspace, Order("crosscoder", MadeSettings(label=label), inputs, 1), build)


def sparse_pairs(n: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_a (N, Da), x_b (N, Db)): independent coordinates that are large now and then; the shared features' coordinates
    are equal on both sides. The last coordinate of each side is 1 throughout, so that no row is all zero."""
    generator = torch.Generator().manual_seed(seed)

    def coordinates(width: int) -> torch.Tensor:
        on = torch.rand(n, width, generator=generator) < 0.15
        return torch.where(on, 0.6 + torch.rand(n, width, generator=generator), 0.1)

    x_a, x_b = coordinates(WIDTH_A), coordinates(WIDTH_B)
    x_b[:, :N_SHARED] = x_a[:, N_A : N_A + N_SHARED]
    x_a[:, -1], x_b[:, -1] = 1.0, 1.0
    return x_a, x_b


def words_of(n: int, per_document: int) -> list[str]:
    """Documents of `per_document` words, `n` words in all; word i is `w<i>`."""
    return [" ".join(f"w{i}" for i in range(s, min(s + per_document, n))) for s in range(0, n, per_document)]


def made_pair(
    workspace: Workspace, n: int = 900, *, shard_pairs: int = 300, per_document: int = 50, texts: bool = True
) -> tuple[Artifact, Artifact, torch.Tensor]:
    """(activations, crosscoder, f (N, F) float32): the artifacts and the true codes. Documents alternate between the
    sources "even" and "odd"."""
    x_a, x_b = sparse_pairs(n)
    documents = words_of(n, per_document) if texts else None
    sources = ["odd" if i % 2 else "even" for i in range(len(documents))] if documents else None
    activations = make_activations(workspace, x_a, x_b, shard_pairs, documents, sources=sources)
    crosscoder = made_crosscoder()
    shared = (x_a[:, N_A : N_A + N_SHARED] + x_b[:, :N_SHARED]) / 2
    pre = torch.cat([x_a[:, :N_A], shared, x_b[:, N_SHARED : N_SHARED + N_B]], dim=1)
    return activations, publish(workspace, crosscoder, activations), torch.where(pre > THRESHOLD, pre, 0)
