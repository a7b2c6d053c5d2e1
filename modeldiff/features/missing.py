"""What is known about the features of an artifact and what is not, and the command that makes each kind of evidence.

Evidence belongs to features when it was made from what its measure says (`Measure.made_from`), by the digests, never
just because it is the latest of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from modeldiff.features.measures import About, Measure, measures
from modeldiff.workspace import Artifact, Input, Workspace

PREDICTABILITY = "predictability"


@dataclass(frozen=True)
class Evidence:
    """One kind of evidence about the features of an artifact."""

    kind: str
    """PREDICTABILITY, which is part of the features themselves, or the name of a measure."""
    ref: str | None
    """The newest artifact that holds it; None: missing."""
    command: str
    """The command that makes it; what is in capitals is for the reader to fill in."""


def evidence_about(workspace: Workspace, features: Artifact) -> list[Evidence]:
    """Every kind of evidence: predictability, then the measures in their order."""
    about = _about(workspace, features)
    ref = features.ref if features.settings.get(PREDICTABILITY, True) else None
    found = [Evidence(PREDICTABILITY, ref, f"modeldiff features {about.which} --{PREDICTABILITY}")]
    for measure in measures():
        newest = next((one.ref for one in made_about(workspace, features, measure)), None)
        found.append(Evidence(measure.name, newest, f"modeldiff features {measure.name} {measure.arguments(about)}"))
    return found


def made_about(workspace: Workspace, features: Artifact, measure: Measure) -> list[Artifact]:
    """The artifacts of a measure that are about these features, newest first."""
    inputs = features.manifest.inputs
    digests = {name: one.digest for name, one in inputs.items()} | {"features": features.manifest.digest}
    wanted = {name: digests[of] for name, of in measure.made_from.items()}

    def is_about(one: Artifact) -> bool:
        made_from = one.manifest.inputs
        return all(name in made_from and made_from[name].digest == digest for name, digest in wanted.items())

    return [one for one in reversed(workspace.artifacts(measure.name)) if is_about(one)]


def _about(workspace: Workspace, features: Artifact) -> About:
    inputs = features.manifest.inputs
    crosscoder = _present(workspace, "crosscoder", inputs["crosscoder"])
    activations = _present(workspace, "activations", inputs["activations"])
    trained_on = crosscoder.manifest.inputs.get("activations") if crosscoder else None
    return About(
        features=features.ref,
        crosscoder=crosscoder.ref if crosscoder else inputs["crosscoder"].label,
        activations=activations.ref if activations else inputs["activations"].label,
        elsewhere=trained_on is not None and trained_on.digest != inputs["activations"].digest,
        other_crosscoder=_comparable(workspace, inputs),
    )


def _present(workspace: Workspace, kind: str, wanted: Input) -> Artifact | None:
    """The artifact that the input was, by its digest: the one it was called, if that is still there."""
    found = [one for one in workspace.artifacts(kind) if one.manifest.digest == wanted.digest]
    return next((one for one in found if one.ref == wanted.label), found[-1] if found else None)


def _comparable(workspace: Workspace, inputs: dict[str, Input]) -> str:
    """The newest other crosscoder of the same activations; without one, a word for it."""
    for one in reversed(workspace.artifacts("crosscoder")):
        trained_on = one.manifest.inputs.get("activations")
        is_other = one.manifest.digest != inputs["crosscoder"].digest
        if is_other and trained_on is not None and trained_on.digest == inputs["activations"].digest:
            return one.ref
    return "OTHER-CROSSCODER"
