"""Reading a `contrast` artifact."""

from __future__ import annotations

from typing import Any

from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json
from modeldiff.workspace.manifest import check_format

NAME = "contrast.json"
FORMAT = 1


def read_contrast(artifact: Artifact) -> dict[str, Any]:
    """contrast.json (run.py says what it holds).

    Raises:
        DamagedError: the file is missing or damaged.
        InputError: it was written by a newer modeldiff.
    """
    path = artifact.file(NAME)
    found: dict[str, Any] = read_json(path)
    check_format(found, path, FORMAT)
    return found
