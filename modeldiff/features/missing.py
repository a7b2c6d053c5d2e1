"""What is known about the features of an artifact and what is not: evidence found by the digests of what it was made
from, and the command that makes each kind.

Evidence belongs to features when it was made from the artifact itself (explanation, score), from its crosscoder on the
same activations (impact, evaluation), from its activations (stitch), or with its crosscoder as the reference (match).
Never just the latest of a kind: that may be about other features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from modeldiff.workspace import Artifact, Input, Workspace

PREDICTABILITY = "predictability"
# For each kind of artifact: its input -> that input of the features, or "features" for the artifact itself.
_MADE_FROM: dict[str, dict[str, str]] = {
    "stitch": {"activations": "activations"},
    "impact": {"crosscoder": "crosscoder", "activations": "activations"},
    "explanation": {"features": "features"},
    "score": {"features": "features"},
    "match": {"reference": "crosscoder"},
    "evaluation": {"crosscoder": "crosscoder", "activations": "activations"},
}
KINDS = (PREDICTABILITY, *_MADE_FROM)


@dataclass(frozen=True)
class Evidence:
    """One kind of evidence about the features of an artifact."""

    kind: str
    """One of KINDS."""
    ref: str | None
    """The newest artifact that holds it; None: missing."""
    command: str
    """What makes it. In capitals: for the reader to fill in."""

    def to_json(self) -> dict[str, Any]:
        """JSON data."""
        return asdict(self)


def evidence_about(workspace: Workspace, features: Artifact) -> list[Evidence]:
    """Every kind of evidence, in the order of KINDS."""
    commands = _commands(workspace, features)
    predictability = features.ref if features.settings.get("predictability", True) else None
    refs = {PREDICTABILITY: predictability}
    for kind in _MADE_FROM:
        refs[kind] = next((one.ref for one in made_about(workspace, features, kind)), None)
    return [Evidence(kind, refs[kind], commands[kind]) for kind in KINDS]


def made_about(workspace: Workspace, features: Artifact, kind: str) -> list[Artifact]:
    """The artifacts of a kind that are about these features, newest first."""
    inputs = features.manifest.inputs
    digests = {name: one.digest for name, one in inputs.items()} | {"features": features.manifest.digest}

    def is_about(one: Artifact) -> bool:
        made_from = one.manifest.inputs
        return all(name in made_from and made_from[name].digest == digests[of] for name, of in _MADE_FROM[kind].items())

    return [one for one in reversed(workspace.artifacts(kind)) if is_about(one)]


def _commands(workspace: Workspace, features: Artifact) -> dict[str, str]:
    inputs = features.manifest.inputs
    crosscoder = _present(workspace, "crosscoder", inputs["crosscoder"])
    activations = _present(workspace, "activations", inputs["activations"])
    name = crosscoder.ref if crosscoder else inputs["crosscoder"].label
    measured_on = activations.ref if activations else inputs["activations"].label
    trained_on = crosscoder.manifest.inputs.get("activations") if crosscoder else None
    elsewhere = trained_on is not None and trained_on.digest != inputs["activations"].digest
    # Without it these commands measure on what the crosscoder was trained on.
    which = f"--crosscoder {name}" + (f" --activations {measured_on}" if elsewhere else "")
    return {
        PREDICTABILITY: f"modeldiff features {which} --predictability",
        "stitch": f"modeldiff features stitch --activations {measured_on}",
        "impact": f"modeldiff features impact {which}",
        "explanation": f"modeldiff features explain --features {features.ref}",
        "score": f"modeldiff features score --features {features.ref} --judge openai --judge-model NAME",
        "match": f"modeldiff features match {name} {_comparable(workspace, inputs)}",
        "evaluation": f"modeldiff features evaluate {which}",
    }


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
