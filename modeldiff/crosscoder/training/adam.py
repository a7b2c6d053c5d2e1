"""Adam over a crosscoder's parameters, by torch's fused kernel.

torch.optim.Adam calls the same kernel, but its first use imports torch's compiler: nearly two seconds and some 75 MiB
for every training, however short.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adam import adam

from modeldiff.crosscoder.fast.rooms import lasting


class Adam:
    """Adam without weight decay (Kingma & Ba 2015), in the form of torch.optim.Adam as far as it is used here.

    Attributes:
        param_groups: one, with "params" and "lr".
        state: by parameter, `step` (float32 number) and the moments `exp_avg`, `exp_avg_sq`; made at the first step.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, betas: tuple[float, float]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.state: defaultdict[torch.Tensor, dict[str, torch.Tensor]] = defaultdict(dict)
        self._betas = betas

    def start(self, parameter: torch.Tensor) -> None:
        """Give a parameter the state that it has before its first step."""
        shape, dtype, device = parameter.shape, parameter.dtype, parameter.device
        moments = {name: lasting(shape, dtype, device).zero_() for name in ("exp_avg", "exp_avg_sq")}
        self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}

    @torch.no_grad()
    def step(self) -> None:
        """One step by the gradients in `grad`; parameters without one stay."""
        (group,) = self.param_groups
        moving = [parameter for parameter in group["params"] if parameter.grad is not None]
        for parameter in moving:
            if not self.state[parameter]:
                self.start(parameter)
        states = [self.state[parameter] for parameter in moving]
        firsts, seconds, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
        gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
        settings: dict[str, Any] = {
            "amsgrad": False,
            "beta1": self._betas[0],
            "beta2": self._betas[1],
            "lr": group["lr"],
            "weight_decay": 0.0,
            "eps": 1e-8,
            "maximize": False,
        }
        if all(parameter.device.type in ("cpu", "cuda") for parameter in moving):
            # What `adam` comes to on one device, after checks that take longer than the step of a small crosscoder.
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(moving, gradients, firsts, seconds, [], steps, **settings)
        else:
            adam(moving, gradients, firsts, seconds, [], steps, foreach=False, **settings)
