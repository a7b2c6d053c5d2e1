"""`modeldiff export`: an artifact in the files of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modeldiff.crosscoder import load
from modeldiff.errors import InputError
from modeldiff.interchange import neuronpedia
from modeldiff.interchange.formats import WRITERS
from modeldiff.workspace import Workspace
from modeldiff.workspace.files import write_json

ABOUT_NAME = "modeldiff.json"
TARGETS = (*WRITERS, "neuronpedia")


def export(workspace: Workspace, ref: str | None, to: str, folder: Path) -> dict[str, Any]:
    """Write a crosscoder (for neuronpedia: features) into a new folder, and modeldiff.json with what it was.

    Returns what modeldiff.json holds: `from`, `to`, how it is loaded, the order of the features.

    Raises:
        InputError: no such artifact, the folder holds something, or the format cannot hold it.
        DamagedError: a file of the artifact is damaged.
    """
    kind = "features" if to == "neuronpedia" else "crosscoder"
    artifact = workspace.find(kind, ref)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not empty: choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    if to == "neuronpedia":
        about = neuronpedia.write(artifact, folder)
    else:
        about = WRITERS[to](load(artifact), folder)
    about = {"from": artifact.ref, "digest": artifact.manifest.digest, "to": to, **about}
    write_json(folder / ABOUT_NAME, about)
    return about
