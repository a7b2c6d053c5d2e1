"""What a linear map from the other model explains of a model, and the baseline that looks only at the rest of it.

What a stitch (a ridge regression from one model's activations to the other's) leaves over holds the concepts that only
one model has, in full: the other model's activations do not depend on them.

Legend: N, B pairs, Da, Db widths, D width of the model predicted from, G width of the model predicted.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.recipe import make_recipe
from modeldiff.crosscoder.training.trainer import Recipe
from modeldiff.errors import InputError
from modeldiff.linear.maps import LinearMap
from modeldiff.linear.ridge import RIDGE, Moments

UNLIMITED_PAIRS = 10**12
"""A stream never ends: no recipe is short of pairs."""


@dataclass(frozen=True)
class Stitch:
    """The affine maps between a pair of models, each fitted by ridge regression."""

    a_to_b: LinearMap
    b_to_a: LinearMap

    @classmethod
    def fitted(cls, x_a_NDa: torch.Tensor, x_b_NDb: torch.Tensor) -> Stitch:
        return cls(_fitted(x_a_NDa, x_b_NDb), _fitted(x_b_NDb, x_a_NDa))

    def residuals(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(r_a (B, Da), r_b (B, Db)): what the other model does not predict."""
        return x_a_BDa - self.b_to_a.apply(x_b_BDb), x_b_BDb - self.a_to_b.apply(x_a_BDa)


def _fitted(x_ND: torch.Tensor, y_NG: torch.Tensor) -> LinearMap:
    moments = Moments.empty(x_ND.shape[1], y_NG.shape[1], x_ND.device)
    moments.add_dense(x_ND, y_NG)
    return LinearMap.fitted(moments, RIDGE)


def stitch_r2(x_a_NDa: torch.Tensor, x_b_NDb: torch.Tensor) -> dict[str, float]:
    """R² of the stitch fitted on the first half of the pairs, on the other half, pooled over dimensions: `a_to_b` and
    `b_to_a`. 0: no better than the held-out mean; NaN where the activations do not vary."""
    half = len(x_a_NDa) // 2
    x_a, x_b = x_a_NDa[half:].double(), x_b_NDb[half:].double()
    r_a, r_b = Stitch.fitted(x_a_NDa[:half], x_b_NDb[:half]).residuals(x_a, x_b)
    return {"a_to_b": _pooled_r2(x_b, r_b), "b_to_a": _pooled_r2(x_a, r_a)}


def _pooled_r2(x_ND: torch.Tensor, residual_ND: torch.Tensor) -> float:
    total = float((x_ND - x_ND.mean(dim=0)).square().sum())
    return 1 - float(residual_ND.square().sum()) / total if total > 0 else float("nan")


@dataclass(frozen=True, kw_only=True)
class ResidualRecipe(Recipe):
    """A run in which less than one feature per pair may be active: concepts of one model alone are rare."""

    per_pair: float
    """On average, both models together."""

    def k_at(self, step: int) -> float:
        return super().k_at(step) / self.k * self.per_pair


def residual_recipe(settings: TrainSettings, widths: tuple[int, int]) -> ResidualRecipe:
    """The run of the `stitch-residual` baseline: two sparse autoencoders, one on each model's residual.

    They are the two exclusive partitions of a crosscoder without shared features, each as large as in a DFC of these
    settings, with one BatchTopK over both. A feature is active as often as a DFC's are on average: where features must
    be active more often than concepts occur, they learn mixtures of concepts. The FVE is that of the residuals.

    settings: `features` and `exclusive` give the size. `k_start` is that of a whole dictionary and not used. Nor is
    `outlier_factor`: where the stitch is good, a residual of more than twice the median norm is the mark of an
    exclusive concept, and leaving those pairs out would leave the concepts out (512 concepts in width 64, gaussian map,
    26 features per model, 2000 steps of 1024, three seeds: 39 of 78 were recovered then, not 75). Raises InputError: no
    exclusive features are asked for, or settings that do not fit together.
    """
    whole = make_recipe(dataclasses.replace(settings, architecture="dfc"), widths=widths, pairs=UNLIMITED_PAIRS)
    slots = whole.n_a_only
    if slots == 0:
        raise InputError(f"stitch-residual has exclusive features only, found --exclusive {settings.exclusive}")
    per_pair = whole.k * 2 * slots / (2 * slots + whole.n_shared)
    alone = dataclasses.replace(
        settings, architecture="standard", features=2 * slots, k=math.ceil(per_pair), k_start=None, outlier_factor=0.0
    )
    recipe = make_recipe(alone, widths=widths, pairs=UNLIMITED_PAIRS)
    values = vars(recipe) | {"n_a_only": slots, "n_shared": 0, "n_b_only": slots, "per_pair": per_pair}
    return ResidualRecipe(**values)
