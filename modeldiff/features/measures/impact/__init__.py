"""What removing a feature does to either model's predictions, and how much of it the last words alone explain."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import click

from modeldiff.features.measures.impact.settings import KIND, ImpactSettings
from modeldiff.features.measures.measure import Measure
from modeldiff.format import fixed, number

if TYPE_CHECKING:
    from modeldiff.features.measures.impact.result import Impact, ImpactRow
    from modeldiff.features.table import FeatureRow
    from modeldiff.workspace import Artifact


class ImpactMeasure(Measure):
    """See the stage."""

    name = KIND
    settings = ImpactSettings
    stage = "modeldiff.features.measures.impact.run"
    made_from = {"crosscoder": "crosscoder", "activations": "activations"}  # noqa: RUF012
    summary = "What removing a feature does to each model's predictions."
    about = (
        "Crosscoder + activations + stitch + models -> impact: for every feature at once, what removing it costs each "
        "model's own predictions, and how much of its activation the last words alone explain.\n\n"
        "Listed are the features that do most to their own model, little to the other one, and are not mere words."
    )
    examples = ("", "--exclusive A --top 10", "--crosscoder 2 --pairs 20000 --samples 10 --json")

    def options(self) -> list[click.Option]:
        """Of the list."""
        return [
            click.Option(["--exclusive"], type=click.Choice(["A", "B"]), help="Only this model's exclusive features."),
            click.Option(
                ["--min-windows"],
                type=int,
                default=10,
                show_default=True,
                help="Leave out what fires in fewer windows.",
            ),
            click.Option(["--top"], type=int, default=20, show_default=True, help="Features listed of each model."),
        ]

    def data(self, artifact: Artifact, **shown: Any) -> dict[str, Any]:
        """Everything, and one object per feature listed."""
        impact, listed = _listed(artifact, **shown)
        rows = {side: [dataclasses.asdict(row) for row in found] for side, found in listed.items()}
        return {"impact": impact.info, "features": rows}

    def show(self, artifact: Artifact, **shown: Any) -> None:
        """A table of each side's features, the controls beneath it."""
        from modeldiff.features.measures.impact.show import print_impact

        impact, listed = _listed(artifact, **shown)
        print_impact(impact, listed, exclusive=shown["exclusive"] is not None)

    def of_feature(self, artifact: Artifact, row: FeatureRow) -> dict[str, Any]:
        """By model, what removing it does to that and to the other one."""
        from modeldiff.features.measures.impact.result import read_impact

        impact = read_impact(artifact)
        if impact.arrays["windows"][row.id] == 0:
            return {}
        found: dict[str, Any] = {"surface": _finite(impact.surface()[row.id])}
        for side in ("A", "B") if row.partition == "shared" else (row.partition,):
            found[side] = {
                "own": _finite(impact.own(side)[row.id]),
                "other": _finite(impact.other(side)[row.id]),
                "asymmetry": _finite(impact.asymmetry(side)[row.id]),
                "asymmetry_of_random": impact.info["controls"][side.lower()]["asymmetry"]["50%"],
            }
        return found

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Two for each model that has it."""
        lines = []
        for side, other in (("A", "B"), ("B", "A")):
            if side in found:
                one = found[side]
                lines += [
                    f"impact {side}      nats per window if removed: {side} {number(one['own'])}, {other} "
                    f"{number(one['other'])}; asymmetry {fixed(one['asymmetry'])}",
                    f"              (random directions {fixed(one['asymmetry_of_random'])}); surface R² "
                    f"{fixed(found['surface'])} ({found['ref']})",
                ]
        return lines


def _listed(
    artifact: Artifact, *, exclusive: str | None, min_windows: int, top: int
) -> tuple[Impact, dict[str, list[ImpactRow]]]:
    from modeldiff.features.measures.impact.result import read_impact

    impact = read_impact(artifact)
    sides = [exclusive] if exclusive else ["A", "B"]
    return impact, {
        side: impact.rows(side, exclusive=exclusive is not None, min_windows=min_windows, top=top) for side in sides
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


MEASURE = ImpactMeasure()
