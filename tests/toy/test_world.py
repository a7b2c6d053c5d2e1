"""Worlds against the closed forms of their definition."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.errors import InputError
from modeldiff.toy.recovery import dictionary_of, recovery
from modeldiff.toy.world import A_ONLY, B_ONLY, SHARED, World, WorldSpec, map_share

MAPS = ("gaussian", "rotation", "independent", "mixed:0.4")


def spec(**values: Any) -> WorldSpec:
    return WorldSpec(**{"concepts": 200, "width_a": 32, "width_b": 32, **values})


def world(seed: int = 0, **values: Any) -> World:
    return World.drawn(spec(**values), seed)


def inner_products(rows_CD: torch.Tensor) -> torch.Tensor:
    """Of all pairs of different concepts."""
    gram_CC = rows_CD @ rows_CD.T
    return gram_CC[~torch.eye(len(rows_CD), dtype=torch.bool)]


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


@pytest.mark.parametrize(("ratio", "own"), [(0.05, 5), (0.0, 0), (0.1, 10), (1.0, 100)])
def test_each_model_has_half_of_the_exclusive_concepts(ratio: float, own: int) -> None:
    made = world(exclusive_ratio=ratio)
    counts = torch.bincount(made.classes_C, minlength=3)
    assert made.spec.n_exclusive == own
    assert counts[[SHARED, A_ONLY, B_ONLY]].tolist() == [200 - 2 * own, own, own]


def test_the_paper_has_102_exclusive_concepts() -> None:
    assert 2 * spec(concepts=2048).n_exclusive == 102


@pytest.mark.parametrize("name", MAPS)
def test_a_model_has_directions_for_its_concepts_only(name: str) -> None:
    made = world(map=name)
    norms = {side: rows.norm(dim=1) for side, rows in made.directions.items()}
    for side, other in (("a", B_ONLY), ("b", A_ONLY)):
        assert (norms[side][made.classes_C == other] == 0).all()
        assert (norms[side][made.classes_C != other] > 0.1).all()
    torch.testing.assert_close(norms["a"][made.classes_C != B_ONLY], torch.ones(195))


@pytest.mark.parametrize(
    ("name", "width_b"),
    [(name, width) for name in MAPS for width in (24, 32, 40) if (name, width) != ("rotation", 24)],
)
def test_the_median_norm_of_bs_directions_is_as(name: str, width_b: int) -> None:
    made = world(exclusive_ratio=0.0, map=name, width_b=width_b)
    assert made.directions["b"].shape == (200, width_b)
    assert float(made.directions["b"].norm(dim=1).median()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("width_b", [32, 48])
def test_a_rotation_keeps_every_inner_product(width_b: int) -> None:
    made = world(exclusive_ratio=0.0, map="rotation", width_b=width_b)
    grams = [rows @ rows.T for rows in made.directions.values()]
    torch.testing.assert_close(grams[0], grams[1], rtol=0, atol=2e-6)
    torch.testing.assert_close(made.directions["a"].norm(dim=1), made.directions["b"].norm(dim=1))


def test_a_rotation_into_a_narrower_model_is_a_projection() -> None:
    made = world(concepts=2000, exclusive_ratio=0.0, map="rotation", width_b=8)
    norms = made.directions["b"].norm(dim=1)
    assert float(norms.max()) < 1
    assert float(norms.square().mean()) == pytest.approx(8 / 32, rel=0.02)


def test_inner_products_in_b_follow_as_as_far_as_the_map_does() -> None:
    found = {}
    for name in ("gaussian", "mixed:0.5", "independent"):
        made = world(exclusive_ratio=0.0, map=name)
        found[name] = correlation(*(inner_products(made.directions[side]) for side in ("a", "b")))
    # 199 * 100 pairs: chance is below 0.03. The gaussian map adds noise of the size of the cosines themselves.
    assert abs(found["independent"]) < 0.03
    assert found["independent"] < found["mixed:0.5"] < found["gaussian"]
    assert found["gaussian"] > 0.4


def test_the_ends_of_the_dial_are_the_plain_maps() -> None:
    for end, plain in (("mixed:1.0", "gaussian"), ("mixed:0", "independent")):
        assert torch.equal(world(map=end).directions["b"], world(map=plain).directions["b"])
    assert [map_share(name) for name in ("gaussian", "mixed:0.25", "independent")] == [1.0, 0.25, 0.0]


def test_the_gaussian_map_is_affine_with_the_translation_asked_for() -> None:
    # Without translation B's directions are a linear image of A's: as many dimensions as the narrower model, no more.
    for translation, rank in ((0.0, 16), (0.5, 17)):
        made = world(exclusive_ratio=0.0, width_a=16, width_b=32, translation=translation)
        assert int(torch.linalg.matrix_rank(made.directions["b"].double(), rtol=1e-5)) == rank


def test_a_seed_makes_the_same_world_and_another_seed_another() -> None:
    first, again, other = world(3), world(3), world(4)
    for side in ("a", "b"):
        assert torch.equal(first.directions[side], again.directions[side])
        assert not torch.equal(first.directions[side], other.directions[side])
    assert torch.equal(first.decay_C, again.decay_C)
    assert torch.equal(first.loadings_CR, again.loadings_CR)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_crosscoder_of_the_same_seed_does_not_start_from_the_truth(seed: int) -> None:
    made = world(seed)
    config = CrosscoderConfig(width_a=32, width_b=32, n_a_only=10, n_shared=180, n_b_only=10, k=1)
    crosscoder = Crosscoder.initialised(config, torch.zeros(32), torch.zeros(32), seed=seed)
    dictionary = dictionary_of(crosscoder, torch.ones(200, dtype=torch.bool))
    assert recovery(made, dictionary).recall(made)["any"] == {"shared": 0.0, "A": 0.0, "B": 0.0}


def test_decay_factors_are_those_of_the_ranks_in_random_order() -> None:
    made = world(decay=0.01)
    expected = torch.exp(-0.01 * torch.arange(200.0))
    torch.testing.assert_close(made.decay_C.sort(descending=True).values, expected)
    assert not torch.equal(made.decay_C, expected)


def draws(made: World, number: int) -> torch.Tensor:
    """(number, C) probabilities."""
    random = torch.Generator().manual_seed(1)
    return torch.stack([made.probabilities(random) for _ in range(number)])


def test_probabilities_add_up_to_the_target() -> None:
    p = draws(world(k_target=5.0, min_probability=1e-9), 20)
    torch.testing.assert_close(p.sum(dim=1), torch.full((20,), 5.0))


def test_probabilities_stay_between_the_least_and_one() -> None:
    p = draws(world(k_target=4.0, min_probability=0.02), 20)
    assert float(p.min()) == pytest.approx(0.02)
    assert (p.sum(dim=1) > 4).all()
    p = draws(world(k_target=190.0), 20)
    assert float(p.max()) == 1


def test_probabilities_decay_with_rank_in_expectation() -> None:
    made = world(concepts=40, decay=0.05, correlation_rank=0, k_target=2.0, min_probability=1e-9)
    mean_C = draws(made, 4000).mean(dim=0)
    # The sigmoid of a standard normal varies by 0.42 of its mean: a standard error of 0.7 % per concept.
    torch.testing.assert_close(mean_C / mean_C.sum(), made.decay_C / made.decay_C.sum(), rtol=0.04, atol=0)


def test_loadings_have_the_papers_size() -> None:
    loadings = world(concepts=2000).loadings_CR
    assert loadings.shape == (2000, 10)
    assert float(loadings.std()) == pytest.approx(0.5 / math.sqrt(10), rel=0.02)
    assert float(loadings.square().sum(dim=1).mean()) == pytest.approx(0.25, rel=0.03)


def test_log_odds_covary_by_the_loadings() -> None:
    """Loadings of +0.5 for half of the concepts and -0.5 for the others: LL' + 1 is 1.25 on the diagonal and ±0.25
    off it. The halves balance, so that the rescaling to the target is by about the same factor in every draw, and the
    log-odds can be had back from the probabilities."""
    sign_C = torch.ones(400)
    sign_C[200:] = -1
    made = world(concepts=400, decay=0.0, k_target=20.0, min_probability=1e-9)
    made = dataclasses.replace(made, loadings_CR=0.5 * sign_C[:, None])
    log_odds = torch.logit(draws(made, 3000) * (400 / 2 / 20), eps=1e-3)
    covariance_CC = torch.cov(log_odds.T)
    same_CC = torch.outer(sign_C, sign_C) > 0
    diagonal_CC = torch.eye(400, dtype=torch.bool)
    assert float(covariance_CC[diagonal_CC].mean()) == pytest.approx(1.25, abs=0.04)
    assert float(covariance_CC[same_CC & ~diagonal_CC].mean()) == pytest.approx(0.25, abs=0.03)
    assert float(covariance_CC[~same_CC].mean()) == pytest.approx(-0.25, abs=0.03)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"exclusive_ratio": 1.2}, "--exclusive-ratio"),
        ({"exclusive_ratio": -0.1}, "--exclusive-ratio"),
        ({"exclusive_ratio": math.nan}, "--exclusive-ratio"),
        ({"k_target": 201.0}, "--k-target"),
        ({"k_target": 0.0}, "--k-target"),
        ({"concepts": 1}, "--concepts"),
        ({"width_a": 1}, "--width-a"),
        ({"width_b": 0}, "--width-b"),
        ({"correlation_rank": -1}, "--correlation-rank"),
        ({"decay": -1.0}, "--decay"),
        ({"noise": math.inf}, "--noise"),
        ({"translation": -0.1}, "--translation"),
        ({"min_probability": 0.0}, "--min-probability"),
        ({"min_probability": 1.5}, "--min-probability"),
        ({"map": "affine"}, "--map"),
        ({"map": "mixed"}, "--map"),
        ({"map": "mixed:1.5"}, "--map"),
        ({"map": "mixed:half"}, "--map"),
    ],
)
def test_a_senseless_value_is_named_in_one_line(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as error:
        spec(**values)
    assert "\n" not in str(error.value)
    assert str(next(iter(values.values()))).split(".")[0] in str(error.value)
