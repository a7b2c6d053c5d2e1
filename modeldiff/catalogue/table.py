"""The features of an artifact as rows to list, filter, sort and show; plain data for the terminal, JSON or Python.

Legend: F features, S text sources.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from modeldiff import notebook
from modeldiff.catalogue import stored
from modeldiff.catalogue.example import ExampleReader
from modeldiff.catalogue.row import STRONG, FeatureRow, FeatureRows, Twin
from modeldiff.catalogue.stored import read_arrays, read_info
from modeldiff.catalogue.words import characteristic_words
from modeldiff.errors import InputError
from modeldiff.linear.verdict import MOSTLY_DIFFER, Baseline, Calls, Scale, calls_of, evidence_score, verdicts
from modeldiff.records import number_or_none
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact

if TYPE_CHECKING:
    import pandas

Partition = Literal["A", "shared", "B"]
Sort = Literal["evidence", "gap", "density", "max", "relative_norm", "twin", "id"]
# Features that a notebook shows of the whole table.
_SHOWN = 20
_USAGE = ("relative_norm", "density", "firing_count", "mean_activation", "max_activation")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which features a listing shows, and how many it leaves out and why."""

    ids: list[int]
    """In the order asked for."""
    candidates: int
    """Features of the partition asked for."""
    dead: int
    """Of these never fired; left out."""
    rare: int
    """Fired, but below the minimum density asked for; left out."""
    without_evidence: int
    """Fired, but with no r2_own - r2_other; behind those that have it when sorted by it."""


class FeatureTable:
    """A `features` artifact, opened for reading.

    Attributes:
        info: content of features.json.
        partition_F: "A", "shared" or "B".
        statistics: the arrays of statistics.safetensors.
        twins: feature, correlation (F, 3), highest first; feature -1: none.
        r2: (F,) by the names of FeatureRow, and its evidence; NaN: not measured.
        verdict_F: as in FeatureRow; "" when not measured.
        mostly_differ_F: True where the two models' tokens differ at more than half of a feature's examples.
        scales: by side "a" and "b", what its features' ratios are held against; empty when nothing was measured.
        baselines: by side, what differences of two activations show; empty likewise.

    Raises:
        DamagedError: a file is missing or damaged.
        InputError: written by a newer modeldiff.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        again = f"modeldiff features --crosscoder {artifact.manifest.inputs['crosscoder'].label}"
        self.info = read_info(artifact, stored.FEATURES_NAME, version=stored.FORMAT, again=again)
        self.scales = {side: Scale(**scale) for side, scale in self.info["scales"].items()}
        self.baselines = {side: Baseline(**one) for side, one in self.info["differences"].items()}
        sizes = {name: stop - start for name, (start, stop) in self.info["partitions"].items()}
        self.partition_F = np.repeat(list(sizes), list(sizes.values()))
        self.statistics = read_arrays(artifact, stored.STATISTICS_NAME)
        self.twins = read_arrays(artifact, stored.TWINS_NAME)
        self._examples = ExampleReader(artifact, stored.EXAMPLES_NAME, self.info["sources"], self.info["has_texts"])
        self.mostly_differ_F: NDArray[np.bool_] = self.statistics["tokens_differ"] > MOSTLY_DIFFER  # False where NaN
        self._measured()

    def _measured(self) -> None:
        """What follows from the R²: the owner of each feature, R² from it and from the other model, and the verdict."""
        nothing = np.full(self.n_features, np.nan, np.float32)
        r2_a, r2_b, null_a, null_b = (
            self.statistics.get(f"{name}_{side}", nothing) for name in ("r2", "null") for side in SIDES
        )
        a_owns = (self.partition_F == "A") | ((self.partition_F == "shared") & (r2_a >= r2_b))
        self._owner_F = np.where(a_owns, "A", "B")
        self.r2: dict[str, NDArray[Any]] = {
            "r2_a": r2_a,
            "r2_b": r2_b,
            "r2_own": np.where(a_owns, r2_a, r2_b),
            "r2_other": np.where(a_owns, r2_b, r2_a),
            "r2_null": np.where(a_owns, null_b, null_a),
        }
        own, other = self.r2["r2_own"], self.r2["r2_other"]
        self.r2["evidence"] = evidence_score(own, other)
        self.verdict_F = np.full(self.n_features, "", dtype="<U11")
        for side, scale in self.scales.items():
            owned = self._owner_F == side.upper()
            self.verdict_F[owned] = verdicts(own[owned], other[owned], scale)

    @property
    def n_features(self) -> int:
        return len(self.partition_F)

    def select(
        self,
        *,
        partition: Partition | None = None,
        top: int | None = None,
        sort: Sort = "evidence",
        min_density: float = 0.0,
        anywhere: bool = False,
    ) -> Selection:
        """Choose and order features.

        Args:
            partition: only this one; None: all.
            top: at most so many; None: all.
            sort: evidence and gap (see FeatureRow), density, max, largest first; relative_norm (the one model's share
                of the norm first: largest for A, smallest for B), twin (the least similar twin first), id. Features
                without evidence come last when sorted by that.
            min_density: leave out features that fire on a smaller share of the pairs.
            anywhere: with "A" or "B", also the shared features that this model's activations explain better.

        Raises:
            InputError: an unknown partition or order.
        """
        if partition is not None and partition not in get_args(Partition):
            raise InputError(f"--exclusive expects A, B or shared, found '{partition}'")
        if top is not None and top < 1:
            raise InputError(f"--top must be at least 1, found {top}")
        if anywhere and partition not in ("A", "B"):
            raise InputError("--anywhere goes with --exclusive A or --exclusive B")
        if anywhere and not self.info["predictability"]:
            raise InputError(
                f"--anywhere goes by predictability, and {self.artifact.ref} was measured without: measure again with "
                "--predictability"
            )
        of_partition = np.ones(self.n_features, bool) if partition is None else self.partition_F == partition
        gap_known = ~np.isnan(self.r2["evidence"])
        if anywhere:
            of_partition |= gap_known & (self.partition_F == "shared") & (self._owner_F == partition)
        alive = self.statistics["firing_count"] > 0
        dense = self.statistics["density"] >= min_density
        key = self._sort_key(sort, partition)
        known = ~np.isnan(key)
        ids = np.flatnonzero(of_partition & alive & dense)
        # Without evidence the strongest come first, so that the order still means something.
        strength = self.statistics["max_activation"]
        order = np.lexsort((ids, -strength[ids], np.where(known, key, 0)[ids], ~known[ids]))
        return Selection(
            ids=ids[order][:top].tolist(),
            candidates=int(of_partition.sum()),
            dead=int((of_partition & ~alive).sum()),
            rare=int((of_partition & alive & ~dense).sum()),
            without_evidence=int((of_partition & alive & ~gap_known).sum()),
        )

    def rows(self, *, examples: int | None = None, **chosen: Any) -> FeatureRows:
        """The features of `select(**chosen)`, each with at most `examples` examples (None: all that are kept)."""
        return FeatureRows(self.row(feature, examples=examples) for feature in self.select(**chosen).ids)

    def frame(self, **chosen: Any) -> pandas.DataFrame:
        """The features of `select(**chosen)` as `FeatureRows.frame` has them; a few milliseconds each. Raises as
        these."""
        return self.rows(examples=1, **chosen).frame()

    def _repr_html_(self) -> str:
        """What notebooks show: the first features by evidence."""
        first = self.rows(examples=1, top=_SHOWN)
        which = f"{self.artifact.ref} ({self.info['crosscoder']}): {len(first)} of {self.n_features} features"
        return notebook.shown(f"<p>{notebook.escaped(which)}, by evidence</p>", first._repr_html_())

    def row(self, feature: int, *, examples: int | None = None) -> FeatureRow:
        """Everything about one feature. Raises InputError: there is no such feature."""
        if not 0 <= feature < self.n_features:
            raise InputError(
                f"feature {feature} does not exist: {self.artifact.ref} has 0 to {self.n_features - 1} "
                f"({self.info['crosscoder']})"
            )
        numbers: dict[str, Any] = {name: self.statistics[name][feature].item() for name in _USAGE}
        numbers |= {name: number_or_none(values[feature]) for name, values in self.r2.items()}
        own, other = numbers["r2_own"], numbers["r2_other"]
        twins = zip(*(self.twins[name][feature].tolist() for name in ("feature", "correlation")), strict=True)
        shown, words = self._examples.read(feature, examples)
        mass_S = self.statistics["activation_by_source"][:, feature]
        shares = {
            label: float(mass / mass_S.sum()) for label, mass in zip(self.info["sources"], mass_S, strict=True) if mass
        }
        return FeatureRow(
            id=feature,
            partition=str(self.partition_F[feature]),
            **numbers,
            sources=dict(sorted(shares.items(), key=lambda item: -item[1])),
            twins=[Twin(i, str(self.partition_F[i]), value, value >= STRONG) for i, value in twins if i >= 0],
            gap=None if own is None or other is None else own - other,
            verdict=str(self.verdict_F[feature]) or None,
            tokens_differ=number_or_none(self.statistics["tokens_differ"][feature]),
            words=characteristic_words(words),
            examples=shown,
        )

    @property
    def calls(self) -> dict[str, Calls]:
        """By side "a" and "b", what its exclusive features are called, and what chance gives; empty when nothing was
        measured."""
        alive_F = self.statistics["firing_count"] > 0
        return {
            side: calls_of(self.verdict_F[alive_F & (self.partition_F == side.upper())], scale)
            for side, scale in self.scales.items()
        }

    def _sort_key(self, sort: str, partition: str | None) -> NDArray[np.float64]:
        """(F,) smallest first; NaN where there is no evidence."""
        keys: dict[str, NDArray[Any]] = {
            "evidence": -self.r2["evidence"],
            "gap": self.r2["r2_other"].astype(np.float64) - self.r2["r2_own"],
            "density": -self.statistics["density"],
            "max": -self.statistics["max_activation"],
            "relative_norm": self.statistics["relative_norm"] * (1 if partition == "B" else -1),
            "twin": self.twins["correlation"][:, 0],
            "id": np.arange(self.n_features),
        }
        if sort not in keys:
            raise InputError(f"--sort expects one of {', '.join(keys)}, found '{sort}'")
        return keys[sort].astype(np.float64)
