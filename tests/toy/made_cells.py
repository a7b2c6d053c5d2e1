"""Made-up results of cells: plausible, a function of the cell alone, and there at once."""

import random
from typing import Any

from modeldiff.errors import InputError
from modeldiff.toy.cell import CellSpec
from modeldiff.toy.settings import ToySettings

# How much of what the slots allow an architecture finds at its best, and of its exclusive features, how many recover a
# shared concept and how many nothing.
_SKILL = {
    "standard": (0.05, 0.2, 0.1),
    "dsf-vectors": (0.1, 0.3, 0.1),
    "dsf-norms": (0.15, 0.3, 0.1),
    "dfc": (0.4, 0.5, 0.1),
    "dfc-audited": (0.9, 0.1, 0.1),
    "stitch-residual": (0.95, 0.0, 0.5),
}
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
    size, own = features / world.concepts, world.n_exclusive
    slots = round(cell.train["exclusive"] * features) if cell.architecture.startswith("dfc") else 0
    limit = (min(1.0, slots / own) if slots else 1.0) if own else None
    skill, shared, nothing = _SKILL[cell.architecture]
    stitch = _STITCH.get(world.map) or _STITCH["independent"] + 0.74 * float(world.map.partition(":")[2])
    best = None if limit is None else max(0.0, min(limit, limit * skill * (0.5 + size / 2) + noise.gauss(0, 0.03)))
    recall = {"shared": min(0.99, size * 0.8), "A": best, "B": best}
    counts = _counts(slots or round(features * 0.02) + own, shared, nothing)
    fve = min(0.98, 0.5 + 0.3 * size**0.5) + noise.gauss(0, 0.005)
    return {
        "recall": {"any": recall, "right": recall},
        "exclusive": {"A": counts | {"dead": 1}, "B": counts | {"dead": 0}},
        "fve": {"a": fve, "b": fve - 0.01},
        "fve_shared": {"a": fve - 0.02, "b": fve - 0.02},
        "gain_exclusive": {"a": 0.02, "b": 0.02},
        "l0": {"A": 0.2, "shared": 4.0, "B": 0.2},
        "dead": {"A": 1, "shared": 2, "B": 0},
        "limit": limit,
        "curve": [{"step": step, "pairs": 64 * step, "any": recall, "right": recall} for step in (1, 2)],
        "stitch": {"a_to_b": stitch - 0.02, "b_to_a": stitch + 0.02},
        "verdict": {
            side: {"called": counts["true"], "true": counts["true"], "shared": 0, "nothing": 0} for side in ("A", "B")
        },
    }


def failing_cell(cell: CellSpec) -> dict[str, Any]:
    """Fails on seed 1, as a training that diverges does."""
    if cell.seed == 1:
        raise InputError("the training diverged at step 7: use a smaller --lr")
    return made_cell(cell)


def _counts(features: int, shared: float, nothing: float) -> dict[str, int]:
    of_shared, of_nothing = round(features * shared), round(features * nothing)
    return {
        "features": features,
        "true": features - of_shared - of_nothing,
        "shared": of_shared,
        "nothing": of_nothing,
    }
