"""Every format: one line each here, one file each beside this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import InputError
from modeldiff.interchange import crosscode, dictionary_learning, saelens, topk
from modeldiff.interchange.dictionary import Dictionary
from modeldiff.interchange.files import Source
from modeldiff.sides import SIDES


@dataclasses.dataclass(frozen=True)
class Format:
    """A library's format: how its files are known, and how they are read, given the widths of the activations."""

    fits: Callable[[Source], bool]
    read: Callable[[Source, tuple[int, int]], Dictionary]


FORMATS = {
    "dictionary_learning": Format(dictionary_learning.fits, lambda source, _: dictionary_learning.read(source)),
    "model_diffing_crosscoders": Format(topk.fits, lambda source, _: topk.read(source)),
    "crosscode": Format(crosscode.fits, lambda source, _: crosscode.read(source)),
    "saelens": Format(saelens.fits, saelens.read_joint),
}
WRITERS: dict[str, Callable[[Crosscoder, Path], dict[str, Any]]] = {
    "dictionary_learning": dictionary_learning.write,
    "saelens": saelens.write,
}


def read(sources: Sequence[Source], widths: tuple[int, int]) -> tuple[str, Dictionary]:
    """The name of the format, and what the files hold. Two sources are SAELens' dictionaries of A and of B.

    Raises:
        InputError: files of no format that is known, or that a crosscoder here cannot hold.
        DamagedError: tensors that do not fit each other, or a config that does not.
    """
    names = [_name_of(source) for source in sources]
    if len(sources) == 1:
        return names[0], FORMATS[names[0]].read(sources[0], widths)
    if set(names) != {"saelens"}:
        raise InputError(f"two sources must be single-model dictionaries of SAELens; found {' and '.join(names)}")
    return "saelens", saelens.read_pair(dict(zip(SIDES, sources, strict=True)))


def _name_of(source: Source) -> str:
    for name, one in FORMATS.items():
        if one.fits(source):
            return name
    found = ", ".join(sorted(source.tensors)[:5]) or "no tensors"
    if {"w_enc_a", "w_dec_b"} <= source.tensors.keys():
        raise InputError(f"{source.name} is a crosscoder of modeldiff: `modeldiff pull` it, or load it from Python")
    raise InputError(f"{source.path} has {found}: none of the formats {', '.join(FORMATS)}")
