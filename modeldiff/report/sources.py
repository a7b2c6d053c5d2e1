"""What a page is made from: the artifacts behind a list of differences, and those about the same features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from modeldiff.catalogue.table import FeatureTable
from modeldiff.features.measures import measures
from modeldiff.features.missing import Evidence, evidence_about, made_about
from modeldiff.workspace import Artifact, Workspace


@dataclass(frozen=True)
class Sources:
    """The artifacts that a page speaks of; None: it was made without, or it is not in the workspace any more."""

    workspace: Workspace
    contrast: Artifact
    continuations: Artifact | None
    features: Artifact | None
    crosscoder: Artifact | None
    activations: Artifact | None
    measured: dict[str, Artifact]
    """By name of the measure, the newest artifact about these features."""
    steerings: list[Artifact]
    """With these features, in the order in which they were made."""

    @classmethod
    def of(cls, workspace: Workspace, contrast: Artifact) -> Sources:
        inputs = contrast.manifest.inputs
        continuations, features, crosscoder = (
            workspace.present(kind, inputs.get(kind)) for kind in ("continuations", "features", "crosscoder")
        )
        trained_on = crosscoder.manifest.inputs.get("activations") if crosscoder else None
        activations = workspace.present("activations", trained_on)
        measured, steerings = {}, []
        if features:
            found = {one.name: made_about(workspace, features, one) for one in measures()}
            measured = {name: made[0] for name, made in found.items() if made}
            steerings = [
                one
                for one in workspace.artifacts("steering")
                if one.manifest.inputs["features"].digest == features.manifest.digest
            ]
        return cls(workspace, contrast, continuations, features, crosscoder, activations, measured, steerings)

    @property
    def artifacts(self) -> list[Artifact]:
        """All of them, from the first that was made to what was made from it."""
        line = [self.activations, self.crosscoder, self.features, self.continuations]
        return [*(one for one in line if one), *self.measured.values(), self.contrast, *self.steerings]

    @cached_property
    def table(self) -> FeatureTable | None:
        return FeatureTable(self.features) if self.features else None

    @cached_property
    def evidence(self) -> list[Evidence]:
        """What is known about the features and what is not."""
        return evidence_about(self.workspace, self.features) if self.features else []
