"""config.json of a crosscoder: its partition, the units it works in, and how it encodes. Its formula: saving.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from modeldiff import records
from modeldiff.crosscoder.settings import Combine, Selection
from modeldiff.crosscoder.units import Units
from modeldiff.errors import DamagedError, InputError
from modeldiff.records import bounded, check_fields

FORMAT = 2
# Format 1 lacks these fields; its crosscoders have the defaults.
_SINCE_2 = {"n_designated", "tie", "designated_k", "threshold_designated"}
Tie = Literal["none", "vectors", "norms"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrosscoderConfig(Units):
    """What a crosscoder is, apart from its weights.

    Features are ordered A-exclusive | shared | B-exclusive. `n_a_only = n_b_only = 0` is the standard crosscoder, and
    with designated features, which are then the first ones, the DSF baseline (paper 5.2).

    Raises:
        InputError: a value that makes no sense, named.
    """

    format: int = FORMAT
    n_a_only: int = bounded(least=0)
    """Features that A alone has; likewise the next two."""
    n_shared: int = bounded(least=0)
    n_b_only: int = bounded(least=0)
    n_designated: int = bounded(default=0, least=0)
    """Shared features whose two decoder rows are tied and which have a selection of their own."""
    tie: Tie = "none"
    """What designated features have in common in both decoders."""
    k: int = bounded(least=1)
    """Active features per pair, on average over a batch."""
    designated_k: float = bounded(default=1.0, above=0)
    """How many times more active entries the designated features get than their share of the dictionary."""
    selection: Selection = "activation"
    """What BatchTopK ranks by (`Crosscoder.score_weights`)."""
    combine: Combine = "mean"
    """How a shared feature combines its two encoders: the paper's mean (2.1) or the public code's sum."""
    threshold: float = bounded(default=0.0, least=0)
    """Score above which a feature is active at inference; 0 keeps every positive one (an untrained crosscoder)."""
    threshold_designated: float = bounded(default=0.0, least=0)
    """The same for designated features."""
    model_a: str | None = None
    """Hub name or folder of the model whose activations it was trained on, for people; likewise the next three."""
    layer_a: int | None = None
    model_b: str | None = None
    layer_b: int | None = None

    def __post_init__(self) -> None:
        records.check(self, lambda field: f"crosscoder: '{field.name}'")
        designated, total = self.n_designated, self.n_features
        wrong = None
        if self.k > total:
            wrong = f"k must be at most the number of features ({total}), found {self.k}"
        elif (self.tie == "none") != (designated == 0):
            wrong = f"'tie' and 'n_designated' need each other, found tie {self.tie!r} with {designated} features"
        elif designated > (self.n_shared if self.n_shared == total else 0):
            wrong = f"'n_designated' must be at most 'n_shared', without exclusive features, found {designated}"
        elif self.designated_k * designated > total:
            wrong = (
                f"'designated_k' times 'n_designated' must be at most the number of features ({total}), or nothing is "
                f"left to the others; found {self.designated_k:g} times {designated}"
            )
        elif self.tie == "vectors" and self.width_a != self.width_b:
            wrong = (
                "only models of equal width can have tied decoder vectors, "
                f"found widths {self.width_a} and {self.width_b}; tie their norms instead"
            )
        if wrong:
            raise InputError(f"crosscoder: {wrong}")

    @property
    def n_features(self) -> int:
        return self.n_a_only + self.n_shared + self.n_b_only

    @property
    def n_a(self) -> int:
        return self.n_a_only + self.n_shared

    @property
    def n_b(self) -> int:
        return self.n_shared + self.n_b_only

    @property
    def parameters(self) -> int:
        return 2 * (self.n_a * self.width_a + self.n_b * self.width_b) + self.n_features + self.width_a + self.width_b

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """The config written by `to_json`, in this format or an earlier one.

        Raises:
            InputError: written by a newer modeldiff.
            DamagedError: a field is missing, unknown or senseless; the message names `where` (the file) and the field.
        """
        found = data.get("format")
        if isinstance(found, int) and found > FORMAT:
            raise InputError(
                f"{where}: format {found} is newer than this modeldiff reads ({FORMAT}): upgrade modeldiff"
            )
        try:
            names = {f.name for f in dataclasses.fields(cls)}
            check_fields(data, required=names - _SINCE_2 if found == 1 else names, where=where)
            return cls(**{**data, "format": FORMAT})
        except (InputError, TypeError) as error:
            message = str(error)
            raise DamagedError(message if message.startswith(where) else f"{where}: {message}") from None
