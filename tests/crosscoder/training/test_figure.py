"""The picture of a run: the same lines give the same bytes, whatever partitions and audits there are."""

from __future__ import annotations

from typing import Any

import pytest

from modeldiff.crosscoder.training.figure import training_figure


def line(step: int, exclusive: int, *, audit: bool = False) -> dict[str, Any]:
    return {
        "step": step,
        "reconstruction": 3.0 / (step + 1),
        "auxk": 0.1 if step % 2 else None,
        "k": 4.0,
        "fve": {"a": 0.5, "b": 0.6},
        "fve_shared": {"a": 0.4, "b": 0.5},
        "features": {"A": exclusive, "shared": 20 - 2 * exclusive, "B": exclusive},
        "l0": {"A": 0.1 * exclusive, "shared": 3.0, "B": 0.1 * exclusive},
        "slots": {"A": 0.02 * exclusive, "shared": 0.9, "B": 0.02 * exclusive},
        "dead": {"A": 0, "shared": 3, "B": 0},
        "audit": {"A": {}, "B": {}} if audit else None,
    }


@pytest.mark.parametrize("sizes", [[0, 0, 0], [3, 3, 3], [2, 0, 0]], ids=["standard", "plain", "emptied"])
def test_the_same_lines_give_the_same_picture_and_audits_show_in_it(sizes: list[int]) -> None:
    lines = [line(step, size, audit=step == 0) for step, size in enumerate(sizes)]
    drawn = training_figure(lines, "title")
    assert drawn[:4] == b"\x89PNG"
    assert training_figure(lines, "title") == drawn
    assert training_figure([{**one, "audit": None} for one in lines], "title") != drawn
