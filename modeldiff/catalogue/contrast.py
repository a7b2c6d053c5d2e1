"""Reading a `contrast` artifact."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from modeldiff.workspace import Artifact
from modeldiff.workspace.artifact import check_format
from modeldiff.workspace.files import read_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NAME = "contrast.json"
PLACES = "places.safetensors"
FORMAT = 1


def read_contrast(artifact: Artifact) -> dict[str, Any]:
    """contrast.json (run.py says what it holds). Raises DamagedError: the file is missing or damaged; InputError: it
    was written by a newer modeldiff."""
    path = artifact.file(NAME)
    found: dict[str, Any] = read_json(path)
    check_format(found, path, FORMAT)
    return found


def read_places(artifact: Artifact) -> list[NDArray[np.int32]]:
    """For each entry, the verified ones first as in contrast.json: the numbers of the places where its context holds.
    Raises DamagedError: the file is missing or damaged."""
    from safetensors.numpy import load_file  # the list alone needs no arrays

    arrays = load_file(artifact.file(PLACES))
    offsets = arrays["offsets"].tolist()
    return [arrays["indices"][start:stop] for start, stop in pairwise(offsets)]
