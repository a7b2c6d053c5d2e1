"""What a dictionary recovers of a world, on dictionaries set by hand."""

from typing import Any

import pytest
import torch

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.toy.recovery import Dictionary, dictionary_of, recovery
from modeldiff.toy.world import A_ONLY, B_ONLY, SHARED, World, WorldSpec

EVERYTHING = {"shared": 1.0, "A": 1.0, "B": 1.0}
NOTHING = {"shared": 0.0, "A": 0.0, "B": 0.0}
# 200 concepts, 10 of them in A alone (numbers 0 to 9), 10 in B alone (10 to 19), the others shared.
OWN_A, OWN_B, FIRST_SHARED = 0, 10, 20


def world(**values: Any) -> World:
    return World.drawn(
        WorldSpec(**{"concepts": 200, "width_a": 64, "width_b": 64, "exclusive_ratio": 0.1, **values}), 0
    )


def dictionary(features: list[tuple[int, torch.Tensor | None, torch.Tensor | None]]) -> Dictionary:
    """Features as (class, decoder in A, decoder in B), all alive."""
    zeros = torch.zeros(64)
    return Dictionary(
        {
            "a": torch.stack([zeros if a is None else a for _, a, _ in features]),
            "b": torch.stack([zeros if b is None else b for _, _, b in features]),
        },
        torch.tensor([number for number, _, _ in features]),
        torch.ones(len(features), dtype=torch.bool),
    )


def truth(made: World) -> Dictionary:
    alive_F = torch.ones(len(made.classes_C), dtype=torch.bool)
    return Dictionary({side: rows.clone() for side, rows in made.directions.items()}, made.classes_C.clone(), alive_F)


def tilted(direction: torch.Tensor, cosine: float) -> torch.Tensor:
    """A vector of norm 3 that has this cosine with the direction."""
    unit = direction / direction.norm()
    other = torch.randn(len(unit), generator=torch.Generator().manual_seed(99))
    other -= other @ unit * unit
    return 3 * (cosine * unit + (1 - cosine**2) ** 0.5 * other / other.norm())


@pytest.mark.parametrize(("name", "width_b"), [("gaussian", 64), ("rotation", 64), ("independent", 48)])
def test_the_truth_recovers_everything_and_has_no_false_positive(name: str, width_b: int) -> None:
    made = world(map=name, width_b=width_b)
    found = recovery(made, truth(made))
    assert found.recall(made) == {"any": EVERYTHING, "right": EVERYTHING}
    for side in ("A", "B"):
        assert found.exclusive[side] == {"features": 10, "true": 10, "shared": 0, "nothing": 0, "dead": 0}
    none = world(map=name, width_b=width_b, exclusive_ratio=0.0)
    assert recovery(none, truth(none)).recall(none)["right"] == {"shared": 1.0, "A": None, "B": None}


def test_exclusive_features_on_shared_concepts_are_false_positives() -> None:
    made = world()
    a, b = made.directions["a"], made.directions["b"]
    found = recovery(
        made,
        dictionary(
            [
                (A_ONLY, a[FIRST_SHARED], None),
                (A_ONLY, a[FIRST_SHARED + 1], None),
                (A_ONLY, a[OWN_A], None),
                (B_ONLY, None, b[FIRST_SHARED]),
            ]
        ),
    )
    assert found.exclusive["A"] == {"features": 3, "true": 1, "shared": 2, "nothing": 0, "dead": 0}
    assert found.exclusive["B"] == {"features": 1, "true": 0, "shared": 1, "nothing": 0, "dead": 0}
    # Recovered, twice from one side, but not by a feature that both models have.
    assert found.any_C.nonzero()[:, 0].tolist() == [OWN_A, FIRST_SHARED, FIRST_SHARED + 1]
    assert found.right_C.nonzero()[:, 0].tolist() == [OWN_A]


def test_a_shared_concept_is_right_only_if_one_feature_recovers_it_in_both_models() -> None:
    made = world()
    a, b = made.directions["a"], made.directions["b"]
    one, other = FIRST_SHARED, FIRST_SHARED + 1
    split = recovery(made, dictionary([(SHARED, a[one], b[other]), (SHARED, a[other], b[one])]))
    assert split.any_C[[one, other]].all()
    assert not split.right_C.any()
    joint = recovery(made, dictionary([(SHARED, a[one], b[one])]))
    assert joint.right_C.nonzero()[:, 0].tolist() == [one]


def test_dead_features_recover_nothing_and_are_counted_apart() -> None:
    made = world()
    whole = truth(made)
    alive_F = whole.alive_F.clone()
    alive_F[[OWN_A, OWN_A + 1, OWN_B, FIRST_SHARED]] = False
    found = recovery(made, Dictionary(whole.decoders, whole.classes_F, alive_F))
    assert found.exclusive["A"] == {"features": 8, "true": 8, "shared": 0, "nothing": 0, "dead": 2}
    assert found.exclusive["B"] == {"features": 9, "true": 9, "shared": 0, "nothing": 0, "dead": 1}
    assert found.recall(made)["right"] == pytest.approx({"shared": 179 / 180, "A": 0.8, "B": 0.9})


@pytest.mark.parametrize(("cosine", "recovered"), [(0.81, True), (0.79, False), (-1.0, False)])
def test_a_cosine_above_four_fifths_recovers(cosine: float, recovered: bool) -> None:
    made = world()
    found = recovery(made, dictionary([(A_ONLY, tilted(made.directions["a"][OWN_A], cosine), None)]))
    assert bool(found.any_C[OWN_A]) == bool(found.right_C[OWN_A]) == recovered
    assert found.exclusive["A"]["true"] == int(recovered)
    assert found.exclusive["A"]["nothing"] == int(not recovered)


def test_features_of_a_standard_crosscoder_are_classed_by_relative_norm() -> None:
    made = world()
    direction = {side: made.directions[side][FIRST_SHARED] for side in ("a", "b")}
    crosscoder = Crosscoder(CrosscoderConfig(width_a=64, width_b=64, n_a_only=0, n_shared=5, n_b_only=0, k=1))
    relative_F = torch.tensor([0.9, 0.81, 0.5, 0.19, 0.1])
    with torch.no_grad():
        for side, weights, norm_F in (("a", crosscoder.w_dec_a, relative_F), ("b", crosscoder.w_dec_b, 1 - relative_F)):
            weights.copy_(norm_F[:, None] * direction[side] / direction[side].norm())
    found = dictionary_of(crosscoder, torch.ones(5, dtype=torch.bool))
    assert found.classes_F.tolist() == [A_ONLY, A_ONLY, SHARED, B_ONLY, B_ONLY]
    measured = recovery(made, found)
    assert [measured.exclusive[side]["shared"] for side in ("A", "B")] == [2, 2]
    assert measured.right_C.nonzero()[:, 0].tolist() == [FIRST_SHARED]
