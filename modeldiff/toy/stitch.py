"""What a linear map from the other model explains of a model, and the baseline that looks only at the rest of it.

The map is a ridge regression from one model's activations to the other's (a stitch). Its held-out R² says how much of a
pair is linearly the same. What it leaves over holds the concepts that only one model has, in full: the other model's
activations do not depend on them.

Legend: N, B pairs, Da, Db widths, D width of the model predicted from, G width of the model predicted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Recipe, Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.errors import InputError
from modeldiff.linear.maps import LinearMap
from modeldiff.linear.ridge import RIDGE, Moments
from modeldiff.toy.stream import ConceptStream
from modeldiff.toy.world import World

_CHUNK = 2048
# Pairs that the maps are fitted on: at least this many, and this many for every dimension of the wider model. Fitted
# on n times as many pairs as there are dimensions, a map adds 1/n to the variance it leaves unexplained.
_FIT_PAIRS, _FIT_PAIRS_PER_DIMENSION = 16_384, 128


@dataclass(frozen=True)
class Stitch:
    """The two affine maps between a pair of models.

    Attributes:
        a_to_b: predicts B's activations from A's.
        b_to_a: the reverse.
    """

    a_to_b: LinearMap
    b_to_a: LinearMap

    @classmethod
    def fitted(cls, x_a_NDa: torch.Tensor, x_b_NDb: torch.Tensor) -> Stitch:
        """Both maps, from the same pairs."""
        return cls(_fitted(x_a_NDa, x_b_NDb), _fitted(x_b_NDb, x_a_NDa))

    def residuals(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(r_a (B, Da), r_b (B, Db)): what the other model does not predict."""
        return x_a_BDa - self.b_to_a.apply(x_b_BDb), x_b_BDb - self.a_to_b.apply(x_a_BDa)


def _fitted(x_ND: torch.Tensor, y_NG: torch.Tensor) -> LinearMap:
    """The map from x to y."""
    moments = Moments.empty(x_ND.shape[1], y_NG.shape[1], x_ND.device)
    moments.add_dense(x_ND, y_NG)
    return LinearMap.fitted(moments, RIDGE)


def stitch_r2(
    x_a_fit: torch.Tensor, x_b_fit: torch.Tensor, x_a_held: torch.Tensor, x_b_held: torch.Tensor
) -> dict[str, float]:
    """Held-out R² of the stitch fitted on the first pairs, `a_to_b` and `b_to_a`.

    Pooled over dimensions: 1 - sum of squared residuals / sum of squares about the held-out mean. 0: no better than
    that mean; below 0: worse; NaN where the activations do not vary.
    """
    x_a, x_b = x_a_held.double(), x_b_held.double()
    r_a, r_b = Stitch.fitted(x_a_fit, x_b_fit).residuals(x_a, x_b)
    return {"a_to_b": _pooled_r2(x_b, r_b), "b_to_a": _pooled_r2(x_a, r_a)}


def _pooled_r2(x_ND: torch.Tensor, residual_ND: torch.Tensor) -> float:
    total = float((x_ND - x_ND.mean(dim=0)).square().sum())
    return 1 - float(residual_ND.square().sum()) / total if total > 0 else float("nan")


@dataclass(frozen=True, kw_only=True)
class ResidualRecipe(Recipe):
    """A run in which less than one feature per pair may be active: concepts of one model alone are rare."""

    per_pair: float
    """Active features per pair on average, both models together."""

    def k_at(self, step: int) -> float:
        """As in any recipe, in proportion to `per_pair`."""
        return super().k_at(step) / self.k * self.per_pair


def train_stitch_residual(
    world: World,
    seed: int,
    settings: TrainSettings,
    *,
    k: float | None = None,
    snapshot: Callable[[Trainer], None] | None = None,
    train_part: int = 0,
    fit_part: int = 1,
    device: torch.device | str = "cpu",
) -> tuple[Crosscoder, Stitch]:
    """The `stitch-residual` baseline: two sparse autoencoders, one on each model's residual.

    They are the two exclusive partitions of a crosscoder without shared features, each as large as in a DFC of these
    settings, with one BatchTopK over both, trained by the same trainer. It says nothing about shared concepts, and
    its FVE is that of the residuals: not comparable with that of a dictionary of the activations.

    Args:
        settings: `features` and `exclusive` give the size. `k_start` is that of a whole dictionary and not used. Nor
            is `outlier_factor`: where the stitch is good, a residual of more than twice the median norm is the mark of
            an exclusive concept, and leaving those pairs out would leave the concepts out (512 concepts in width 64,
            gaussian map, 26 features per model, 2000 steps of 1024, three seeds: 39 of 78 were recovered then, not 75).
        k: active features per pair, both models together; if left out, `settings.k` times these features' share of
            the whole dictionary, so that each is active as often as a DFC's are on average. When they must be active
            more often than concepts occur, they learn mixtures of concepts.
        snapshot: called after every step.
        train_part, fit_part: parts of the concept stream to train on, and to fit the maps on.

    Returns:
        The crosscoder, whose inputs are residuals (`stitch.residuals`) in the units of the activations, with its
        inference threshold; and the stitch.

    Raises:
        InputError: no exclusive features are asked for, or settings that do not fit together.
    """
    widths = (world.spec.width_a, world.spec.width_b)
    recipe = residual_recipe(settings, k=k, widths=widths)
    fit_pairs = max(_FIT_PAIRS, _FIT_PAIRS_PER_DIMENSION * max(widths))
    x_a, x_b = ConceptStream(world, batch=_CHUNK, seed=seed, part=fit_part, device=device).pairs(fit_pairs)
    stitch = Stitch.fitted(x_a, x_b)
    crosscoder = _initialised(settings, recipe, *stitch.residuals(x_a, x_b), seed=seed).to(device)
    trainer = Trainer(crosscoder, recipe, warn=False)
    stream = ConceptStream(world, batch=recipe.batch, seed=seed, part=train_part, device=device)
    while trainer.step < recipe.steps:
        trainer.update(*stitch.residuals(*stream.next()))
        if snapshot:
            snapshot(trainer)
    crosscoder.set_threshold(trainer.threshold.value)
    return crosscoder, stitch


def residual_recipe(settings: TrainSettings, *, k: float | None, widths: tuple[int, int]) -> ResidualRecipe:
    """The run of the baseline: a DFC's exclusive partitions, and schedules of a dictionary of just that size.

    Raises:
        InputError: as `train_stitch_residual`.
    """
    unlimited = 10**12
    whole = make_recipe(dataclasses.replace(settings, architecture="dfc"), widths=widths, pairs=unlimited)
    slots = whole.n_a_only
    if slots == 0:
        raise InputError(f"stitch-residual has exclusive features only, found --exclusive {settings.exclusive}")
    if k is None:
        k = whole.k * 2 * slots / (2 * slots + whole.n_shared)
    elif not 0 < k <= 2 * slots:
        raise InputError(f"stitch-residual: k must be above 0 and at most its features ({2 * slots}), found {k:g}")
    alone = dataclasses.replace(
        settings, architecture="standard", features=2 * slots, k=math.ceil(k), k_start=None, outlier_factor=0.0
    )
    recipe = make_recipe(alone, widths=widths, pairs=unlimited)
    values = vars(recipe) | {"n_a_only": slots, "n_shared": 0, "n_b_only": slots, "per_pair": k}
    return ResidualRecipe(**values)


def _initialised(
    settings: TrainSettings, recipe: Recipe, r_a_NDa: torch.Tensor, r_b_NDb: torch.Tensor, *, seed: int
) -> Crosscoder:
    # Both residuals weigh the same, as activations do in a crosscoder.
    measured = {"a": Measured.of(r_a_NDa), "b": Measured.of(r_b_NDb)}
    return Crosscoder.initialised(initial_config(settings, recipe, measured), measured, seed=seed)
