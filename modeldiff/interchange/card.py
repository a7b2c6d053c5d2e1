"""The model card of an artifact, from its manifest alone: what, from what, how good, its limits, how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeldiff.console import visible
from modeldiff.crosscoder.saving import CONFIG_NAME
from modeldiff.format import flat
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json

_WHAT = {
    "crosscoder": "A crosscoder: one sparse dictionary on the activations of two language models.",
    "features": "The features of a crosscoder: how often they fire, where, and in which model they are represented.",
    "contrast": "What two language models say differently, where, and whether it holds on other documents.",
}
_LIMITS = {
    "crosscoder": "It reads the residual stream after one block of each model (config.json), on such texts. An "
    "exclusive feature has no analogue that this training found; another may place it elsewhere.",
}
_PRIVATE = "Excerpts of the texts that it was made from may be inside."
_LOAD = """
```python
import modeldiff

crosscoder = modeldiff.Crosscoder.from_pretrained("{repository}")
f = crosscoder.encode(x_a, x_b)  # raw activations (N, Da), (N, Db) -> (N, F)
x_a_hat, x_b_hat = crosscoder.decode(f)
```
"""
_CARD = """---
library_name: modeldiff
tags: [modeldiff, {kind}, interpretability, model-diffing]
---

# {kind}

{what} Made {created} with modeldiff; digest {digest}.

## Load it
{load}
```sh
modeldiff pull {repository}
```

## Made from

{inputs}
## Quality

{metrics}
## Limits

{limits}

## Settings

{settings}"""


def card(artifact: Artifact, repository: str) -> str:
    """Markdown. Whatever comes from a manifest stands in code, where it is no markup."""
    manifest, kind = artifact.manifest, artifact.kind
    inputs = [[name, one.label, one.digest[:12]] for name, one in manifest.inputs.items()]
    if kind == "crosscoder":
        config = read_json(artifact.file(CONFIG_NAME))
        inputs += [[f"model {s.upper()}", config[f"model_{s}"], f"after block {config[f'layer_{s}']}"] for s in SIDES]
    metrics = flat({name: value for name, value in manifest.metrics.items() if value not in ({}, None)})
    settings = [[name, value] for name, value in manifest.settings.items() if value not in (None, [])]
    return _CARD.format(
        kind=kind,
        repository=repository,
        what=_WHAT.get(kind, f"An artifact of modeldiff of the kind `{kind}`."),
        created=_code(manifest.created),
        digest=_code(manifest.digest),
        load=_LOAD.format(repository=repository) if kind == "crosscoder" else "",
        inputs=_table(["what", "called", "digest or place"], inputs),
        metrics=_table(["measured", "value"], metrics),
        limits=_LIMITS.get(kind, _PRIVATE),
        settings=_table(["setting", "value"], settings),
    )


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_code(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _code(value: Any) -> str:
    """Of a path on the machine where it was made, the last part."""
    if isinstance(value, list):
        return ", ".join(map(_code, value))
    text = (
        visible(Path(str(value)).name if str(value).startswith("/") else str(value)).replace("`", "'").replace("|", "/")
    )
    return f"`{text or ' '}`"
