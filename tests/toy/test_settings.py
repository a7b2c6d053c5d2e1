"""Presets fill in what is left out, and nonsense is refused before anything runs."""

import dataclasses
from typing import Any

import pytest

from modeldiff.errors import InputError
from modeldiff.toy.settings import PRESETS, ToySettings


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_leaves_nothing_out(preset: Any) -> None:
    filled = ToySettings(preset=preset).filled()
    left_out = {field.name for field in dataclasses.fields(filled) if getattr(filled, field.name) in (None, ())}
    assert left_out == {"lr", "jobs"}  # derived by the training and from the machine
    assert filled.filled() == filled
    by_hand = ToySettings(preset="paper", k=filled.k, jobs=7, **PRESETS[preset])
    assert by_hand.filled().result_json() == filled.result_json(), "whoever chose the values"
    given = ToySettings(preset=preset, sizes=(0.7,), k_target=0.2).filled()
    assert (given.sizes, given.k, given.concepts) == ((0.7,), 1, filled.concepts)


def test_the_paper_preset_has_the_papers_numbers_and_laptop_an_eighth_of_them() -> None:
    paper, laptop = (ToySettings(preset=name).filled() for name in ("paper", "laptop"))
    assert (paper.concepts, paper.width_a, paper.width_b, paper.k_target, paper.seeds) == (2048, 256, 256, 20.48, 5)
    assert (paper.steps or 0) * (paper.batch or 0) == 800_000_000
    assert len(paper.sizes) == 12
    for name in ("concepts", "width_a", "width_b", "k_target"):
        assert getattr(paper, name) == 8 * getattr(laptop, name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "--seeds must be at least 1, found 0"),
        ({"sizes": (0.5, -0.1)}, r"--sizes must be above 0, found -0\.1"),
        ({"architectures": ("dfc", "best")}, "--architectures expects standard, .*found 'best'"),
        ({"exclusive_ratio": 1.2}, "--exclusive-ratio must be at least 0 and at most 1, found 1.2"),
    ],
)
def test_senseless_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ToySettings(**values)
