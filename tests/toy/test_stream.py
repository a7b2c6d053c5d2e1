"""Streams of pairs: who is active how often, and what activations are made of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from modeldiff.toy.stream import Active, ConceptStream
from modeldiff.toy.world import A_ONLY, B_ONLY, World, WorldSpec


def world(seed: int = 0, **values: Any) -> World:
    return World.drawn(WorldSpec(**{"concepts": 50, "width_a": 16, "width_b": 16, **values}), seed)


def fix_probabilities(monkeypatch: pytest.MonkeyPatch, p_C: torch.Tensor) -> None:
    monkeypatch.setattr(World, "probabilities", lambda *_: p_C)


def dense(active: Active, batch: int, concepts: int) -> torch.Tensor:
    """(B, C) strengths."""
    strength_BC = torch.zeros(batch, concepts)
    strength_BC[active.pairs_N, active.concepts_N] = active.strengths_N
    return strength_BC


def test_each_concept_is_active_as_often_as_its_probability_says(monkeypatch: pytest.MonkeyPatch) -> None:
    p_C = torch.tensor([0.5, 0.3, 0.1, 0.02, 0.005, 1e-4])
    fix_probabilities(monkeypatch, p_C)
    batch = 100_000
    active = ConceptStream(world(concepts=6), batch=batch, seed=0).draw()
    # Pairs in which nothing is active are drawn again: probabilities given that something is.
    expected_C = p_C / (1 - (1 - p_C).prod())
    found_C = torch.bincount(active.concepts_N, minlength=6) / batch
    error_C = (expected_C * (1 - expected_C) / batch).sqrt()
    assert ((found_C - expected_C).abs() < 4.5 * error_C).all()


def test_concepts_are_independent_given_their_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    p_C = torch.full((6,), 0.4)
    fix_probabilities(monkeypatch, p_C)
    batch = 50_000
    active_BC = dense(ConceptStream(world(concepts=6), batch=batch, seed=0).draw(), batch, 6) > 0
    both_CC = active_BC.double().T @ active_BC.double() / batch
    expected = 0.16 / (1 - 0.6**6)
    off_diagonal = both_CC[~torch.eye(6, dtype=torch.bool)]
    assert ((off_diagonal - expected).abs() < 4.5 * (expected / batch) ** 0.5).all()


def test_the_mean_number_of_active_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    """k_target / (1 - P(nothing is active)), with the probabilities of the same draws."""
    drawn = World.probabilities
    seen: list[torch.Tensor] = []

    def noted(self: World, random: torch.Generator) -> torch.Tensor:
        seen.append(drawn(self, random))
        return seen[-1]

    monkeypatch.setattr(World, "probabilities", noted)
    batch = 2000
    stream = ConceptStream(world(k_target=1.5, min_probability=1e-9), batch=batch, seed=0)
    counts = torch.tensor([len(stream.draw().pairs_N) / batch for _ in range(40)])
    expected = torch.tensor([1.5 / float(1 - (1 - p_C).prod()) for p_C in seen])
    difference = counts - expected
    # The number of active concepts of a pair varies by less than a Poisson's.
    assert abs(float(difference.mean())) < 4 * (1.5 / (40 * batch)) ** 0.5


@pytest.mark.parametrize("k_target", [0.5, 5.0])
def test_no_pair_is_without_a_concept_and_none_has_one_twice(k_target: float) -> None:
    active = ConceptStream(world(k_target=k_target), batch=3000, seed=0).draw()
    assert (torch.bincount(active.pairs_N, minlength=3000) > 0).all()
    places = active.pairs_N * 50 + active.concepts_N
    assert (places.diff() > 0).all()


def test_every_concept_can_be_active_in_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_probabilities(monkeypatch, torch.ones(50))
    active = ConceptStream(world(), batch=20, seed=0).draw()
    assert torch.equal(active.pairs_N * 50 + active.concepts_N, torch.arange(20 * 50))


def test_strengths_are_uniform() -> None:
    strengths = ConceptStream(world(), batch=20_000, seed=0).draw().strengths_N
    assert float(strengths.min()) >= 0
    assert float(strengths.max()) < 1
    assert float(strengths.mean()) == pytest.approx(1 / 2, abs=4 * (1 / 12 / len(strengths)) ** 0.5)
    assert float(strengths.var()) == pytest.approx(1 / 12, rel=0.02)


def test_concepts_are_active_together_across_batches_as_their_probabilities_covary() -> None:
    sign_C = torch.ones(20)
    sign_C[10:] = -1
    made = world(concepts=20, decay=0.0, k_target=4.0, min_probability=1e-9)
    made = dataclasses.replace(made, loadings_CR=1.5 * sign_C[:, None])
    stream = ConceptStream(made, batch=50, seed=0)
    found = torch.stack([torch.bincount(stream.draw().concepts_N, minlength=20) / 50 for _ in range(400)])
    random = torch.Generator().manual_seed(5)
    expected = torch.stack([made.probabilities(random) for _ in range(2000)])
    same_CC = (torch.outer(sign_C, sign_C) > 0) & ~torch.eye(20, dtype=torch.bool)
    opposite_CC = torch.outer(sign_C, sign_C) < 0
    for pairs_CC, sign in ((same_CC, 1), (opposite_CC, -1)):
        covariance = float(torch.cov(expected.T)[pairs_CC].mean())
        assert sign * covariance > 0.005
        assert float(torch.cov(found.T)[pairs_CC].mean()) == pytest.approx(covariance, rel=0.2)


@pytest.mark.parametrize("name", ["gaussian", "independent"])
def test_activations_are_the_sum_of_strength_times_direction(name: str) -> None:
    made = world(width_b=24, noise=0.0, map=name)
    stream = ConceptStream(made, batch=100, seed=0)
    active = stream.draw()
    x_a, x_b = stream.activations(active)
    strength_BC = dense(active, 100, 50)
    assert (x_a.shape, x_b.shape) == ((100, 16), (100, 24))
    assert x_a.dtype == x_b.dtype == torch.float32
    torch.testing.assert_close(x_a, strength_BC @ made.directions["a"])
    torch.testing.assert_close(x_b, strength_BC @ made.directions["b"])


def test_what_only_one_model_has_leaves_the_other_as_it_is() -> None:
    made = world(exclusive_ratio=1.0, noise=0.0)
    stream = ConceptStream(made, batch=300, seed=0)
    active = stream.draw()
    x_a, x_b = stream.activations(active)
    has_BC = dense(active, 300, 50) > 0
    assert (x_a[~has_BC[:, made.classes_C == A_ONLY].any(dim=1)] == 0).all()
    assert (x_b[~has_BC[:, made.classes_C == B_ONLY].any(dim=1)] == 0).all()
    assert (x_a != 0).any()


def test_noise_is_of_the_level_asked_for_and_independent_between_models() -> None:
    made = world(noise=0.3)
    stream = ConceptStream(made, batch=20_000, seed=0)
    active = stream.draw()
    strength_BC = dense(active, 20_000, 50)
    noise = [x - strength_BC @ made.directions[side] for side, x in zip("ab", stream.activations(active), strict=True)]
    for one in noise:
        assert float(one.mean()) == pytest.approx(0, abs=4 * 0.3 / one.numel() ** 0.5)
        assert float(one.std()) == pytest.approx(0.3, rel=0.01)
    assert float((noise[0] * noise[1]).mean()) == pytest.approx(0, abs=4 * 0.09 / noise[0].numel() ** 0.5)


def test_seed_and_part_decide_every_bit() -> None:
    made = world()

    def batches(seed: int, part: int) -> list[torch.Tensor]:
        stream = ConceptStream(made, batch=40, seed=seed, part=part)
        return [x for _ in range(3) for x in stream.next()]

    first = batches(0, 0)
    assert all(torch.equal(x, y) for x, y in zip(first, batches(0, 0), strict=True))
    for seed, part in ((0, 1), (1, 0), (1, 1)):
        assert not any(torch.equal(x, y) for x, y in zip(first, batches(seed, part), strict=True))
    assert not torch.equal(first[0], first[2])
