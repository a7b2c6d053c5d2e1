"""The linear map between two models, what it leaves over, and the dictionary trained on that."""

from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import InputError
from modeldiff.linear.ridge import RIDGE
from modeldiff.toy.cell import EVALUATE, CellSpec, train_cell
from modeldiff.toy.recovery import dictionary_of, recovery
from modeldiff.toy.stitch import ResidualRecipe, Stitch, residual_recipe, stitch_r2
from modeldiff.toy.world import World, WorldSpec


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_r2_equals_scikit_learns() -> None:
    x_a = normal(600, 4, seed=0) + 2
    x_b = torch.cat([x_a[:, :3] @ normal(3, 3, seed=1), torch.zeros(600, 2)], 1) + 0.7 * normal(600, 5, seed=2)
    found = stitch_r2(x_a, x_b)
    for way, x, y in (("a_to_b", x_a, x_b), ("b_to_a", x_b, x_a)):
        x_ND, y_NG = x.double().numpy(), y.double().numpy()
        alpha = RIDGE * ((x_ND[:300] - x_ND[:300].mean(0)) ** 2).sum() / x_ND.shape[1]
        predicted = Ridge(alpha=alpha).fit(x_ND[:300], y_NG[:300]).predict(x_ND[300:])
        # Pooled over dimensions: their R² weighted by their variance.
        expected = r2_score(y_NG[300:], predicted, multioutput="variance_weighted")
        assert 0.2 < found[way] == pytest.approx(expected, abs=1e-6)


def test_residuals_point_along_what_only_one_model_has() -> None:
    common, own = normal(3000, 5, seed=0), (normal(3000, seed=1) > 1).float()
    direction = normal(16, seed=2)
    x_a = common @ normal(5, 16, seed=3) + own[:, None] * direction
    x_b = common @ normal(5, 10, seed=4) + 0.01 * normal(3000, 10, seed=5)
    r_a, r_b = Stitch.fitted(x_a, x_b).residuals(x_a, x_b)
    foremost = torch.linalg.eigh(r_a.T @ r_a).eigenvectors[:, -1]
    assert abs(float(torch.cosine_similarity(foremost, direction, dim=0))) > 0.999
    # The concept moves the residual by its whole direction, and nothing else does.
    torch.testing.assert_close(r_a[own == 1].mean(0) - r_a[own == 0].mean(0), direction, rtol=0, atol=0.02)
    assert float(r_b.norm()) < 0.02 * float(x_b.norm())


# Two concepts of each model alone (numbers 0, 1 and 2, 3) among 20.
SPEC = WorldSpec(concepts=20, width_a=16, width_b=16, exclusive_ratio=0.2, k_target=3.0, map="rotation")
TRAIN = {"features": 40, "exclusive": 0.1, "k": 3, "steps": 40, "batch": 128}


def cell(seed: int = 0, world: WorldSpec = SPEC, **values: Any) -> CellSpec:
    return CellSpec(world=world, seed=seed, architecture="stitch-residual", train={**TRAIN, **values})


def test_it_finds_what_only_one_model_has_and_nothing_that_both_have() -> None:
    trained = train_cell(cell(steps=120))
    crosscoder, world = trained.crosscoder, trained.world
    config = crosscoder.config
    assert (config.n_a_only, config.n_shared, config.n_b_only) == (4, 0, 4)
    f_BF = torch.cat([crosscoder.encode(*x, raw=False) for x in trained.pairs(EVALUATE, 4000)])
    found = recovery(world, dictionary_of(crosscoder, (f_BF > 0).any(0)))
    assert found.recall(world)["right"] == {"shared": 0.0, "A": 1.0, "B": 1.0}
    assert found.exclusive["A"]["shared"] == found.exclusive["B"]["shared"] == 0
    # k_target is 3 and 8 of 40 features are exclusive: the inference threshold keeps about the same share.
    assert float((f_BF > 0).sum()) / len(f_BF) == pytest.approx(3 * 8 / 40, abs=0.2)


def test_less_than_one_feature_per_pair_may_be_active() -> None:
    recipe = cell().recipe
    assert isinstance(recipe, ResidualRecipe)
    assert recipe.k_at(recipe.steps) == recipe.per_pair == 3 * 8 / 40
    assert recipe.k_at(0) == pytest.approx(5 * recipe.per_pair)


def test_no_pair_is_left_out_for_a_large_residual_and_nothing_starts_from_the_truth() -> None:
    seen: list[Trainer] = []

    def note(trainer: Trainer, world: World) -> None:
        if not seen:
            dictionary = dictionary_of(trainer.crosscoder, torch.ones(8, dtype=torch.bool))
            assert not recovery(world, dictionary).any_C.any()
        seen.append(trainer)

    train_cell(cell(outlier_factor=1.0), note)
    assert len(seen) == 40
    assert seen[-1].left_out == 0


def test_seeds_decide_every_bit_and_widths_may_differ() -> None:
    spec = WorldSpec(concepts=20, width_a=16, width_b=12, exclusive_ratio=0.2, k_target=3.0)
    one, again, other = (train_cell(cell(seed, spec, steps=10)).crosscoder for seed in (1, 1, 2))
    assert (one.w_dec_a.shape, one.w_dec_b.shape) == ((4, 16), (4, 12))
    assert torch.equal(one.w_dec_a, again.w_dec_a)
    assert not torch.equal(one.w_dec_a, other.w_dec_a)


@pytest.mark.parametrize("exclusive", [0.0, 0.001])
def test_nothing_to_train_is_one_line(exclusive: float) -> None:
    with pytest.raises(InputError, match="--exclusive") as error:
        residual_recipe(TrainSettings(**{**TRAIN, "exclusive": exclusive}), (16, 16))
    assert "\n" not in str(error.value)
