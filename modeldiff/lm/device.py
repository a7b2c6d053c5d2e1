"""The device and the dtype that a user's words mean."""

from __future__ import annotations

import torch

from modeldiff.errors import InputError, MachineError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`: "auto", "cpu", "cuda", "cuda:N" or "mps".

    "auto" takes a CUDA device if there is one, then mps, then the processor. Of several processes on this machine the
    one with number `local_rank` takes the CUDA device of that number (around again where there are fewer devices).
    Raises InputError for an unknown word, MachineError for a device that this machine lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank % torch.cuda.device_count())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, number = name.partition(":")
    valid = (kind in ("cpu", "mps") and not colon) or (kind == "cuda" and (not colon or number.isdecimal()))
    if not valid:
        raise InputError(f"--device expects auto, cpu, cuda, cuda:N or mps, but got '{name}'")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            found = f"{count} CUDA device{'s' * (count > 1)}" if count else "no CUDA device"
            raise MachineError(
                f"cuda:{number or 0} was asked for, but PyTorch finds {found} on this machine: use --device auto or cpu"
            )
        return torch.device("cuda", int(number or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise MachineError("mps was asked for, but PyTorch finds none on this machine: use --device auto or cpu")
    return torch.device(kind)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype a model computes in: "float32", "bfloat16", "float16", or "auto".

    "auto" is bfloat16 on CUDA and float32 elsewhere. Raises InputError for another word.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise InputError(f"--dtype expects auto, {', '.join(_DTYPES)}, but got '{name}'")
    return _DTYPES[name]
