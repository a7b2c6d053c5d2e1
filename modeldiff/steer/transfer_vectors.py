"""Directions from a file: one array (D,) or (N, D) in a .npy or .safetensors file. Nothing in it can execute code.

Legend: N directions, D width of the model they belong to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modeldiff.errors import DamagedError, InputError


def read_vectors(path: Path, width: int, model: str) -> Tensor:
    """The directions (N, D) float32.

    Args:
        path: `FILE`, or `FILE:KEY` for a safetensors file with several tensors.
        width: of the model's residual stream.
        model: its letter, for messages.

    Raises:
        InputError: no such file, a pickle, or an array of another shape, of whole numbers, not finite, or without
            length.
        DamagedError: the file cannot be read.
    """
    path, key = _split(path)
    if not path.is_file():
        raise InputError(f"--vector: there is no file {path}")
    if path.suffix == ".npy":
        if key:
            raise InputError(f"--vector: {path} holds one array: leave out ':{key}'")
        array = _read_npy(path)
    elif path.suffix == ".safetensors":
        array = _read_safetensors(path, key)
    else:
        raise InputError(f"--vector: {path} ends in '{path.suffix}': expected .npy or .safetensors")
    if not array.is_floating_point():
        raise InputError(f"--vector: {path} has type {array.dtype}: expected floating-point numbers")
    if array.ndim not in (1, 2) or array.shape[-1] != width or not array.numel():
        raise InputError(
            f"--vector: {path} has shape {tuple(array.shape)}: expected ({width},) or (N, {width}), the width of "
            f"model {model}"
        )
    vectors_ND = array.reshape(-1, width).float()
    if not vectors_ND.isfinite().all():
        raise InputError(f"--vector: {path} holds values that are not finite")
    if not (vectors_ND.norm(dim=1) > 0).all():
        raise InputError(f"--vector: {path} holds a vector of zeros, which has no direction")
    return vectors_ND


def _split(path: Path) -> tuple[Path, str | None]:
    if path.exists():
        return path, None
    head, colon, key = str(path).rpartition(":")
    return (Path(head), key) if colon and Path(head).is_file() else (path, None)


def _read_npy(path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        if "pickle" in str(error):
            raise InputError(f"--vector: {path} holds pickled objects, which are not read: save an array") from None
        raise DamagedError(f"{path}: cannot be read as .npy ({error})") from None
    if array.dtype.kind != "f":
        raise InputError(f"--vector: {path} has type {array.dtype}: expected floating-point numbers")
    return torch.from_numpy(array.astype(np.float32))


def _read_safetensors(path: Path, key: str | None) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if key is None and len(names) != 1:
                raise InputError(
                    f"--vector: {path} holds {len(names)} tensors: choose one as {path}:KEY"
                    + (f" (there is {', '.join(names[:6])})" if names else "")
                )
            if key is not None and key not in names:
                raise InputError(f"--vector: {path} has no tensor '{key}' (there is {', '.join(names[:6])})")
            found: Tensor = file.get_tensor(key or names[0])
            return found
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: cannot be read as safetensors, it may be truncated ({error})") from None
