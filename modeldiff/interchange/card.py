"""The model card of an artifact, from its manifest alone: what it is, from what, how good, its limits, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeldiff.console import visible
from modeldiff.format import flat
from modeldiff.workspace import Artifact

_WHAT = {
    "crosscoder": "A crosscoder: one sparse dictionary on the activations of two language models.",
    "features": "The features of a crosscoder: how often they fire, where, and in which model they are represented.",
    "contrast": "What two language models say differently, where, and whether it holds on other documents.",
    "stitch": "Affine maps between the activations of two language models.",
}
_LIMITS = {
    "crosscoder": (
        "It reads the residual stream after one block of each model, on texts like those that it was trained on.",
        "An exclusive feature has no analogue that this training found: another one may place it elsewhere.",
        "Its numbers are in its own units: encode raw activations with its own methods.",
    ),
    "features": (
        "They belong to one crosscoder and the texts that were harvested. Excerpts of these texts are inside.",
    ),
    "contrast": ("It holds for these texts, this way of writing on, and this length. Excerpts of texts are inside.",),
}
_OF_CROSSCODER = """import modeldiff

crosscoder = modeldiff.Crosscoder.from_pretrained("{repository}")
f = crosscoder.encode(x_a, x_b)        # raw activations (N, Da), (N, Db) -> (N, F)
x_a_hat, x_b_hat = crosscoder.decode(f)
"""


def card(artifact: Artifact, repository: str) -> str:
    """Markdown. Whatever comes from a manifest stands in code, where it is no markup."""
    manifest = artifact.manifest
    version = manifest.environment.get("packages", {}).get("modeldiff")
    loaded = (
        "" if artifact.kind != "crosscoder" else f"```python\n{_OF_CROSSCODER.format(repository=repository)}```\n\n"
    )
    rows = flat({name: value for name, value in manifest.metrics.items() if value not in ({}, None)})
    inputs = [[name, Path(one.label).name, one.digest[:12]] for name, one in manifest.inputs.items()]
    settings = [[name, value] for name, value in manifest.settings.items() if value not in (None, [])]
    return "\n".join(
        [
            "---",
            "library_name: modeldiff",
            f"tags: [modeldiff, {artifact.kind}, interpretability, model-diffing]",
            "---",
            "",
            f"# {artifact.kind}",
            "",
            _WHAT.get(artifact.kind, f"An artifact of the kind `{artifact.kind}` of modeldiff."),
            f"Made {_code(manifest.created)} with modeldiff {_code(version)}; digest {_code(manifest.digest)}.",
            "",
            "## Load it",
            "",
            f"{loaded}```sh\nmodeldiff pull {repository}\n```",
            "",
            "## Made from",
            "",
            _table(["what", "called", "digest"], inputs),
            "## Quality",
            "",
            _table(["measured", "value"], rows),
            "## Limits",
            "",
            *(f"- {one}" for one in _LIMITS.get(artifact.kind, ("See the documentation of modeldiff.",))),
            "",
            "## Settings",
            "",
            _table(["setting", "value"], settings),
        ]
    )


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_code(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _code(value: Any) -> str:
    text = visible(str(value)).replace("`", "'").replace("|", "/")
    return f"`{text or ' '}`"
