"""Worlds against the closed forms of their definition, and the pairs drawn from them."""

import dataclasses
from typing import Any

import pytest
import torch

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.units import Measured
from modeldiff.sides import SIDES
from modeldiff.toy.recovery import dictionary_of, recovery
from modeldiff.toy.world import A_ONLY, B_ONLY, SHARED, Active, ConceptStream, World, WorldSpec, map_share

MAPS = ("gaussian", "rotation", "independent", "mixed:0.4")


def spec(**values: Any) -> WorldSpec:
    return WorldSpec(**{"concepts": 200, "width_a": 32, "width_b": 32, **values})


def world(seed: int = 0, **values: Any) -> World:
    return World.drawn(spec(**values), seed)


@pytest.mark.parametrize(("ratio", "own"), [(0.05, 5), (0.0, 0), (0.1, 10), (1.0, 100)])
def test_each_model_has_half_of_the_exclusive_concepts(ratio: float, own: int) -> None:
    made = world(exclusive_ratio=ratio)
    counts = torch.bincount(made.classes_C, minlength=3)
    assert made.spec.n_exclusive == own
    assert counts[[SHARED, A_ONLY, B_ONLY]].tolist() == [200 - 2 * own, own, own]


@pytest.mark.parametrize("name", MAPS)
def test_a_model_has_directions_for_its_concepts_only(name: str) -> None:
    made = world(map=name)
    norms = {side: rows.norm(dim=1) for side, rows in made.directions.items()}
    for side, other in (("a", B_ONLY), ("b", A_ONLY)):
        assert (norms[side][made.classes_C == other] == 0).all()
        assert (norms[side][made.classes_C != other] > 0.1).all()
    everywhere = world(exclusive_ratio=0.0, map=name).directions["b"].norm(dim=1)
    assert float(everywhere.median()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(norms["a"][made.classes_C != B_ONLY], torch.ones(195))


@pytest.mark.parametrize("width_b", [32, 48])
def test_a_rotation_keeps_every_inner_product(width_b: int) -> None:
    made = world(exclusive_ratio=0.0, map="rotation", width_b=width_b)
    grams = [rows @ rows.T for rows in made.directions.values()]
    torch.testing.assert_close(grams[0], grams[1], rtol=0, atol=2e-6)
    torch.testing.assert_close(made.directions["a"].norm(dim=1), made.directions["b"].norm(dim=1))


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
    crosscoder = Crosscoder.initialised(config, dict.fromkeys(SIDES, Measured(torch.zeros(32), 1.0)), seed=seed)
    dictionary = dictionary_of(crosscoder, torch.ones(200, dtype=torch.bool))
    assert recovery(made, dictionary).recall(made)["any"] == {"shared": 0.0, "A": 0.0, "B": 0.0}


def draws(made: World, number: int) -> torch.Tensor:
    """(number, C) probabilities."""
    random = torch.Generator().manual_seed(1)
    return torch.stack([made.probabilities(random) for _ in range(number)])


def test_probabilities_keep_their_bounds_and_decay_with_rank_in_expectation() -> None:
    assert float(draws(world(k_target=4.0, min_probability=0.02), 20).min()) == pytest.approx(0.02)
    assert float(draws(world(k_target=190.0), 20).max()) == 1
    made = world(concepts=40, decay=0.05, correlation_rank=0, k_target=2.0, min_probability=1e-9)
    mean_C = draws(made, 4000).mean(dim=0)
    assert float(mean_C.sum()) == pytest.approx(2)
    # The sigmoid of a standard normal varies by 0.42 of its mean: a standard error of 0.7 % per concept.
    torch.testing.assert_close(mean_C / mean_C.sum(), made.decay_C / made.decay_C.sum(), rtol=0.04, atol=0)


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


def small(**values: Any) -> World:
    return World.drawn(WorldSpec(**{"concepts": 50, "width_a": 16, "width_b": 16, **values}), 0)


def dense(active: Active, batch: int, concepts: int) -> torch.Tensor:
    """(B, C) strengths."""
    strength_BC = torch.zeros(batch, concepts)
    strength_BC[active.pairs_N, active.concepts_N] = active.strengths_N
    return strength_BC


def test_each_concept_is_active_as_often_as_its_probability_says(monkeypatch: pytest.MonkeyPatch) -> None:
    p_C = torch.tensor([0.5, 0.3, 0.1, 0.02, 0.005, 1e-4])
    monkeypatch.setattr(World, "probabilities", lambda *_: p_C)
    batch = 100_000
    active = ConceptStream(small(concepts=6), batch=batch, seed=0).draw()
    # Pairs in which nothing is active are drawn again: probabilities given that something is.
    expected_C = p_C / (1 - (1 - p_C).prod())
    found_C = torch.bincount(active.concepts_N, minlength=6) / batch
    error_C = (expected_C * (1 - expected_C) / batch).sqrt()
    assert ((found_C - expected_C).abs() < 4.5 * error_C).all()


@pytest.mark.parametrize("k_target", [0.5, 5.0])
def test_no_pair_is_without_a_concept_and_none_has_one_twice(k_target: float) -> None:
    active = ConceptStream(small(k_target=k_target), batch=3000, seed=0).draw()
    assert (torch.bincount(active.pairs_N, minlength=3000) > 0).all()
    places = active.pairs_N * 50 + active.concepts_N
    assert (places.diff() > 0).all()


@pytest.mark.parametrize("name", ["gaussian", "independent"])
def test_activations_are_the_sum_of_strength_times_direction(name: str) -> None:
    made = small(width_b=24, noise=0.0, map=name)
    stream = ConceptStream(made, batch=100, seed=0)
    active = stream.draw()
    x_a, x_b = stream.activations(active)
    strength_BC = dense(active, 100, 50)
    assert (x_a.shape, x_b.shape) == ((100, 16), (100, 24))
    assert x_a.dtype == x_b.dtype == torch.float32
    torch.testing.assert_close(x_a, strength_BC @ made.directions["a"])
    torch.testing.assert_close(x_b, strength_BC @ made.directions["b"])


def test_noise_is_of_the_level_asked_for_and_independent_between_models() -> None:
    made = small(noise=0.3)
    stream = ConceptStream(made, batch=20_000, seed=0)
    active = stream.draw()
    strength_BC = dense(active, 20_000, 50)
    noise = [x - strength_BC @ made.directions[side] for side, x in zip("ab", stream.activations(active), strict=True)]
    for one in noise:
        assert float(one.mean()) == pytest.approx(0, abs=4 * 0.3 / one.numel() ** 0.5)
        assert float(one.std()) == pytest.approx(0.3, rel=0.01)
    assert float((noise[0] * noise[1]).mean()) == pytest.approx(0, abs=4 * 0.09 / noise[0].numel() ** 0.5)


def test_seed_and_part_decide_every_bit() -> None:
    made = small()

    def batches(seed: int, part: int) -> list[torch.Tensor]:
        stream = ConceptStream(made, batch=40, seed=seed, part=part)
        return [x for _ in range(3) for x in stream.next()]

    first = batches(0, 0)
    assert all(torch.equal(x, y) for x, y in zip(first, batches(0, 0), strict=True))
    for seed, part in ((0, 1), (1, 0), (1, 1)):
        assert not any(torch.equal(x, y) for x, y in zip(first, batches(seed, part), strict=True))
    assert not torch.equal(first[0], first[2])
