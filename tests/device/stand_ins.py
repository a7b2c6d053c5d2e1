"""What stands for the parts of torch that a build without CUDA lacks: a guard of devices, the table of kernels, and the
autograd engine, which refuses tensors of a device that is not there."""

from __future__ import annotations

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchgen

_TABLE = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"


def allow_device() -> None:
    """Let torch's C++ code hold tensors of a device that it was not built for, for the rest of the process. It has an
    implementation that does nothing for builds with CUDA on machines without; a build without CUDA lacks an entry to
    put it in, and any one of no devices serves."""
    library = ctypes.CDLL(next(str(one) for one in (Path(torch.__file__).parent / "lib").glob("libc10.*")))
    slots = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, lazy = 1, 17  # c10::DeviceType
    slots[cuda] = slots[cuda] or slots[lazy]
    torch._C._ensureCUDADeviceGuardSet()


@cache
def without_kernel() -> frozenset[str]:
    """Operations, with their overloads, that torch has for CPUs and not for CUDA, by the table it is built from."""
    found = set()
    for entry in re.split(r"^- func: ", _TABLE.read_text(), flags=re.MULTILINE)[1:]:
        kinds = set(re.findall(r"\w+", " ".join(re.findall(r"^    ([\w, ]+): ", entry, flags=re.MULTILINE))))
        elsewhere = any(one == "CUDA" or one.startswith("Composite") for one in kinds)
        if "CPU" in kinds and not elsewhere and "structured_delegate" not in entry:
            found.add(entry.partition("(")[0])
    return frozenset(found)


def _from_last(ends: list[Any]) -> list[Any]:
    """The nodes of a graph, each after those that use it."""
    order: dict[Any, None] = {}
    stack = [(end.node, False) for end in ends]
    while stack:
        node, done = stack.pop()
        if done:
            order.setdefault(node)
        elif node not in order:
            stack += [(node, True), *((after, False) for after, _ in node.next_functions if after is not None)]
    return list(reversed(order))


def gradients(
    outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: bool | None = None
) -> tuple[torch.Tensor, ...]:
    """`torch.autograd.grad` by the same nodes of the graph, without torch's engine."""
    outputs, inputs, given = (
        [x] if isinstance(x, torch.Tensor) else list(x or []) for x in (outputs, inputs, grad_outputs)
    )
    ends = [torch.autograd.graph.get_gradient_edge(one) for one in outputs]
    wanted = [torch.autograd.graph.get_gradient_edge(one) for one in inputs]
    received: dict[tuple[Any, int], torch.Tensor] = {}

    def receive(node: Any, at: int, grad: torch.Tensor) -> None:
        if node._input_metadata:
            grad = grad.sum_to_size(node._input_metadata[at].shape)
        received[node, at] = received[node, at] + grad if (node, at) in received else grad

    with torch.no_grad():
        for end, grad in zip(ends, given or [torch.ones_like(one) for one in outputs], strict=True):
            receive(end.node, end.output_nr, grad)
        for node in _from_last(ends):
            into = [received.get((node, at)) for at in range(len(node._input_metadata))]
            if not node.next_functions or all(one is None for one in into):
                continue
            made = node(*into)
            made = made if isinstance(made, tuple) else (made,)
            for (after, at), grad in zip(node.next_functions, made, strict=False):
                if after is not None and grad is not None:
                    receive(after, at, grad)
    return tuple(received[one.node, one.output_nr] for one in wanted)
