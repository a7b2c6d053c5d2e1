"""What removing a feature does to either model's predictions, and how much of it the last word alone explains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.console import echo
from modeldiff.features.measures.measure import Measure, OnModels
from modeldiff.format import fixed, number, table
from modeldiff.settings import setting, settings

if TYPE_CHECKING:
    from modeldiff.catalogue.table import FeatureRow
    from modeldiff.features.measures.impact.result import Impact
    from modeldiff.workspace import Artifact


@settings
class ImpactSettings(OnModels):
    """Whose features are removed from the models' activations, and on how many pairs."""

    stitch: str | None = setting(default=None, result=False)
    """The stitch that moves directions into the other model. Default: the latest of the activations measured on."""

    pairs: int = setting(default=60_000, least=1)

    samples: int = setting(default=3, least=1)
    """Next tokens drawn at every position. More of them make the impacts less noisy; a backward pass each."""

    seed: int = setting(default=0, least=0)
    """Seed of the tokens drawn, the random directions, and the features that are removed as a check."""


class ImpactMeasure(Measure):
    settings = ImpactSettings
    rehearsed, grows = 3_000, ("impact",)
    summary = "What removing a feature does to each model's predictions."
    about = (
        "Crosscoder + activations + stitch + models -> impact: for every feature at once, what removing it costs each "
        "model's own predictions, and how much of its activation the last word alone explains.\n\n"
        "Listed are the features that do most to their own model, little to the other one, and are not mere words."
    )
    examples = ("", "--exclusive A --top 10", "--crosscoder 2 --pairs 20000 --samples 10 --json")

    def options(self) -> list[click.Option]:
        least = "Leave out what fires in fewer windows."
        return [
            click.Option(["--exclusive"], type=click.Choice(["A", "B"]), help="Only this model's exclusive features."),
            click.Option(["--min-windows"], type=int, default=10, show_default=True, help=least),
            click.Option(["--top"], type=int, default=20, show_default=True, help="Features listed of each model."),
        ]

    def data(self, artifact: Artifact, **shown: Any) -> dict[str, Any]:
        impact, listed = _listed(artifact, **shown)
        return {"impact": impact.info, "features": listed}

    def show(self, artifact: Artifact, **shown: Any) -> None:
        impact, listed = _listed(artifact, **shown)
        info = impact.info
        columns = ("fires", "in", "nats", "±", "other", "asym.", "surf.", "score")
        for side, rows in listed.items():
            which = f"{side}-exclusive features" if shown["exclusive"] else f"features of {side}"
            table(
                f"{artifact.ref}: {which} of {info['crosscoder']}, by score",
                [("id", "right"), ("part", "left"), *((column, "right") for column in columns)],
                [_cells(row) for row in rows],
            )
            if not rows:
                echo("none that fires in so many windows")
            _print_controls(info, side.lower())
        echo(
            f"{info['pairs']:,} pairs in {info['windows']:,} windows of {info['activations']}; "
            f"{info['outliers']:,} outliers left alone.",
            f"{info['samples']} draws of every next token.",
            "nats: KL(unchanged || without the feature), to second order, summed over a",
            "window in which it fires (in: so many). other: the same in the other model, of",
            f"shared features by their own decoder row, else moved by {info['stitch']}.",
            "asym.: (nats - other) / (nats + other); near 1: no linear analogue was found",
            "that the other model minds losing.",
            "surf.: held-out R² of the activation from the last word; all features",
            f"{_range(info['surface'])}. score: nats x asym. x (1 - surf.). Medians [5 % to 95 %].",
        )

    def of_feature(self, artifact: Artifact, row: FeatureRow) -> dict[str, Any]:
        from modeldiff.features.measures.impact.result import read_impact

        return read_impact(artifact).of_feature(row.id)

    def lines(self, found: dict[str, Any]) -> list[str]:
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
) -> tuple[Impact, dict[str, list[dict[str, Any]]]]:
    from modeldiff.features.measures.impact.result import read_impact

    impact = read_impact(artifact)
    sides = [exclusive] if exclusive else ["A", "B"]
    return impact, {
        side: impact.rows(side, exclusive=exclusive is not None, min_windows=min_windows, top=top) for side in sides
    }


def _cells(row: dict[str, Any]) -> list[str]:
    counts = [f"{row[name]:,}" for name in ("firings", "windows")]
    nats = [number(row[name]) for name in ("own", "own_error", "other")]
    shares = [fixed(row[name]) for name in ("asymmetry", "surface")]
    return [str(row["id"]), row["partition"], *counts, *nats, *shares, number(row["score"])]


def _print_controls(info: dict[str, Any], side: str) -> None:
    control, shared, exact = (info[name][side] for name in ("controls", "shared", "exact"))
    echo(
        f"random directions ({control['directions']}): nats {number(control['own']['50%'])}, other "
        f"{number(control['other']['50%'])}, asym. {_range(control['asymmetry'])}",
        f"shared features ({shared['features']}): asym. {_range(shared['asymmetry'])};",
        f"  moved through the stitch, as exclusive ones are: {_range(shared['asymmetry_stitched'])}",
        f"really removed ({exact['features']}): second order / exact {_range(exact['ratio'])},",
        f"  rank correlation {fixed(exact['rank_correlation'])}",
        "",
    )


def _range(one: dict[str, float | None]) -> str:
    return f"{fixed(one['50%'])} [{fixed(one['5%'])} to {fixed(one['95%'])}]"


MEASURE = ImpactMeasure()
