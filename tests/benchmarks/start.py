"""Where all training steps start from: the same weights and batches, like those late in a training.

A crosscoder that has just been initialised keeps half of its features above 0; a trained one about one in twenty, and
BatchTopK takes different times on the two. So the data is made of the crosscoder's own features, on a few strong common
directions and some noise, and the encoder's bias lets so many features through.

Legend: B pairs, F features, D = 2 d the two models' widths together, N batches, R common directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import torch
from torch.nn import functional

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Recipe
from modeldiff.crosscoder.units import Measured
from modeldiff.sides import SIDES

# One training step on a batch (B, 2, d), float32: A's activations, B's activations. It answers with the loss before the
# update, where that is at hand.
Step = Callable[[torch.Tensor], float | None]

_POSITIVE = 0.055
_COMMON_DIRECTIONS = 32
_BATCHES = 4


@dataclass(frozen=True)
class Sizes:
    """`width` of each model; `exclusive`: the share of the features that A has alone, and likewise B."""

    width: int
    features: int
    k: int
    batch: int
    exclusive: float = 0.0

    def __str__(self) -> str:
        exclusive = f", {self.exclusive:.0%} + {self.exclusive:.0%} exclusive" if self.exclusive else ""
        return f"d {self.width}+{self.width}, {self.features} features, k {self.k}, batch {self.batch}{exclusive}"


@dataclass(frozen=True)
class Start:
    """Weights in the order A-only | shared | B-only, all float32.

    Attributes:
        enc_FD, dec_FD: A's and B's rows beside each other; 0 where a model does not have the feature.
        enc_bias_F: the encoder's bias; the decoder's is 0.
        batches_NB2d: data in float32.
        log_every: steps between two steps of ours that are logged, which are never timed.
    """

    sizes: Sizes
    enc_FD: torch.Tensor
    dec_FD: torch.Tensor
    enc_bias_F: torch.Tensor
    batches_NB2d: torch.Tensor
    log_every: int

    @property
    def n_exclusive(self) -> int:
        """Features of each exclusive partition."""
        return round(self.sizes.exclusive * self.sizes.features)

    def batches(self) -> Iterator[torch.Tensor]:
        """All batches, again and again."""
        return cycle(self.batches_NB2d.unbind())

    def crosscoder(self) -> tuple[Crosscoder, Recipe]:
        """Ours. The function is the public trainer's: rank by the sum of the decoder norms, error norms as loss."""
        crosscoder, recipe = _untrained(self.sizes, self.log_every)
        with torch.no_grad():
            crosscoder.b_enc.copy_(self.enc_bias_F)
        return crosscoder, recipe

    @property
    def lr(self) -> float:
        """The learning rate of every variant."""
        return 2e-4 / math.sqrt(self.sizes.features / 2**14)


def make_start(sizes: Sizes, *, log_every: int, seed: int = 0) -> Start:
    """Weights and batches."""
    crosscoder, _ = _untrained(sizes, log_every)
    config = crosscoder.config
    with torch.no_grad():
        sides = []
        for w_a, w_b in ((crosscoder.w_enc_a, crosscoder.w_enc_b), (crosscoder.w_dec_a, crosscoder.w_dec_b)):
            above, below = (0, 0, 0, config.n_b_only), (0, 0, config.n_a_only, 0)
            sides.append(torch.cat([functional.pad(w_a, above), functional.pad(w_b, below)], dim=1).contiguous())
        enc_FD, dec_FD = sides
        batches_NB2d = _batches(dec_FD, sizes, torch.Generator().manual_seed(seed))
        pre_BF = batches_NB2d[0].flatten(1) @ enc_FD.T
        sample = pre_BF.flatten()[:: max(1, pre_BF.numel() // 1_000_000)]
        enc_bias_F = torch.full((sizes.features,), -float(sample.quantile(1 - _POSITIVE)))
    return Start(sizes, enc_FD, dec_FD, enc_bias_F, batches_NB2d, log_every)


def _untrained(sizes: Sizes, log_every: int) -> tuple[Crosscoder, Recipe]:
    settings = TrainSettings(
        architecture="dfc" if sizes.exclusive else "standard", exclusive=sizes.exclusive, features=sizes.features,
        k=sizes.k, k_start=sizes.k, anneal_steps=0, batch=sizes.batch, steps=1_000_000, warmup=0, decay="none",
        selection="sum", loss="norm",
    )  # fmt: skip
    widths = (sizes.width, sizes.width)
    recipe = make_recipe(settings, widths=widths, pairs=sizes.batch * _BATCHES)
    recipe = replace(recipe, threshold_start=0, log_every=log_every)
    measured = {side: Measured(torch.zeros(sizes.width), math.sqrt(sizes.width)) for side in SIDES}
    config = initial_config(settings, recipe, measured)
    return Crosscoder.initialised(config, measured, seed=settings.seed), recipe


def _batches(dec_FD: torch.Tensor, sizes: Sizes, random: torch.Generator) -> torch.Tensor:
    """(N, B, 2, d): k features a pair, frequent and rare ones; R common directions; noise. No pair is an outlier."""
    rows = _BATCHES * sizes.batch
    width = dec_FD.shape[1]
    odds_F = torch.randn(sizes.features, generator=random).exp()
    chosen_Bk = odds_F.multinomial(rows * sizes.k, replacement=True, generator=random).view(rows, sizes.k)
    size_Bk = 1 + torch.randn(rows, sizes.k, generator=random).abs()
    x_BD = functional.embedding_bag(chosen_Bk, dec_FD, per_sample_weights=size_Bk, mode="sum")
    scale = float(x_BD.square().mean().sqrt())
    common = min(_COMMON_DIRECTIONS, width // 8)
    directions_RD = torch.randn(common, width, generator=random) / math.sqrt(common)
    x_BD += 0.5 * scale * torch.randn(rows, common, generator=random) @ directions_RD
    x_BD += 0.2 * scale * torch.randn(rows, width, generator=random)
    return x_BD.view(_BATCHES, sizes.batch, 2, sizes.width)
