"""Fields are checked by their types and bounds, and records come back from JSON as they went."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest

from modeldiff.errors import DamagedError, InputError
from modeldiff.records import bounded, check, from_json, to_json


@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    sizes: tuple[int, ...] = bounded(default=(), least=1)


@dataclasses.dataclass(frozen=True)
class Whole:
    side: Literal["A", "B"]
    parts: list[Part]
    by_side: dict[str, Part]
    share: float | None = bounded(default=None, above=0, most=1)
    where: Path | None = None


WHOLE = Whole("A", [Part("x", (1, 2))], {"b": Part("y")}, 0.5, Path("here"))


def test_a_record_comes_back_equal():
    data = json.loads(json.dumps(to_json(WHOLE)))
    assert from_json(Whole, data, "whole.json") == WHOLE


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"side": "C"}, "whole.json: 'side' expects A or B, found 'C'"),
        ({"share": 2}, "whole.json: 'share' must be above 0 and at most 1, found 2"),
        ({"share": True}, "whole.json: 'share' must be a number, found True"),
        ({"share": float("nan")}, "'share' must be above 0 and at most 1, found nan"),
        ({"parts": "x"}, "'parts' must be a list, found 'x'"),
        ({"parts": [{"name": "x", "sizes": [0]}]}, "'parts': 'sizes' must be at least 1, found 0"),
        ({"parts": [{"name": "x"}]}, "'parts': field 'sizes' is missing; it was written by another version"),
        ({"parts": [3]}, "'parts' must be a table of names and values, found 3"),
        ({"by_side": {"b": {"name": 3, "sizes": []}}}, "'by_side', 'b': 'name' must be a text, found 3"),
        ({"more": 1}, "whole.json: field 'more' is unknown"),
    ],
)
def test_what_does_not_fit_is_named(changed, message):
    data = to_json(WHOLE) | changed
    with pytest.raises(DamagedError) as error:
        from_json(Whole, data, "whole.json")
    assert message in str(error.value)


def test_a_frozen_dataclass_checks_itself_and_takes_lists_and_texts():
    @dataclasses.dataclass(frozen=True)
    class Checked:
        files: tuple[Path, ...]
        betas: tuple[float, float] = bounded(default=(0.9, 0.999), least=0, below=1)

        def __post_init__(self):
            check(self, lambda field: f"--{field.name}")

    assert Checked(["a", Path("b")]).files == (Path("a"), Path("b"))
    with pytest.raises(InputError, match="--betas must be 2 values, found 1"):
        Checked((), (0.5,))
    with pytest.raises(InputError, match="--betas must be at least 0 and below 1, found 1"):
        Checked((), (0.5, 1.0))
