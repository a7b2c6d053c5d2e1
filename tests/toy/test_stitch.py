"""The linear map between two models, what it leaves over, and the dictionary trained on that."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import InputError
from modeldiff.linear.ridge import RIDGE
from modeldiff.toy.recovery import dictionary_of, recovery
from modeldiff.toy.stitch import Stitch, residual_recipe, stitch_r2, train_stitch_residual
from modeldiff.toy.stream import ConceptStream
from modeldiff.toy.world import World, WorldSpec


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def affine_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """(600, 6) and (600, 6), each an exact affine image of the other."""
    x_a = normal(600, 6, seed=0)
    return x_a, x_a @ normal(6, 6, seed=1) + 5 * normal(6, seed=2)


def test_an_affine_image_is_predicted_exactly() -> None:
    x_a, x_b = affine_pair()
    found = stitch_r2(x_a[:400], x_b[:400], x_a[400:], x_b[400:])
    assert found == pytest.approx({"a_to_b": 1.0, "b_to_a": 1.0}, abs=1e-3)
    for residual, x in zip(Stitch.fitted(x_a, x_b).residuals(x_a, x_b), (x_a, x_b), strict=True):
        assert residual.shape == x.shape
        assert residual.dtype == torch.float32
        assert float(residual.norm()) < 0.03 * float(x.norm())


def test_independent_activations_predict_nothing_of_each_other() -> None:
    found, null = [], []
    for seed in range(8):
        x_a, x_b = normal(2000, 8, seed=seed) + 3, normal(2000, 12, seed=100 + seed)
        shuffled_a = x_a[torch.randperm(1000, generator=torch.Generator().manual_seed(200 + seed))]
        held = (x_a[1000:], x_b[1000:])
        found.append(list(stitch_r2(x_a[:1000], x_b[:1000], *held).values()))
        null.append(list(stitch_r2(shuffled_a, x_b[:1000], *held).values()))
    # A map fitted to chance adds width / 1000 to the error, and the two parts' means differ. This varies by 0.001.
    expected = -torch.tensor([8 + 2, 12 + 2]) / 1000
    torch.testing.assert_close(torch.tensor(found).mean(0), expected, rtol=0, atol=0.003)
    torch.testing.assert_close(torch.tensor(null).mean(0), expected, rtol=0, atol=0.003)
    assert max(map(max, found)) < 0


def test_r2_equals_scikit_learns() -> None:
    x_a = normal(500, 4, seed=0) + 2
    x_b = torch.cat([x_a[:, :3] @ normal(3, 3, seed=1), torch.zeros(500, 2)], 1) + 0.7 * normal(500, 5, seed=2)
    found = stitch_r2(x_a[:300], x_b[:300], x_a[300:], x_b[300:])
    for way, x, y in (("a_to_b", x_a, x_b), ("b_to_a", x_b, x_a)):
        x_ND, y_NG = x.double().numpy(), y.double().numpy()
        alpha = RIDGE * ((x_ND[:300] - x_ND[:300].mean(0)) ** 2).sum() / x_ND.shape[1]
        predicted = Ridge(alpha=alpha).fit(x_ND[:300], y_NG[:300]).predict(x_ND[300:])
        # Pooled over dimensions: their R² weighted by their variance.
        expected = r2_score(y_NG[300:], predicted, multioutput="variance_weighted")
        assert 0.2 < found[way] == pytest.approx(expected, abs=1e-6)


def test_activations_that_do_not_vary_have_no_r2() -> None:
    x = normal(50, 3, seed=0)
    assert math.isnan(stitch_r2(x, torch.ones(50, 2), x, torch.ones(50, 2))["a_to_b"])


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


def settings(**values: Any) -> TrainSettings:
    return TrainSettings(**{"features": 40, "exclusive": 0.1, "k": 3, "steps": 40, "batch": 128, **values})


def test_it_finds_what_only_one_model_has_and_nothing_that_both_have() -> None:
    world = World.drawn(SPEC, 0)
    crosscoder, stitch = train_stitch_residual(world, 0, settings(steps=120))
    config = crosscoder.config
    assert (config.n_a_only, config.n_shared, config.n_b_only) == (4, 0, 4)
    stream = ConceptStream(world, batch=4000, seed=0, part=2)
    f_BF = crosscoder.encode(*stitch.residuals(*stream.next()))
    found = recovery(world, dictionary_of(crosscoder, (f_BF > 0).any(0)))
    assert found.recall(world)["right"] == {"shared": 0.0, "A": 1.0, "B": 1.0}
    assert found.exclusive["A"]["shared"] == found.exclusive["B"]["shared"] == 0
    # k_target is 3 and 8 of 40 features are exclusive: the inference threshold keeps about the same share.
    assert float((f_BF > 0).sum()) / 4000 == pytest.approx(3 * 8 / 40, abs=0.2)


def test_less_than_one_feature_per_pair_may_be_active() -> None:
    recipe = residual_recipe(settings(), k=None, widths=(16, 16))
    assert recipe.k_at(recipe.steps) == recipe.per_pair == 3 * 8 / 40
    assert recipe.k_at(0) == pytest.approx(5 * recipe.per_pair)
    assert residual_recipe(settings(), k=0.05, widths=(16, 16)).k_at(10**6) == 0.05
    assert residual_recipe(settings(), k=2.5, widths=(16, 16)).k_at(10**6) == 2.5


def test_no_pair_is_left_out_for_a_large_residual() -> None:
    seen: list[Trainer] = []
    train_stitch_residual(World.drawn(SPEC, 0), 0, settings(outlier_factor=1.0), snapshot=seen.append)
    assert len(seen) == 40
    assert seen[-1].left_out == 0


def test_training_does_not_start_from_the_truth() -> None:
    world = World.drawn(SPEC, 0)
    first: list[Crosscoder] = []

    def note(trainer: Trainer) -> None:
        first.append(trainer.crosscoder)
        assert len(first) > 1 or recovered() == 0

    def recovered() -> int:
        dictionary = dictionary_of(first[0], torch.ones(first[0].n_features, dtype=torch.bool))
        return int(recovery(world, dictionary).any_C.sum())

    train_stitch_residual(world, 0, settings(steps=2), snapshot=note)


def test_seeds_decide_every_bit() -> None:
    world = World.drawn(SPEC, 0)

    def weights(seed: int) -> np.ndarray:
        return train_stitch_residual(world, seed, settings(steps=10))[0].w_dec_a.detach().numpy()

    assert np.array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))


def test_widths_may_differ() -> None:
    spec = WorldSpec(concepts=20, width_a=16, width_b=12, exclusive_ratio=0.2, k_target=3.0)
    crosscoder, _ = train_stitch_residual(World.drawn(spec, 0), 0, settings(steps=10))
    assert (crosscoder.w_dec_a.shape, crosscoder.w_dec_b.shape) == ((4, 16), (4, 12))


@pytest.mark.parametrize(
    ("values", "k", "named"),
    [({"exclusive": 0.0}, None, "--exclusive"), ({"exclusive": 0.001}, None, "--exclusive"), ({}, 0.0, "k must be")],
)
def test_nothing_to_train_is_one_line(values: dict[str, Any], k: float | None, named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        train_stitch_residual(World.drawn(SPEC, 0), 0, settings(**values), k=k)
    assert "\n" not in str(error.value)
