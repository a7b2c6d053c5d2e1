"""Features for Neuronpedia's upload, `POST /api/feature/upload-batch`: what its handler checks a request against.

A folder for each model, since a source there belongs to one: its features with examples in its own tokens, in files of
at most 128 features: {modelId, source, features: [{index, density, activations: [{tokens, values}]}]}. `index` is the
feature's number. The model and the source set must have been made there before (its Python client does that).
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from modeldiff.catalogue.example import Piece
from modeldiff.catalogue.table import FeatureTable
from modeldiff.errors import InputError
from modeldiff.sides import EXCLUSIVE, OTHER, SIDES
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import write_bytes

# The handler's limits.
_FEATURES, _TOKENS = 128, 1024
_EXAMPLES = 20


def write(features: Artifact, folder: Path) -> dict[str, Any]:
    """Raises InputError: the features have no texts, or none of them ever fired."""
    table = FeatureTable(features)
    if not table.info["has_texts"]:
        raise InputError(f"{features.ref} has no texts, and Neuronpedia shows nothing else: harvest with texts")
    written = {}
    for side in SIDES:
        about = table.info["sides"][side]
        model = re.sub(r"[^a-z0-9.-]+", "-", Path(about["model"] or f"model-{side}").name.lower())
        source = f"{about['layer'] or 0}-modeldiff-{features.ref.replace(':', '-')}-{side}"
        (folder / side).mkdir()
        found = (_feature(table, number, side) for number in range(table.n_features))
        kept = iter([one for one in found if one])
        count = 0
        while some := list(itertools.islice(kept, _FEATURES)):
            content = json.dumps({"modelId": model, "source": source, "features": some}, separators=(",", ":"))
            write_bytes(folder / side / f"batch-{count // _FEATURES:04d}.json", content.encode())
            count += len(some)
        written[side] = {"modelId": model, "source": source, "features": count}
    if not any(one["features"] for one in written.values()):
        raise InputError(f"no feature of {features.ref} has ever fired")
    return {"load": "POST each file to https://neuronpedia.org/api/feature/upload-batch", "written": written}


def _feature(table: FeatureTable, number: int, side: str) -> dict[str, Any] | None:
    """None where this model does not have the feature, or it never fired."""
    row = table.row(number, examples=_EXAMPLES)
    if row.partition == EXCLUSIVE[OTHER[side]]:
        return None
    found = [_activation(f"{one.before}{one.word}{one.after}", one.tokens[side]) for one in row.examples if one.tokens]
    activations = [one for one in found if any(one["values"])]
    return {"index": number, "density": row.density, "activations": activations} if activations else None


def _activation(text: str, tokens: list[Piece]) -> dict[str, list[Any]]:
    """Tokens with the white space before them. One of no characters (of several that make one) would be refused."""
    shown: dict[str, list[Any]] = {"tokens": [], "values": []}
    behind = 0
    for one in tokens[:_TOKENS]:
        at = text.find(one.text, behind)
        if one.text and at >= 0:
            shown["tokens"].append(text[behind:at] + one.text)
            shown["values"].append(float(f"{one.activation:.5g}"))
            behind = at + len(one.text)
    return shown
