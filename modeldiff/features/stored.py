"""Reading what features and their measures have stored: a description in JSON, and arrays. Damage is named, with its
mend."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from modeldiff.errors import DamagedError, InputError
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json


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


def read_arrays(artifact: Artifact, name: str) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file of an artifact. Raises DamagedError: it is missing or damaged."""
    path = artifact.file(name)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); {artifact.mend}") from None
