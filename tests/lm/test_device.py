"""Words for devices and number formats."""

import pytest
import torch

from modeldiff.errors import InputError, MachineError
from modeldiff.lm.device import resolve_device, resolve_dtype


def _machine(monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("name", "rank", "cuda", "mps", "expected"),
    [
        ("auto", 0, 2, False, "cuda:0"),
        ("auto", 0, 1, True, "cuda:0"),
        ("auto", 0, 0, True, "mps"),
        ("auto", 0, 0, False, "cpu"),
        # Each process of a machine takes its own device, unless the launcher shows it one only.
        ("auto", 3, 4, False, "cuda:3"),
        ("auto", 3, 1, False, "cuda:0"),
        ("cpu", 1, 2, False, "cpu"),
        ("cuda", 1, 2, False, "cuda:1"),
        ("cuda:1", 0, 2, False, "cuda:1"),
    ],
)
def test_the_device_of_a_word(
    monkeypatch: pytest.MonkeyPatch, name: str, rank: int, cuda: int, mps: bool, expected: str
) -> None:
    _machine(monkeypatch, cuda, mps)
    assert str(resolve_device(name, rank)) == expected


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
    assert resolve_dtype("float16", torch.device("cpu")) is torch.float16
