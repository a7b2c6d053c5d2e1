"""What is known about the features of an artifact and what is not, and the command that makes each kind of evidence.

Evidence belongs to features when it was made from what its measure says (`Measure.made_from`), by the digests, never
just because it is the latest of a kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from modeldiff.features.measures import About, Measure, measures
from modeldiff.workspace import Artifact, Workspace

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
    return [one for one in reversed(workspace.artifacts(measure.name)) if _is_made_from(one, **wanted)]


def _is_made_from(artifact: Artifact, **digests: str) -> bool:
    inputs = artifact.manifest.inputs
    return all(name in inputs and inputs[name].digest == digest for name, digest in digests.items())


def _about(workspace: Workspace, features: Artifact) -> About:
    inputs = features.manifest.inputs
    source = workspace.present("crosscoder", inputs["crosscoder"])
    found = workspace.present("activations", inputs["activations"])
    crosscoder = source.ref if source else inputs["crosscoder"].label
    activations = found.ref if found else inputs["activations"].label
    trained_on = source.manifest.inputs.get("activations") if source else None
    elsewhere = trained_on is not None and trained_on.digest != inputs["activations"].digest
    which = f"--crosscoder {crosscoder}" + (f" --activations {activations}" if elsewhere else "")
    others = [
        one.ref
        for one in workspace.artifacts("crosscoder")
        if one.manifest.digest != inputs["crosscoder"].digest
        and _is_made_from(one, activations=inputs["activations"].digest)
    ]
    return About(features.ref, crosscoder, activations, which, others[-1] if others else "OTHER-CROSSCODER")
