"""Affine maps between the two models' activations, and how good they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.features.measures.measure import About, Measure
from modeldiff.features.measures.stitch.settings import KIND, StitchSettings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact

_INTERNAL = ("format", "activations_digest", "sides", "stretches")


class StitchMeasure(Measure):
    """See the stage."""

    name = KIND
    settings = StitchSettings
    stage = "modeldiff.features.measures.stitch.run"
    made_from = {"activations": "activations"}  # noqa: RUF012
    summary = "Affine maps between the models' activations, with their R²."
    about = (
        "Activations -> affine maps from each model's activations to the other's, with their held-out R².\n\n"
        "They move directions between the models; a low R² says how little to trust what was moved."
    )
    examples = ("", "--activations activations:2 --pairs 200000 --json")

    def data(self, artifact: Artifact, **shown: Any) -> dict[str, Any]:  # noqa: ARG002
        """What was fitted, and how good it is."""
        from modeldiff.linear.stitch import load_stitch

        return {name: value for name, value in load_stitch(artifact).info.items() if name not in _INTERNAL}

    def show(self, artifact: Artifact, **shown: Any) -> None:  # noqa: ARG002
        """R² of both maps."""
        from modeldiff.features.measures.stitch.show import print_stitch
        from modeldiff.linear.stitch import load_stitch

        print_stitch(artifact.ref, load_stitch(artifact).info)

    def arguments(self, about: About) -> str:
        """Of the command that stitches these activations."""
        return f"--activations {about.activations}"


MEASURE = StitchMeasure()
