"""Affine maps between the two models' activations, and how good they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.console import echo
from modeldiff.crosscoder.settings import PAPER_OUTLIER_FACTOR
from modeldiff.features.measures.measure import About, Measure
from modeldiff.format import fixed, table
from modeldiff.settings import OnDevice, setting, settings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


@settings
class StitchSettings(OnDevice):
    """Which pairs the maps between the two models are fitted on."""

    activations: str | None = setting(default=None, result=False)
    """The activations: a version, `activations:2`, or a name. Default: the latest."""

    pairs: int = setting(default=1_000_000, least=100)
    """Read about this many pairs, in blocks spread evenly over the activations. Eight tenths are fitted on, one tenth
    chooses the regularisation, and one tenth gives the R² reported."""

    outlier_factor: float = setting(default=PAPER_OUTLIER_FACTOR, least=0)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm (paper B.1.4: 2); 0 keeps
    all."""


class StitchMeasure(Measure):
    settings = StitchSettings
    made_from = {"activations": "activations"}  # noqa: RUF012
    rehearsed, grows = 20_000, ("stitch: pass", "stitch: held-out")
    summary = "Affine maps between the models' activations, with their R²."
    about = (
        "Activations -> affine maps from each model's activations to the other's, with their held-out R².\n\n"
        "They move directions between the models; a low R² says how little to trust what was moved."
    )
    examples = ("", "--activations activations:2 --pairs 200000 --json")

    def data(self, artifact: Artifact, **_shown: Any) -> dict[str, Any]:
        from modeldiff.linear.stitch import load_stitch

        return load_stitch(artifact).info

    def show(self, artifact: Artifact, **_shown: Any) -> None:
        info = self.data(artifact)
        pairs, trip, same = info["pairs"], info["round_trip"], info["identity"]
        titles = {"a_to_b": "A -> B", "b_to_a": "B -> A"}
        rows = []
        for direction, title in titles.items():
            found = info["maps"][direction]
            rows.append([title, fixed(found["r2"], 3), fixed(found["null_r2"], 3), f"{found['ridge']:g}"])
        columns = ("R²", "permuted", "ridge")
        table(f"{artifact.ref} of {info['activations']}", [("map", "left"), *((one, "right") for one in columns)], rows)
        echo(f"There and back: R² {fixed(trip['a'], 3)} for A by way of B, {fixed(trip['b'], 3)} for B by A.")
        if same:
            r2 = ", ".join(f"{fixed(same[direction], 3)} {title}" for direction, title in titles.items())
            echo(f"Without a map (widths are equal): R² {r2}.")
        echo(
            f"Fitted on {pairs['fit']:,} pairs, the ridge chosen on {pairs['choose']:,} others; "
            f"{info['outliers']:,} of outlying",
            "norm were left out.",
            f"R²: share of the variance of {pairs['report']:,} more pairs that the map explains; neither",
            "the fit nor the choice of the ridge has seen them.",
            "permuted: the same for a map that was fitted on wrong pairs.",
        )

    def arguments(self, about: About) -> str:
        return f"--activations {about.activations}"


MEASURE = StitchMeasure()
