"""A double of a CUDA device for machines without one: `with double() as gpu:`.

Inside, torch finds one device, cuda:0. Its tensors say that they are there, so that code takes its path for CUDA; they
hold their values on the CPU and compute there, by the same kernels. What a device refuses is refused: operands on
different devices, `.numpy()`, a generator of another device, products of integers. What is copied to the CPU without a
wait is garbage until there is one. What makes the program wait for the device, and what the device is given to do, is
counted.

Not covered: CUDA's own kernels and rounding, Triton, memory, streams beside each other, pinned memory that is written
to too early, torch's autograd engine (graph.py stands for it), several devices.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from tests.device.graph import gradients

HERE = torch.device("cuda", 0)
_MEMORY_BYTES = 8 << 30
# Results whose size, or that an error, depends on the values.
_WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive",
    "bincount", "_linalg_check_errors", "multinomial", "_linalg_eigh", "_linalg_svd", "linalg_lstsq",
}  # fmt: skip
_NO_WORK = {
    "_local_scalar_dense", "_unsafe_view", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided",
    "_has_compatible_shallow_copy_type", "is_pinned", "lift_fresh",
}  # fmt: skip
# Of a matrix on the device, CPU indices are taken there; a number may come from anywhere.
_TAKES_INDICES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_TAKES_NUMBERS = {*_TAKES_INDICES, "fill_", "masked_fill", "masked_fill_", "where"}
_PRODUCTS = {"mm", "bmm", "addmm", "addmm_", "baddbmm", "dot", "mv", "addmv"}


class DeviceTensor(torch.Tensor):
    """A tensor on the device; `held`, on the CPU, are its values."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> DeviceTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=HERE
        )
        made.held = held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], *_: Any) -> DeviceTensor:
        return DeviceTensor(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _now().run(func, args, kwargs or {})

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        torch.Tensor.data.__set__(self, other)
        self.held = other.held

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {HERE} device type tensor to numpy: copy it to the CPU first")

    def record_stream(self, *_: Any) -> None: ...

    def __repr__(self, **_: Any) -> str:
        return f"<{HERE} {self.held!r}>"


class DeviceGenerator(torch.Generator):
    """Random numbers of a device. On the double they are those of the CPU."""

    on_device: ClassVar[set[int]] = set()
    """Those of the device: torch hands another object for the same generator to an operation."""

    def __new__(cls, device: torch.device | str = "cpu") -> DeviceGenerator:
        made = super().__new__(cls)
        made.of = torch.device(device)
        (cls.on_device.add if made.of.type == HERE.type else cls.on_device.discard)(made._cdata)
        return made

    @property
    def device(self) -> torch.device:
        return self.of

    def manual_seed(self, seed: int) -> DeviceGenerator:
        super().manual_seed(seed)
        return self


class Double(TorchDispatchMode):
    """What is done on the device.

    Attributes:
        operations: names of the operations that were given to the device, in order: about one kernel each. Views,
            copies from and to the CPU's own memory and memory without values are none.
        waits: names of the operations at which the program waited for the device, each with the line of modeldiff.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        self.waits: list[str] = []
        self._under_way: list[torch.Tensor] = []

    def counted(self) -> tuple[Counter[str], Counter[str]]:
        """Waits and operations so far, by name."""
        return Counter(self.waits), Counter(self.operations)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        leaves = list(_leaves((args, tuple(kwargs.values()))))
        here = [one for one in leaves if isinstance(one, DeviceTensor)]
        if not here and not any(isinstance(one, torch.device) and one.type == HERE.type for one in leaves):
            _same_generator(kwargs, "cpu")
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if _is_composed(func):  # of tensors of inference mode; others' come here in their parts
            with self:
                return func.decompose(*args, **kwargs)
        wanted: torch.device | None = kwargs.get("device")
        leaves_device = bool(here) and wanted is not None and wanted.type == "cpu"
        elsewhere = [one for one in leaves if isinstance(one, torch.Tensor) and not isinstance(one, DeviceTensor)]
        if wanted is None and name not in ("copy_", "copy"):
            self._refuse_mixed(func, name, args, kwargs, elsewhere)
        _same_generator(kwargs, HERE.type)
        if name in _PRODUCTS and not (here[0].is_floating_point() or here[0].is_complex()):
            raise RuntimeError(f'"{name}_cuda" not implemented for {here[0].dtype}')
        waited = self._count(func, name, args, kwargs, leaves_device, elsewhere)
        held_args, held_kwargs = _held(args), {key: _held(value) for key, value in kwargs.items()}
        if wanted is not None:
            held_kwargs["device"] = torch.device("cpu")
        out = (_mm_to if name == "mm" and "dtype" in func._overloadname else func)(*held_args, **held_kwargs)
        if leaves_device or (name == "copy_" and not isinstance(args[0], DeviceTensor)):
            if not waited:
                self._under_way.append(_inverted(out))
            return out
        if name == "_to_copy" and out is held_args[0]:  # torch may not copy where there is one device only
            out = out.clone()
        # In inference mode, too, a view of an ordinary tensor is an ordinary one.
        ordinary = torch.is_inference_mode_enabled() and _is_view(func) and not here[0].is_inference()
        with torch.inference_mode(False) if ordinary else nullcontext():
            out = _on_device(out)
        return return_and_correct_aliasing(func, args, kwargs, out)

    def _refuse_mixed(self, func: Any, name: str, args: Any, kwargs: Any, elsewhere: list[torch.Tensor]) -> None:
        allowed: list[torch.Tensor] = []
        if name in _TAKES_INDICES and isinstance(args[0], DeviceTensor):
            allowed += [one for one in args[1] if isinstance(one, torch.Tensor)]
        if torch.Tag.pointwise in func.tags or name in _TAKES_NUMBERS:
            pairs = zip(func._schema.arguments, args, strict=False)
            written = [given for one, given in pairs if one.alias_info and one.alias_info.is_write]
            written += [kwargs.get("out")]
            allowed += [one for one in elsewhere if one.dim() == 0 and not any(one is other for other in written)]
        for one in elsewhere:
            if not any(one is other for other in allowed):
                raise RuntimeError(
                    f"{name}: expected all tensors to be on the same device, but found at least two devices, {HERE} "
                    f"and cpu ({tuple(one.shape)}, {one.dtype})"
                )

    def _count(
        self, func: Any, name: str, args: Any, kwargs: Any, leaves_device: bool, elsewhere: list[torch.Tensor]
    ) -> bool:
        """Count the operation; whether the program waits for it."""
        if not _is_view(func) and name not in _NO_WORK:
            self.operations.append(name)
        indices = [one for one in args[1] if one is not None] if name in _TAKES_INDICES else []
        by_mask = any(one.dtype == torch.bool for one in indices)
        if name.startswith("index_put") or name == "_index_put_impl_":
            by_mask = by_mask and args[2].numel() != 1  # one number: torch fills, and need not know how many
        sizes = name == "repeat_interleave" and kwargs.get("output_size") is None
        between = name in ("_to_copy", "copy_") and (bool(elsewhere) or leaves_device)
        source = args[1] if name == "copy_" else args[0] if args else None
        pinned = getattr(source, "pinned", False) or isinstance(source, DeviceTensor)
        free = pinned and bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        brought = name in _TAKES_INDICES and any(not isinstance(one, DeviceTensor) for one in indices)
        waits = name in _WAITS or by_mask or sizes or brought or (between and not free)
        if waits:
            self.wait(name)
        return waits

    def wait(self, name: str = "synchronize") -> None:
        while self._under_way:
            _inverted(self._under_way.pop())
        frame = sys._getframe(1)
        while frame.f_back and (f"{_PACKAGE}/" not in frame.f_code.co_filename):
            frame = frame.f_back
        self.waits.append(f"{name} {Path(frame.f_code.co_filename).name}:{frame.f_lineno}")


def _mm_to(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype, out: Any = None) -> torch.Tensor:
    """A product with a wider result, which only CUDA has."""
    made = (left.float() @ right.float()).to(dtype)
    return made if out is None else out.copy_(made)


_PACKAGE = str(Path(__file__).parents[2] / "modeldiff")
_entered: list[Double] = []


def _now() -> Double:
    if not _entered:
        raise RuntimeError("a tensor of the double of a device is used outside of `double()`")
    return _entered[-1]


def _leaves(given: Any) -> Iterator[Any]:
    for one in given:
        if isinstance(one, (list, tuple)):
            yield from _leaves(one)
        else:
            yield one


def _held(given: Any) -> Any:
    if isinstance(given, (list, tuple)):
        return type(given)(map(_held, given))
    return given.held if isinstance(given, DeviceTensor) else given


def _on_device(made: Any) -> Any:
    if isinstance(made, (list, tuple)):
        return type(made)(map(_on_device, made))
    return DeviceTensor(made) if isinstance(made, torch.Tensor) else made


def _inverted(arriving: torch.Tensor) -> torch.Tensor:
    """What is copied to the CPU without a wait is garbage until there is one: its bits the other way round."""
    with torch.inference_mode():
        rows = arriving.view(1) if arriving.dim() == 0 else arriving
        if rows.stride(-1) == 1:
            rows.view(torch.uint8).bitwise_not_()
    return arriving


@cache
def _is_composed(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@cache
def _is_view(func: Any) -> bool:
    return any(one.alias_info and not one.alias_info.is_write for one in func._schema.returns)


def _same_generator(kwargs: dict[str, Any], kind: str) -> None:
    generator = kwargs.get("generator")
    if generator is not None and (generator._cdata in DeviceGenerator.on_device) != (kind == HERE.type):
        raise RuntimeError(f"expected a '{kind}' device type for generator but found another")


def _allow_device() -> None:
    """Let torch's C++ code hold tensors of a device that it was not built for, for the rest of the process. It has an
    implementation that does nothing for builds with CUDA on machines without; a build without CUDA lacks an entry to
    put it in, and any one of no devices serves."""
    library = ctypes.CDLL(next(str(one) for one in (Path(torch.__file__).parent / "lib").glob("libc10.*")))
    slots = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, lazy = 1, 17  # c10::DeviceType
    slots[cuda] = slots[cuda] or slots[lazy]
    torch._C._ensureCUDADeviceGuardSet()


@contextmanager
def double() -> Iterator[Double]:
    """Everything inside, in threads that begin there too, finds one CUDA device."""
    _allow_device()
    gpu, run_thread = Double(), threading.Thread.run
    engine = torch.autograd.grad

    def run_in_thread(thread: threading.Thread) -> None:
        torch._C._set_only_lift_cpu_tensors(True)  # of a thread alone, like the mode
        with gpu:
            run_thread(thread)

    def grad(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        on = isinstance(next(_leaves([outputs])), DeviceTensor)
        return gradients(outputs, *args, **kwargs) if on else engine(outputs, *args, **kwargs)

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        made = tensor.clone()
        made.pinned = True
        return made

    def stream(*_: Any, **__: Any) -> Any:
        """A stream or an event."""
        made = mock.MagicMock(synchronize=gpu.wait, query=lambda: True, elapsed_time=lambda *_: 0.0)
        made.record_event.return_value = made
        return made

    answers = {
        "is_available": True, "is_initialized": True, "_lazy_init": None, "device_count": 1, "current_device": 0,
        "get_device_name": "double", "get_device_capability": (9, 0), "is_bf16_supported": True,
        "mem_get_info": (_MEMORY_BYTES, _MEMORY_BYTES), "memory_allocated": 0, "memory_reserved": 0,
        "max_memory_allocated": 0, "reset_peak_memory_stats": None, "empty_cache": None,
    }  # fmt: skip
    patches: list[tuple[Any, str, Any]] = [
        *((torch.cuda, name, lambda *_, answer=answer: answer) for name, answer in answers.items()),
        *((torch.cuda, name, stream) for name in ("Stream", "Event", "stream", "current_stream")),
        (torch.cuda, "synchronize", lambda *_: gpu.wait()), (threading.Thread, "run", run_in_thread),
        (torch.autograd, "grad", grad), (torch.Tensor, "pin_memory", pin),
        (torch.Tensor, "is_pinned", lambda tensor, *_: getattr(tensor, "pinned", False)),
        (torch, "Generator", DeviceGenerator),
        (_foreach_utils, "_foreach_supported_types", [torch.Tensor, DeviceTensor]),
    ]  # fmt: skip
    with ExitStack() as stack:
        for owner, name, value in patches:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(mock.patch.dict("os.environ", {"MODELDIFF_KERNELS": "torch"}))
        swaps = torch.__future__.get_swap_module_params_on_conversion()
        lifts = torch._C._only_lift_cpu_tensors()
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=...)` makes it on the CPU, then copies
        # A module's weights stay the objects that they are when it goes to the device.
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        torch.__future__.set_swap_module_params_on_conversion(True)
        _entered.append(gpu)
        stack.callback(_entered.remove, gpu)
        stack.enter_context(gpu)
        yield gpu
