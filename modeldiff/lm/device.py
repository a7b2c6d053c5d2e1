"""The device and the dtype that a user's words mean, and the ways to a device and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from modeldiff.errors import InputError, MachineError


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`: "cpu", "cuda", "cuda:N", "mps", or "auto": a CUDA device if there is one, then mps,
    then the processor. With "auto" and "cuda" each of several processes on this machine takes the CUDA device of its
    number, `local_rank` (around again where there are fewer). Raises InputError for an unknown word, MachineError for a
    device that this machine lacks."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cuda": cuda, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        kind = next(kind for kind, count in there.items() if count)
        number = local_rank % there[kind]
    elif name == "cuda" and cuda:
        kind, number = name, local_rank % cuda
    elif re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        kind, _, digits = name.partition(":")
        number = int(digits or 0)
    else:
        raise InputError(f"--device expects auto, cpu, cuda, cuda:N or mps, but got '{name}'")
    if number >= there[kind]:
        raise MachineError(
            f"{name} was asked for, but PyTorch finds {there[kind] or 'no'} {kind} "
            f"device{'s' * (there[kind] > 1)} on this machine: use --device auto or cpu"
        )
    return torch.device(kind, number) if kind == "cuda" else torch.device(kind)


def device_and_dtype(settings: Any, local_rank: int = 0) -> tuple[torch.device, torch.dtype, dict[str, str]]:
    """The device and the dtype that the settings ask for, and both by name, as manifests have them."""
    device = resolve_device(settings.device, local_rank)
    dtype = resolve_dtype(settings.dtype, device)
    return device, dtype, {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype a model computes in: "float32", "bfloat16", "float16", or "auto", which is bfloat16 on CUDA and float32
    elsewhere. The settings refuse other words."""
    auto = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, auto if name == "auto" else name)
    return dtype


def onto(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device. From the main memory to a GPU it goes through pinned memory: nobody waits for what the GPU was
    given to do before."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def fetched(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Begin to copy tensors, all of one device, to the main memory; the function given waits until they are there.
    From a GPU they come through pinned memory, when what the GPU was given to do before is done."""
    device = tensors[0].device
    if device.type != "cuda":
        return lambda: [one.cpu() for one in tensors]
    pinned = [one.to("cpu", non_blocking=True) for one in tensors]
    # Whoever waits for this event sleeps, and leaves its core to others.
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(device))

    def wait() -> list[Tensor]:
        copied.synchronize()
        return pinned

    return wait
