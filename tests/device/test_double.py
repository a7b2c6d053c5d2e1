"""The double refuses what a device refuses, computes what the CPU computes, and counts waits and operations."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.device.double import DeviceTensor, Double, double

pytestmark = pytest.mark.usefixtures("gpu")


def on(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, device="cuda")


@pytest.mark.parametrize(
    "fault",
    [
        lambda: on(3) + torch.ones(3),
        lambda: torch.mm(torch.ones(2, 2), on(2, 2)),
        lambda: on(3).add_(torch.ones(3)),
        lambda: torch.ones(()).add_(on(1).sum()),
        lambda: torch.cat([on(1), torch.ones(1)]),
        lambda: torch.stack([on(1).sum(), torch.ones(())]),
        lambda: torch.ones(3)[torch.zeros(1, dtype=torch.long, device="cuda")],
        lambda: on(3).index_select(0, torch.zeros(1, dtype=torch.long)),
        lambda: on(3).index_add_(0, torch.zeros(1, dtype=torch.long), on(1)),
        lambda: nn.Linear(2, 2)(on(1, 2)),
        lambda: torch.mm(on(2, 2), on(2, 2), out=torch.ones(2, 2)),
        lambda: setattr(nn.Parameter(on(2)), "grad", torch.ones(2)),
        lambda: torch.where(on(3) > 0, on(3), torch.ones(3)),
        lambda: on(2, 2).long() @ on(2, 2).long(),
        lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
        lambda: torch.rand(2, generator=torch.Generator("cuda")),
        lambda: torch.histogram(on(3), 2),
        lambda: on(3).numpy(),
        lambda: np.asarray(on(3)),
        lambda: np.add(on(3), 1),
        lambda: torch.from_numpy(np.ones(3)).copy_(on(3)).numpy() + on(3),
    ],
)
@pytest.mark.parametrize("thread", [False, True])
def test_a_planted_fault_is_refused(fault: Callable[[], Any], thread: bool) -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises((RuntimeError, TypeError)):
        pool.submit(fault).result() if thread else fault()


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (lambda: on(3) * torch.tensor(2.0), [2.0, 2.0, 2.0]),
        (lambda: on(3)[torch.tensor([0, 2])], [1.0, 1.0]),
        (lambda: torch.where(on(2) > 0, on(2), torch.tensor(5.0)), [1.0, 1.0]),
        (lambda: on(3).copy_(torch.zeros(3)), [0.0, 0.0, 0.0]),
        (lambda: torch.zeros_like(torch.ones(2), device="cuda"), [0.0, 0.0]),
        (lambda: torch.tensor([1.0, 2.0], device="cuda")[[1], None], [[2.0]]),
        (lambda: nn.Linear(2, 2).to("cuda")(on(1, 2)).detach() * 0, [[0.0, 0.0]]),
    ],
)
def test_what_a_device_allows_gives_a_tensor_there(allowed: Callable[[], torch.Tensor], expected: Any) -> None:
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            made = allowed()
        assert (made.device, made.is_cuda) == (torch.device("cuda:0"), True)
        assert made.tolist() == expected


def test_views_share_their_memory_and_gradients_are_those_of_autograd() -> None:
    x = on(3, 2)
    x[1:].mul_(2)[0, 0] = 7
    assert x.tolist() == [[1, 1], [7, 2], [2, 2]]
    w = torch.arange(4.0).view(2, 2)
    made = []
    for device in ("cpu", "cuda"):
        leaf = w.to(device).clone().requires_grad_()
        loss = (x.to(device) @ leaf + leaf[:1]).relu().square().sum()
        made.append(torch.autograd.grad(loss, leaf)[0].tolist())
    assert made[0] == made[1]


def test_modules_keep_their_parameters_when_they_move() -> None:
    module = nn.Linear(2, 2)
    weight = module.weight
    assert isinstance(module.to("cuda").weight, DeviceTensor)
    assert isinstance(module.weight, nn.Parameter)
    assert module.weight is weight
    assert type(module.to("cpu").weight.data) is torch.Tensor


@pytest.mark.parametrize(
    ("waits", "work"),
    [
        (1, lambda x: x.sum().item()),
        (1, lambda x: float(x[0, 0])),
        (1, lambda x: bool((x > 0).all())),
        (1, lambda x: x.tolist()),
        (1, lambda x: x.cpu()),
        (1, lambda x: (x > 0).nonzero()),
        (1, lambda x: x[x > 0]),
        (0, lambda x: x.masked_fill(x > 0, 0)),
        (0, lambda x: x.clone().index_put_((x > 0,), torch.tensor(0.0))),
        (1, lambda x: torch.equal(x, x)),
        (1, lambda x: x.masked_select(x > 0)),
        (1, lambda x: x.unique()),
        (1, lambda _: torch.tensor([1.0], device="cuda")),
        (1, lambda _: torch.ones(2).to("cuda", non_blocking=True)),
        (0, lambda _: torch.ones(2).pin_memory().to("cuda", non_blocking=True)),
        (1, lambda x: torch.arange(2, device="cuda").repeat_interleave(x[0].long())),
        (0, lambda x: torch.arange(2, device="cuda").repeat_interleave(x[0].long(), output_size=2)),
        (1, lambda x: torch.linalg.cholesky(x @ x.T + torch.eye(2, device="cuda"))),
        (1, lambda _: torch.cuda.synchronize()),
        (0, lambda x: (x @ x).topk(1).values),
    ],
)
def test_waits_are_counted(gpu: Double, waits: int, work: Callable[[torch.Tensor], Any]) -> None:
    x = on(2, 2)
    work(x)
    assert len(gpu.waits) == waits, gpu.waits


def test_operations_are_counted_and_views_are_none(gpu: Double) -> None:
    x = on(4, 2)
    before = len(gpu.operations)
    x.T[:1].view(-1).add(1).mul_(2)
    assert gpu.operations[before:] == ["add", "mul_"]


@pytest.mark.parametrize("wait", [lambda: torch.cuda.synchronize(), lambda: on(1).item()])
def test_a_copy_that_nobody_waited_for_is_garbage(wait: Callable[[], Any]) -> None:
    x, kept = on(2, 3), torch.zeros(4, 3).pin_memory()
    made = x.to("cpu", non_blocking=True)
    kept[:2].copy_(x, non_blocking=True)
    assert not (made == 1).any()
    assert not (kept[:2] == 1).any()
    wait()
    assert (made == 1).all()
    assert kept.tolist() == [[1.0] * 3] * 2 + [[0.0] * 3] * 2


def test_outside_there_is_no_device() -> None:
    with double():
        left = on(2)
    assert left.device.type == "cuda"
    with double() as gpu:
        assert (left + 1).tolist() == [2, 2]
    assert gpu.operations == ["add", "_to_copy"]
