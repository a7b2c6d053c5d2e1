"""What the predictability pass costs, known before it starts: passes, operations, memory.

Legend: N pairs, D width of one model, G targets of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modeldiff.features.rows import CHUNK_ROWS
from modeldiff.workspace.files import human_bytes

BLOCK_BYTES = 2 << 30
"""Most memory that a block of targets may take for one model, with all that is worked out from its sums; both models'
are worked out at the same time."""
# (G, D) arrays of float64 at once: sums of both parts, one part centred, the weights, and two products of these.
_COPIES = 6
_FLOAT64, _FLOAT32, _INDEX = 8, 4, 4


def block_targets(targets: int, width: int) -> int:
    """Targets of one block: as many as fit, at least one."""
    return max(1, min(targets, BLOCK_BYTES // (_COPIES * _FLOAT64 * width)))


@dataclass(frozen=True)
class Cost:
    """Of all regressions on both models.

    Attributes:
        pairs: of the sample.
        targets: what is explained, by what it is: features, what was read from one model, all of it permuted.
        entries: activations that are not 0, of all targets together.
        widths: of both models.
    """

    pairs: int
    targets: Mapping[str, int]
    entries: int
    widths: tuple[int, int]

    @property
    def all_targets(self) -> int:
        """Of every kind."""
        return sum(self.targets.values())

    @property
    def block(self) -> int:
        """Targets of one block, for both models alike."""
        return block_targets(self.all_targets, max(self.widths))

    @property
    def passes(self) -> int:
        """Over the sample, for each model: one for each block."""
        return -(-self.all_targets // self.block) if self.all_targets else 0

    @property
    def operations(self) -> float:
        """Floating-point operations: moments, the factor of each block's matrix, weights and residuals."""
        total = 0.0
        for width in self.widths:
            moments = 2.0 * self.pairs * width**2 + 2.0 * self.entries * width
            total += moments + self.passes * width**3 / 3 + 4.0 * width**2 * self.all_targets
        return total

    @property
    def sums_bytes(self) -> int:
        """Moments of the two parts of a block of both models, in float64."""
        return sum(2 * _FLOAT64 * (width**2 + self.block * width) for width in self.widths)

    @property
    def memory_bytes(self) -> int:
        """At most, about: for both models a block, a chunk of activations and its copy in float64; and the sparse
        activations."""
        width = sum(self.widths)
        block = _FLOAT64 * (_COPIES * self.block * width + 4 * sum(one**2 for one in self.widths))
        chunk = min(self.pairs, CHUNK_ROWS) * width * (_FLOAT32 + 2 * _FLOAT64)
        # By row, by column, and those of a block in float64.
        sparse = self.entries * (2 * (_FLOAT32 + _INDEX) + (_FLOAT64 + _INDEX))
        return block + chunk + sparse

    def lines(self) -> list[str]:
        """To be said before it starts."""
        kinds = ", ".join(f"{count:,} {name}" for name, count in self.targets.items() if count)
        many = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        sums, memory = human_bytes(self.sums_bytes), human_bytes(self.memory_bytes)
        return [
            f"predictability: {self.pairs:,} pairs, widths {self.widths[0]:,} and {self.widths[1]:,}; {kinds}",
            f"predictability: {many} over them for each model (up to {self.block:,} targets at once), "
            f"{self.operations:.1e} floating-point operations",
            f"predictability: {sums} of sums in float64, about {memory} of memory at most",
        ]
