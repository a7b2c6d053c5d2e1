"""Where a feature is represented, as a features artifact measured it: in one model alone, or in both.

Legend: F features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from modeldiff.crosscoder import Crosscoder
from modeldiff.linear.verdict import MOSTLY_DIFFER, Scale, verdicts
from modeldiff.sides import OTHER, SIDES
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json

# As the features stage names its files (features/run.py).
_INFO, _STATISTICS, _TWINS = "features.json", "statistics.safetensors", "twins.safetensors"
_WHERE = {
    "exclusive": "in {owner}; no linear analogue found in {other}",
    "predictable": "in both models, used differently",
    "undecided": "in {owner}; in {other} less than is usual for shared features",
    "unknown": "not readable from either model's activations",
    None: "not measured",
}


class Represented:
    """The measured features of a crosscoder.

    Raises:
        DamagedError: a file of the artifact is missing or damaged.
    """

    def __init__(self, features: Artifact, crosscoder: Crosscoder) -> None:
        self._crosscoder = crosscoder
        self._scales = read_json(features.file(_INFO))["scales"]
        self._arrays = load_file(features.file(_STATISTICS))
        self._twins = load_file(features.file(_TWINS))

    @property
    def mostly_differ_F(self) -> NDArray[np.bool_]:
        """(F,) features whose top examples are mostly places where the two models read different tokens."""
        shares = self._arrays.get("tokens_differ", np.full(self._crosscoder.n_features, np.nan))
        return shares > MOSTLY_DIFFER  # False where NaN

    def of(self, feature: int) -> dict[str, Any]:
        """partition; r2_a, r2_b: held-out share of its activation that is read from either model (null: not measured);
        owner: the model that explains more of it; verdict: on what the other model explains (linear/verdict.py); twin:
        the feature of another partition that fires most alike; where: all of it in words."""
        partition = self._crosscoder.partition_of(feature)
        r2 = {side: self._number(f"r2_{side}", feature) for side in SIDES}
        a_owns = partition == "A" or (partition == "shared" and (r2["a"] or 0) >= (r2["b"] or 0))
        owner = "a" if a_owns else "b"
        other = OTHER[owner]
        verdict = None
        if r2["a"] is not None and r2["b"] is not None and self._scales:
            verdict = str(verdicts(np.array([r2[owner]]), np.array([r2[other]]), Scale(**self._scales[owner]))[0])
        twin, correlation = self._twins["feature"][feature, 0], self._twins["correlation"][feature, 0]
        return {
            "partition": partition,
            "r2_a": r2["a"],
            "r2_b": r2["b"],
            "owner": owner.upper(),
            "verdict": verdict,
            "twin": {"feature": int(twin), "correlation": float(correlation)} if twin >= 0 else None,
            "where": _WHERE[verdict].format(owner=owner.upper(), other=other.upper()),
        }

    def _number(self, name: str, feature: int) -> float | None:
        values = self._arrays.get(name)
        return None if values is None or math.isnan(values[feature]) else float(values[feature])
