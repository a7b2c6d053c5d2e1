"""Made-up results of cells: plausible, a function of the cell alone, and there at once."""

import random
from typing import Any

from modeldiff.errors import InputError
from modeldiff.toy.cell import CellSpec
from modeldiff.toy.settings import ToySettings

_STITCH = {"gaussian": 0.9, "rotation": 1.0, "independent": 0.16}


def tiny(**changed: Any) -> ToySettings:
    """Settings of four cells that would take no time even if they were computed."""
    values: dict[str, Any] = {
        "preset": "quick",
        "sizes": (0.5, 1.0),
        "architectures": ("standard", "dfc"),
        "seeds": 1,
        "steps": 2,
        "batch": 64,
        "jobs": 1,
        "device": "cpu",
    }
    return ToySettings(**(values | changed))


def made_cell(cell: CellSpec) -> dict[str, Any]:
    """What `run_cell` returns, made up."""
    world, features = cell.world, cell.train["features"]
    noise = random.Random(f"{cell.seed} {cell.architecture} {features} {world.map}")
    limit = 0.5 + noise.random() / 2 if world.n_exclusive else None
    recall = {"shared": noise.random(), **dict.fromkeys("AB", limit and limit * noise.random())}
    stitch = _STITCH.get(world.map) or _STITCH["independent"] + 0.74 * float(world.map.partition(":")[2])
    counts = {"features": 6, "true": 3, "shared": 2, "nothing": 1, "dead": 1}
    fve = noise.random()
    return {
        "recall": {"any": recall, "right": recall},
        "exclusive": {"A": counts, "B": counts | {"dead": 0}},
        "fve": {"a": fve, "b": fve - 0.01},
        "fve_shared": {"a": fve - 0.02, "b": fve - 0.02},
        "gain_exclusive": {"a": 0.02, "b": 0.02},
        "l0": {"A": 0.2, "shared": 4.0, "B": 0.2},
        "dead": {"A": 1, "shared": 2, "B": 0},
        "limit": limit,
        "curve": [{"step": step, "pairs": 64 * step, "any": recall, "right": recall} for step in (1, 2)],
        "stitch": {"a_to_b": stitch - 0.02, "b_to_a": stitch + 0.02},
        "verdict": {side: {"called": 4, "true": 3, "shared": 1, "nothing": 0} for side in "AB"},
    }


def failing_cell(cell: CellSpec) -> dict[str, Any]:
    """Fails on seed 1, as a training that diverges does."""
    if cell.seed == 1:
        raise InputError("the training diverged at step 7: use a smaller --lr")
    return made_cell(cell)
