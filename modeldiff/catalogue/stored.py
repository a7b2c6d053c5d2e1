"""What features and their measures store: file names, a description in JSON, arrays. Damage is named, with its mend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from modeldiff.errors import DamagedError, InputError
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json, temporary_path
from modeldiff.workspace.kept import is_sound, keep

# A features artifact: its layout is in run.py.
FORMAT = 6
FEATURES_NAME = "features.json"
STATISTICS_NAME = "statistics.safetensors"
TWINS_NAME = "twins.safetensors"
EXAMPLES_NAME = "examples.h5"
HISTOGRAM_NAME = "histogram.safetensors"
# Histograms tell so many text sources apart, and count the rest as the last one.
SOURCES = 8
BINS = 32

Arrays = dict[str, NDArray[Any]]


def bin_edges() -> NDArray[np.float32]:
    """(BINS + 1,) where the bins of activations begin and end, in normalised feature units: each half an octave, from
    1/16 on. What is smaller or larger is in the first or the last one."""
    return (2.0 ** (np.arange(BINS + 1) / 2 - 4)).astype(np.float32)


def read_info(artifact: Artifact, name: str, *, version: int, again: str) -> dict[str, Any]:
    """The description `name` of an artifact.

    Args:
        version: the format that is read.
        again: the command that makes the artifact anew, for one of an older format.

    Raises:
        InputError: written by a newer or by an older modeldiff.
        DamagedError: it is missing or damaged.
    """
    path = artifact.file(name)
    info = read_json(path)
    found = info.get("format")
    if isinstance(found, int) and found > version:
        raise InputError(f"{path}: format {found} is newer than this modeldiff reads ({version}): upgrade modeldiff")
    if isinstance(found, int) and found < version:
        raise InputError(
            f"{artifact.ref} was made by an older modeldiff (format {found}, this one reads {version}): make it again "
            f"with `{again}`"
        )
    return info


def read_arrays(artifact: Artifact, name: str) -> Arrays:
    """The arrays of a safetensors file of an artifact. Raises DamagedError: it is missing or damaged."""
    path = artifact.file(name)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); {artifact.mend}") from None


def read_one(artifact: Artifact, name: str, array: str, feature: int) -> NDArray[Any]:
    """What an array of a safetensors file, by feature, holds of one. Raises DamagedError: it is missing or damaged."""
    path = artifact.file(name)
    try:
        with safe_open(path, "numpy") as file:
            found: NDArray[Any] = file.get_slice(array)[feature]
            return found
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); {artifact.mend}") from None


def save_arrays(path: Path, arrays: Arrays) -> None:
    """Keep arrays as safetensors: the file is whole or absent, and has its digest beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    save_file(arrays, temporary)
    keep(temporary, path)


def kept(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, from a file: a run that continues after an interruption does not make it again."""
    if not is_sound(path):
        save_arrays(path, make())
    return dict(load_file(path))
