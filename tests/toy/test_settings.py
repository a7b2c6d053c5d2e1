"""Presets fill in what is left out, and nonsense is refused before anything runs."""

import dataclasses
import subprocess
import sys
import typing
from typing import Any

import pytest

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.errors import InputError
from modeldiff.toy.settings import COMBINES, PRESETS, SELECTIONS, ToySettings
from modeldiff.toy.world import WorldSpec


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_leaves_nothing_out(preset: Any) -> None:
    filled = ToySettings(preset=preset).filled()
    left_out = {field.name for field in dataclasses.fields(filled) if getattr(filled, field.name) in (None, ())}
    assert left_out == {"lr", "jobs"}  # derived by the training and from the machine
    assert filled.filled() == filled


def test_the_paper_preset_has_the_papers_numbers() -> None:
    paper = ToySettings(preset="paper").filled()
    assert (paper.concepts, paper.width_a, paper.width_b, paper.k_target, paper.seeds) == (2048, 256, 256, 20.48, 5)
    assert paper.steps is not None
    assert paper.batch is not None
    assert paper.steps * paper.batch == 800_000_000
    assert len(paper.sizes) == 12


def test_laptop_is_the_paper_divided_by_eight() -> None:
    paper, laptop = (ToySettings(preset=name).filled() for name in ("paper", "laptop"))
    for name in ("concepts", "width_a", "width_b", "k_target"):
        assert getattr(paper, name) == 8 * getattr(laptop, name)


def test_what_no_preset_decides_has_the_worlds_default() -> None:
    of_world = {field.name: field.default for field in dataclasses.fields(WorldSpec)}
    settings = ToySettings()
    for name in ("exclusive_ratio", "correlation_rank", "translation", "noise", "min_probability"):
        assert getattr(settings, name) == of_world[name]


def test_the_choices_are_those_of_train() -> None:
    hints = typing.get_type_hints(TrainSettings)
    assert set(SELECTIONS) == set(typing.get_args(hints["selection"]))
    assert set(COMBINES) == set(typing.get_args(hints["combine"]))


def test_a_given_value_beats_the_presets() -> None:
    filled = ToySettings(preset="quick", sizes=(0.7,), seeds=3).filled()
    assert (filled.sizes, filled.seeds, filled.concepts) == ((0.7,), 3, 64)
    assert ToySettings(preset="quick", k_target=3.4).filled().k == 3
    assert ToySettings(preset="quick", k_target=0.2).filled().k == 1


def test_the_same_values_are_the_same_benchmark_whoever_chose_them() -> None:
    by_hand = ToySettings(preset="paper", k=2, jobs=7, **PRESETS["quick"])
    assert by_hand.filled().result_json() == ToySettings(preset="quick").filled().result_json()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "--seeds must be at least 1, found 0"),
        ({"jobs": 0}, "--jobs must be at least 1"),
        ({"sizes": (0.5, -0.1)}, r"--sizes must be above 0, found -0\.1"),
        ({"sizes": (0.5, 0.5)}, r"--sizes has a value twice: 0\.5, 0\.5"),
        ({"selection": ("best",)}, "--selection expects activation, l2, sum or mean, found 'best'"),
        ({"combine": ("max",)}, "--combine expects mean or sum, found 'max'"),
        ({"tables": ("all",)}, "--tables expects sizes, dial, selection or self-diff, found 'all'"),
    ],
)
def test_senseless_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ToySettings(**values)


def test_the_settings_load_nothing_heavy() -> None:
    code = "import sys, modeldiff.toy.settings, modeldiff.cli.toy; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
