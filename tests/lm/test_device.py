"""Words for devices and number formats."""

from __future__ import annotations

import pytest
import torch

from modeldiff.errors import InputError, MachineError
from modeldiff.lm.device import resolve_device, resolve_dtype


def _machine(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(2, False, "cuda:0"), (1, True, "cuda:0"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_the_best_device_there_is(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, expected: str
) -> None:
    _machine(monkeypatch, cuda, mps)
    assert str(resolve_device("auto")) == expected


def test_each_process_of_a_machine_takes_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, 4)
    assert [str(resolve_device("auto", rank)) for rank in (0, 1, 3)] == ["cuda:0", "cuda:1", "cuda:3"]
    # A launcher that shows each process one device only.
    _machine(monkeypatch, 1)
    assert str(resolve_device("auto", 3)) == "cuda:0"


def test_a_named_device_is_taken_as_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(monkeypatch, 2)
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(("name", "cuda"), [("cuda", 0), ("cuda:2", 2), ("mps", 0)])
def test_a_missing_device_is_an_error_that_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, name: str, cuda: int
) -> None:
    _machine(monkeypatch, cuda)
    with pytest.raises(MachineError, match=f"^{name}.* use --device auto or cpu$"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "mps:1", ""])
def test_an_unknown_device_word_is_the_users_mistake(name: str) -> None:
    with pytest.raises(InputError, match="--device expects"):
        resolve_device(name)


def test_auto_dtype_is_bfloat16_on_cuda_and_float32_elsewhere() -> None:
    assert resolve_dtype("auto", torch.device("cuda", 0)) is torch.bfloat16
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32
    assert resolve_dtype("auto", torch.device("mps")) is torch.float32
    assert resolve_dtype("float16", torch.device("cpu")) is torch.float16
    with pytest.raises(InputError, match="--dtype expects auto, float32, bfloat16, float16, but got 'fp8'"):
        resolve_dtype("fp8", torch.device("cpu"))
