"""The pictures: made whenever their cells are there, and the same bytes for the same cells."""

from typing import Any

from modeldiff.toy.cell import ARCHITECTURES
from modeldiff.toy.figures import COLOURS, draw_figures
from modeldiff.toy.summary import summary
from tests.toy.test_summary import made_records


def drawn(**values: Any) -> dict[str, bytes]:
    cells = made_records(**values)
    return draw_figures(cells, summary(cells))


def test_the_same_cells_give_the_same_bytes() -> None:
    values: dict[str, Any] = {"tables": ("sizes", "dial"), "seeds": 2, "snapshots": 2}
    first = drawn(**values)
    assert first.keys() == {"sizes", "training", "frequency", "dial"}
    assert first == drawn(**values)
    assert all(image.startswith(b"\x89PNG") for image in first.values())


def test_every_architecture_has_a_colour_of_its_own() -> None:
    assert set(COLOURS) == set(ARCHITECTURES)
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_only_what_the_cells_allow_is_drawn() -> None:
    assert drawn(tables=("self-diff",)) == {}
    assert drawn(map=("rotation",), exclusive_ratio=0.0) == {}
    assert drawn(tables=("dial",)).keys() == {"dial"}
    assert drawn(architectures=("dfc",), sizes=(0.5,)).keys() == {"sizes", "training", "frequency"}
