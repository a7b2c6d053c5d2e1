"""Which cells a benchmark consists of: its tables, and in each of them one cell for every row and seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from modeldiff.errors import InputError
from modeldiff.toy.cell import ARCHITECTURES, CellSpec, validate
from modeldiff.toy.settings import ToySettings
from modeldiff.toy.world import WorldSpec

# From models without anything in common to the paper's map, whose models a linear map can stitch.
DIAL_MAPS = (
    "independent",
    *(f"mixed:{share}" for share in (0.25, 0.5, 0.6, 0.7, 0.8, 0.9)),
    "gaussian",
)
# Those of the dial and of the self-diff; the dead window and the selection score concern those with partitions.
_SIDE_ARCHITECTURES = ("standard", "dfc", "dfc-audited", "stitch-residual")
_PARTITIONED = ("dfc", "dfc-audited")
_SIDE_SIZE = 0.5
_WORLD_FIELDS = tuple(field.name for field in fields(WorldSpec))


@dataclass(frozen=True)
class Planned:
    """A cell and its place in a table."""

    table: str
    size: float
    """Size of the dictionary as a share of the concepts, as the settings give it."""
    cell: CellSpec


def plan(settings: ToySettings, device: str) -> list[Planned]:
    """Every cell of every table, table by table, rows in the order of the settings, seeds together.

    A cell that stands in two tables is listed twice; it is the same cell.

    Args:
        settings: filled settings (`ToySettings.filled`).
        device: where the cells run, resolved.

    Raises:
        InputError: settings that do not fit together, found before anything runs.
    """
    for name in settings.architectures:
        if name not in ARCHITECTURES:
            raise InputError(f"--architectures expects {', '.join(ARCHITECTURES)}, found '{name}'")
    rows = _Rows(settings, device)
    makers = {"sizes": rows.sizes, "dial": rows.dial, "selection": rows.selection, "self-diff": rows.self_diff}
    planned = [one for name in settings.tables for one in makers[name]()]
    if not planned:
        raise InputError(
            f"--tables {' '.join(settings.tables)} has no row for --architectures {' '.join(settings.architectures)}"
        )
    for one in planned:
        validate(one.cell)
    return planned


def side_size(sizes: Iterable[float]) -> float:
    """The size of the tables that have only one."""
    return min(sizes, key=lambda size: abs(size - _SIDE_SIZE))


class _Rows:
    """The rows of each table."""

    def __init__(self, settings: ToySettings, device: str) -> None:
        self.settings = settings
        self.device = device
        self.side = side_size(settings.sizes)

    def sizes(self) -> list[Planned]:
        s = self.settings
        return [
            one
            for map_name in s.map
            for size in s.sizes
            for architecture in s.architectures
            for one in self._seeds("sizes", map_name, size, architecture)
        ]

    def dial(self) -> list[Planned]:
        return [
            one
            for map_name in DIAL_MAPS
            for architecture in self._asked_for(_SIDE_ARCHITECTURES)
            for one in self._seeds("dial", map_name, self.side, architecture)
        ]

    def selection(self) -> list[Planned]:
        """combine x selection with the first dead window, and the other dead windows with the first of both."""
        s = self.settings
        variants: list[dict[str, Any]] = [
            {"combine": combine, "selection": score} for combine in s.combine for score in s.selection
        ]
        variants += [{"dead_share": share} for share in s.dead_share[1:]]
        return [
            one
            for variant in variants
            for architecture in self._asked_for(_PARTITIONED)
            for one in self._seeds("selection", "gaussian", self.side, architecture, train_values=variant)
        ]

    def self_diff(self) -> list[Planned]:
        return [
            one
            for architecture in self._asked_for(_SIDE_ARCHITECTURES)
            for one in self._seeds(
                "self-diff", "rotation", self.side, architecture, world_values={"exclusive_ratio": 0.0}
            )
        ]

    def _asked_for(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self.settings.architectures]

    def _seeds(
        self,
        table: str,
        map_name: str,
        size: float,
        architecture: str,
        *,
        world_values: Mapping[str, Any] = MappingProxyType({}),
        train_values: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Planned]:
        """One row of a table: the cells of all its seeds, with some values other than the settings'."""
        s = self.settings
        world = WorldSpec(**{**{name: getattr(s, name) for name in _WORLD_FIELDS}, **world_values, "map": map_name})
        values = {
            "features": _features(size, world.concepts),
            **{name: getattr(s, name) for name in ("k", "exclusive", "steps", "batch")},
            "selection": s.selection[0],
            "combine": s.combine[0],
            "dead_share": s.dead_share[0],
            **({} if s.lr is None else {"lr": s.lr}),
            **train_values,
        }
        return [
            Planned(
                table,
                size,
                CellSpec(
                    world=world,
                    seed=seed,
                    architecture=architecture,
                    train=dict(values),
                    snapshots=s.snapshots or 1,
                    device=self.device,
                ),
            )
            for seed in range(s.seeds or 1)
        ]


def _features(size: float, concepts: int) -> int:
    """Rounded down, as the paper's dictionary sizes are (20 % of 2048 is 409 there)."""
    features = int(size * concepts + 1e-9)
    if features < 1:
        raise InputError(f"--sizes {size:g} of {concepts} concepts is no feature at all: ask for a larger share")
    return features
