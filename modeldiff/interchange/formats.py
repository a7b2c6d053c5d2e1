"""Every format: one line each here, one file each beside this one. What reads them, and what writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modeldiff.crosscoder import Crosscoder, load
from modeldiff.errors import InputError
from modeldiff.interchange import crosscode, dictionary_learning, neuronpedia, saelens, topk
from modeldiff.interchange.dictionary import Dictionary
from modeldiff.interchange.files import Source
from modeldiff.sides import SIDES
from modeldiff.workspace import Workspace
from modeldiff.workspace.files import write_json

FORMATS: dict[str, tuple[Callable[[Source], bool], Callable[[Source, tuple[int, int]], Dictionary]]] = {
    "dictionary_learning": (dictionary_learning.fits, lambda source, _: dictionary_learning.read(source)),
    "model_diffing_crosscoders": (topk.fits, lambda source, _: topk.read(source)),
    "crosscode": (crosscode.fits, lambda source, _: crosscode.read(source)),
    "saelens": (saelens.fits, saelens.read_joint),
}
"""By name, how its files are known, and how they are read, given the widths of the activations."""
WRITERS: dict[str, Callable[[Crosscoder, Path], dict[str, Any]]] = {
    "dictionary_learning": dictionary_learning.write,
    "saelens": saelens.write,
}


ABOUT_NAME = "modeldiff.json"


def read(sources: Sequence[Source], widths: tuple[int, int]) -> tuple[str, Dictionary]:
    """The name of the format, and what the files hold. Two sources are SAELens' dictionaries of A and of B.

    Raises:
        InputError: files of no format that is known, or that a crosscoder here cannot hold.
        DamagedError: tensors that do not fit each other, or a config that does not.
    """
    names = [_name_of(source) for source in sources]
    if len(sources) == 1:
        return names[0], FORMATS[names[0]][1](sources[0], widths)
    if set(names) != {"saelens"}:
        raise InputError(f"two sources must be single-model dictionaries of SAELens; found {' and '.join(names)}")
    return "saelens", saelens.read_pair(dict(zip(SIDES, sources, strict=True)))


def _name_of(source: Source) -> str:
    for name, (fits, _) in FORMATS.items():
        if fits(source):
            return name
    found = ", ".join(sorted(source.tensors)[:5]) or "no tensors"
    if {"w_enc_a", "w_dec_b"} <= source.tensors.keys():
        raise InputError(f"{source.name} is a crosscoder of modeldiff: `modeldiff pull` it, or load it from Python")
    raise InputError(f"{source.path} has {found}: none of the formats {', '.join(FORMATS)}")


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
