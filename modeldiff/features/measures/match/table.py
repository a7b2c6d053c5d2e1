"""A `match` artifact as rows to list: for each feature of the reference, what it found in each other crosscoder.

Legend: R features of the reference that were looked for, O other crosscoders.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from modeldiff.errors import InputError
from modeldiff.features.measures.match.run import ARRAYS_NAME, FORMAT, MATCH_NAME
from modeldiff.features.measures.match.summary import PARTITIONS
from modeldiff.features.stored import read_arrays, read_info
from modeldiff.workspace import Artifact

_FIELDS = {
    "format", "reference", "others", "activations", "pairs", "outliers", "threshold", "all_features", "sizes",
    "summary",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """The best match of a feature in one other crosscoder."""

    crosscoder: str
    id: int | None
    """None: no feature of it ever fires together with this one more than by chance."""
    partition: str | None
    """A, shared or B."""
    correlation: float
    chance: float
    """The best correlation of the same feature with the pairs permuted."""
    mutual: bool
    """This feature is in turn the best match of its match."""
    came_back: bool
    """Mutual, and correlated at least at the threshold."""
    cosine_a: float | None
    """Of the decoder rows that write to A; None when one of the two does not."""
    cosine_b: float | None


@dataclasses.dataclass(frozen=True)
class MatchRow:
    """One feature of the reference."""

    id: int
    partition: str
    density: float
    """Share of the pairs on which it fires; 0: dead."""
    came_back: int
    """Number of other crosscoders in which it came back, in any partition."""
    came_back_same: int
    """In the same partition."""
    found: list[Found]

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return dataclasses.asdict(self)


class MatchTable:
    """A `match` artifact, opened for reading.

    Attributes:
        info: content of match.json.
        arrays: content of match.safetensors.

    Raises:
        DamagedError: a file is missing or damaged.
        InputError: written by a newer modeldiff.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.info = read_info(artifact, MATCH_NAME, version=FORMAT, fields=_FIELDS, again="modeldiff features match")
        self.arrays = read_arrays(artifact, ARRAYS_NAME)

    def rows(self, partition: str, top: int | None = None) -> list[MatchRow]:
        """Alive features of a partition of the reference: those that came back in most crosscoders in the same
        partition first, then those that came back in any, then by mean correlation.

        Args:
            partition: A, shared or B; top: at most so many.

        Raises:
            InputError: features of this partition were not looked for.
        """
        arrays = self.arrays
        mine_R = arrays["partition"] == PARTITIONS.index(partition)
        if partition == "shared" and not self.info["all_features"]:
            raise InputError("shared features were not looked for: add --all-features")
        alive = np.flatnonzero(mine_R & (arrays["firing_count"] > 0))
        back_OR = arrays["came_back"][:, alive]
        same = (back_OR == PARTITIONS.index(partition)).sum(axis=0)
        anywhere = (back_OR >= 0).sum(axis=0)
        mean = arrays["correlation"][:, alive].mean(axis=0)
        return [self._row(int(alive[i])) for i in np.lexsort((alive, -mean, -anywhere, -same))[:top]]

    def _row(self, index: int) -> MatchRow:
        arrays = self.arrays
        own = int(arrays["partition"][index])
        back_O = arrays["came_back"][:, index]
        return MatchRow(
            id=int(arrays["feature"][index]),
            partition=PARTITIONS[own],
            density=float(arrays["firing_count"][index]) / self.info["pairs"],
            came_back=int((back_O >= 0).sum()),
            came_back_same=int((back_O == own).sum()),
            found=[self._found(other, index) for other in range(len(back_O))],
        )

    def _found(self, other: int, index: int) -> Found:
        arrays = {name: array[other, index] for name, array in self.arrays.items() if array.ndim == 2}
        exists = arrays["match"] >= 0
        return Found(
            crosscoder=self.info["others"][other],
            id=int(arrays["match"]) if exists else None,
            partition=PARTITIONS[arrays["match_partition"]] if exists else None,
            correlation=float(arrays["correlation"]),
            chance=float(arrays["chance_correlation"]),
            mutual=bool(arrays["mutual"]),
            came_back=bool(arrays["came_back"] >= 0),
            cosine_a=_number(arrays["cosine_a"]),
            cosine_b=_number(arrays["cosine_b"]),
        )


def _number(value: Any) -> float | None:
    return None if math.isnan(value) else float(value)
