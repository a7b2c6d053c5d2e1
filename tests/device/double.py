"""A double of a CUDA device for machines without one: `with double() as gpu:`.

Inside, torch finds one device, cuda:0. Its tensors say that they are there, so that code takes its path for CUDA; they
hold their values on the CPU and compute there, by the same kernels. What a device refuses is refused: operands on
different devices, `.numpy()`, a generator of another device, products of integers, operations that CUDA has no kernel
for. What is copied to the CPU without a wait is garbage until there is one. What makes the program wait for the device,
and what the device is given to do, is counted.

Not covered: CUDA's own kernels and rounding, Triton, memory, streams beside each other, pinned memory that is written
to too early, torch's autograd engine (stand_ins.py), several devices.
"""

from __future__ import annotations

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

from tests.device.stand_ins import allow_device, gradients, without_kernel

HERE = torch.device("cuda", 0)
_MEMORY_BYTES = 8 << 30
_PACKAGE = str(Path(__file__).parents[2] / "modeldiff")
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
        if _is_composed(func):  # of tensors of inference mode; others' come here in their parts
            with self:
                return func.decompose(*args, **kwargs)
        return self._done(func, args, kwargs, leaves, here)

    def _done(self, func: Any, args: Any, kwargs: dict[str, Any], leaves: list[Any], here: list[DeviceTensor]) -> Any:
        name = func.overloadpacket.__name__
        elsewhere = [one for one in leaves if isinstance(one, torch.Tensor) and not isinstance(one, DeviceTensor)]
        _refuse(func, name, args, kwargs, here, elsewhere)
        if not _is_view(func) and name not in _NO_WORK:
            self.operations.append(name)
        leaves_device = _leaves_device(name, args, kwargs, here)
        crosses = name in ("_to_copy", "copy_") and (bool(elsewhere) or leaves_device)
        waits = _must_wait(name, args, kwargs) if crosses else _depends_on_values(name, args, kwargs)
        if waits:
            self.wait(name)
        held = {key: _held(value) for key, value in kwargs.items()}
        held |= {"device": torch.device("cpu")} if "device" in kwargs else {}
        out = (_mm_to if name == "mm" and "dtype" in func._overloadname else func)(*_held(args), **held)
        if not leaves_device:
            return _wrapped(func, args, kwargs, here, out)
        if not waits:
            self._under_way.append(_inverted(out))
        return out

    def wait(self, name: str = "synchronize") -> None:
        while self._under_way:
            _inverted(self._under_way.pop())
        frame = sys._getframe(1)
        while frame.f_back and (f"{_PACKAGE}/" not in frame.f_code.co_filename):
            frame = frame.f_back
        self.waits.append(f"{name} {Path(frame.f_code.co_filename).name}:{frame.f_lineno}")


_entered: list[Double] = []


def _now() -> Double:
    if not _entered:
        raise RuntimeError("a tensor of the double of a device is used outside of `double()`")
    return _entered[-1]


def _refuse_mixed(func: Any, name: str, args: Any, kwargs: Any, elsewhere: list[torch.Tensor]) -> None:
    allowed: list[torch.Tensor] = []
    if name in _TAKES_INDICES and isinstance(args[0], DeviceTensor):
        allowed += [one for one in args[1] if isinstance(one, torch.Tensor)]
    if torch.Tag.pointwise in func.tags or name in _TAKES_NUMBERS:
        pairs = zip(func._schema.arguments, args, strict=False)
        written = [given for one, given in pairs if one.alias_info and one.alias_info.is_write] + [kwargs.get("out")]
        allowed += [one for one in elsewhere if one.dim() == 0 and id(one) not in map(id, written)]
    for one in elsewhere:
        if id(one) not in map(id, allowed):
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, but found at least two devices, {HERE} "
                f"and cpu ({tuple(one.shape)}, {one.dtype})"
            )


def _refuse(
    func: Any, name: str, args: Any, kwargs: Any, here: list[DeviceTensor], elsewhere: list[torch.Tensor]
) -> None:
    if kwargs.get("device") is None and name not in ("copy_", "copy"):
        _refuse_mixed(func, name, args, kwargs, elsewhere)
    _same_generator(kwargs, HERE.type)
    if name in _PRODUCTS and not (here[0].is_floating_point() or here[0].is_complex()):
        raise RuntimeError(f'"{name}_cuda" not implemented for {here[0].dtype}')
    if func.name().removeprefix("aten::") in without_kernel():
        raise NotImplementedError(f"{func.name()}: there is no kernel for CUDA")


def _leaves_device(name: str, args: Any, kwargs: Any, here: list[DeviceTensor]) -> bool:
    """Whether the result is on the CPU."""
    if name == "copy_":
        return not isinstance(args[0], DeviceTensor)
    wanted = kwargs.get("device")
    return bool(here) and wanted is not None and wanted.type == "cpu"


def _wrapped(func: Any, args: Any, kwargs: Any, here: list[DeviceTensor], out: Any) -> Any:
    if func.overloadpacket.__name__ == "_to_copy" and out is _held(args[0]):
        out = out.clone()  # torch may not copy where there is one device only
    # In inference mode, too, a view of an ordinary tensor is an ordinary one.
    ordinary = torch.is_inference_mode_enabled() and _is_view(func) and not here[0].is_inference()
    with torch.inference_mode(False) if ordinary else nullcontext():
        out = _on_device(out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _depends_on_values(name: str, args: Any, kwargs: Any) -> bool:
    """Whether the program waits because the size of the result, or an error, depends on values."""
    if name in _TAKES_INDICES:
        indices = [one for one in args[1] if one is not None]
        by_mask = any(one.dtype == torch.bool for one in indices)
        # One number under a mask: torch fills, and need not know how many.
        fills = name.lstrip("_").startswith("index_put") and args[2].numel() == 1
        return (by_mask and not fills) or not all(isinstance(one, DeviceTensor) for one in indices)
    return name in _WAITS or (name == "repeat_interleave" and kwargs.get("output_size") is None)


def _must_wait(name: str, args: Any, kwargs: Any) -> bool:
    """Whether the program waits for a copy between the devices: unless told not to, and from or to pageable memory."""
    source = args[1] if name == "copy_" else args[0]
    told = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
    return not told or not (isinstance(source, DeviceTensor) or getattr(source, "pinned", False))


def _mm_to(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype, out: Any = None) -> torch.Tensor:
    """A product with a wider result, which only CUDA has."""
    made = (left.float() @ right.float()).to(dtype)
    return made if out is None else out.copy_(made)


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


@contextmanager
def double() -> Iterator[Double]:
    """Everything inside, in threads that begin there too, finds one CUDA device."""
    allow_device()
    gpu, run_thread, engine = Double(), threading.Thread.run, torch.autograd.grad

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
        "set_device": None,
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
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=...)` makes it on the CPU, then copies
        # A module's weights stay the objects that they are when it goes to the device.
        swap = torch.__future__.set_swap_module_params_on_conversion
        stack.callback(swap, torch.__future__.get_swap_module_params_on_conversion())
        swap(True)
        _entered.append(gpu)
        stack.callback(_entered.remove, gpu)
        stack.enter_context(gpu)
        yield gpu
