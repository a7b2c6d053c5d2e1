"""config.json of a crosscoder: its partition, the units it works in, and how it encodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

from modeldiff.errors import DamagedError, InputError
from modeldiff.settings import check_fields

FORMAT = 2
# Fields that format 1 did not have; its crosscoders have their defaults.
_SINCE_2 = {"n_designated", "tie", "designated_k", "threshold_designated"}
SELECTIONS = ("activation", "l2", "sum", "mean")
COMBINES = ("mean", "sum")
TIES = ("none", "vectors", "norms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrosscoderConfig:
    """What a crosscoder is, apart from its weights.

    Features are ordered A-exclusive | shared | B-exclusive. `n_a_only = n_b_only = 0` is the standard crosscoder, and
    with designated features, which are then the first ones, the DSF baseline (paper 5.2).

    Raises:
        InputError: a value that makes no sense, named.
    """

    format: int = FORMAT
    width_a: int
    """Da."""
    width_b: int
    """Db."""
    n_a_only: int
    n_shared: int
    n_b_only: int
    n_designated: int = 0
    """Shared features whose two decoder rows are tied and which have a selection of their own."""
    tie: Literal["none", "vectors", "norms"] = "none"
    """What designated features have in common in both decoders (see tying.py)."""
    k: int
    """Active features per pair, on average over a batch."""
    designated_k: float = 1.0
    """How many times more active entries the designated features get than their share of the dictionary."""
    selection: Literal["activation", "l2", "sum", "mean"] = "activation"
    """What BatchTopK ranks by (see selection.py)."""
    combine: Literal["mean", "sum"] = "mean"
    """How a shared feature combines its two encoders: the paper's mean (2.1) or the public code's sum."""
    scale_a: float = 1.0
    """Normalised activations of A = raw activations times this (paper B.1)."""
    scale_b: float = 1.0
    threshold: float = 0.0
    """Score above which a feature is active at inference; 0 keeps every positive one (an untrained crosscoder)."""
    threshold_designated: float = 0.0
    """The same for designated features."""
    model_a: str | None = None
    """Hub name or folder of the model whose activations it was trained on, for people; likewise the next three."""
    layer_a: int | None = None
    model_b: str | None = None
    layer_b: int | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("width_a", 1),
            ("width_b", 1),
            ("n_a_only", 0),
            ("n_shared", 0),
            ("n_b_only", 0),
            ("n_designated", 0),
            ("k", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"crosscoder: '{name}' must be a whole number of at least {least}, found {value!r}")
        if self.k > self.n_features:
            raise InputError(
                f"crosscoder: k must be at most the number of features ({self.n_features}), found {self.k}"
            )
        if self.selection not in SELECTIONS:
            raise InputError(
                f"crosscoder: 'selection' must be one of {', '.join(SELECTIONS)}, found {self.selection!r}"
            )
        if self.combine not in COMBINES:
            raise InputError(f"crosscoder: 'combine' must be one of {', '.join(COMBINES)}, found {self.combine!r}")
        for name in ("scale_a", "scale_b"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"crosscoder: '{name}' must be positive and finite, found {getattr(self, name)!r}")
        for name in ("threshold", "threshold_designated"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"crosscoder: '{name}' must be finite and not negative, found {getattr(self, name)!r}")
        self._check_designated()

    def _check_designated(self) -> None:
        if self.tie not in TIES:
            raise InputError(f"crosscoder: 'tie' must be one of {', '.join(TIES)}, found {self.tie!r}")
        if (self.tie == "none") != (self.n_designated == 0):
            raise InputError(
                "crosscoder: 'tie' and 'n_designated' need each other, "
                f"found tie {self.tie!r} with {self.n_designated} designated features"
            )
        if not 0 < self.designated_k < float("inf"):
            raise InputError(f"crosscoder: 'designated_k' must be positive and finite, found {self.designated_k!r}")
        if self.n_designated == 0:
            return
        if self.n_a_only or self.n_b_only:
            raise InputError(
                "crosscoder: with designated features there are no exclusive partitions, "
                f"found n_a_only {self.n_a_only} and n_b_only {self.n_b_only}"
            )
        if self.n_designated > self.n_shared:
            raise InputError(
                f"crosscoder: 'n_designated' must be at most 'n_shared' ({self.n_shared}), found {self.n_designated}"
            )
        if self.designated_k * self.n_designated > self.n_features:
            raise InputError(
                f"crosscoder: 'designated_k' times 'n_designated' must be at most the number of features "
                f"({self.n_features}), or nothing is left to the others; "
                f"found {self.designated_k:g} times {self.n_designated}"
            )
        if self.tie == "vectors" and self.width_a != self.width_b:
            raise InputError(
                "crosscoder: only models of equal width can have tied decoder vectors, "
                f"found widths {self.width_a} and {self.width_b}; tie their norms instead"
            )

    @property
    def n_features(self) -> int:
        """F."""
        return self.n_a_only + self.n_shared + self.n_b_only

    @property
    def n_a(self) -> int:
        """Features that A has: its own and the shared ones."""
        return self.n_a_only + self.n_shared

    @property
    def n_b(self) -> int:
        """Features that B has: the shared ones and its own."""
        return self.n_shared + self.n_b_only

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return 2 * (self.n_a * self.width_a + self.n_b * self.width_b) + self.n_features + self.width_a + self.width_b

    def to_json(self) -> dict[str, Any]:
        """Every field, as JSON data."""
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
