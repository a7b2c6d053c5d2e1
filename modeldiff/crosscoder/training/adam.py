"""Adam over a crosscoder's parameters (Kingma & Ba 2015), without weight decay.

By the function that torch.optim.Adam calls, whose state is these plain tensors: audits rearrange them, checkpoints
write them, and a small crosscoder's step is not mostly the optimizer's own bookkeeping.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.optim.adam import adam


@dataclass
class Moments:
    """Of one parameter's gradient: averages of it and of its square, and the steps taken (float32 number)."""

    first: torch.Tensor
    second: torch.Tensor
    step: torch.Tensor


class Adam:
    """Attributes:
    lr: of the next step.
    state: by parameter.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float, betas: tuple[float, float]) -> None:
        self.parameters, self.lr, self._betas = list(parameters), lr, betas
        self.state = {
            one: Moments(torch.zeros_like(one), torch.zeros_like(one), torch.zeros((), device=one.device))
            for one in self.parameters
        }
        self._fused = all(one.device.type in ("cpu", "cuda") for one in self.parameters)

    @torch.no_grad()
    def step(self) -> None:
        """One step by the gradients in `grad`; parameters without one stay."""
        moving = [parameter for parameter in self.parameters if parameter.grad is not None]
        states = [self.state[parameter] for parameter in moving]
        adam(
            moving,
            [parameter.grad for parameter in moving if parameter.grad is not None],
            [state.first for state in states],
            [state.second for state in states],
            [],
            [state.step for state in states],
            foreach=False,
            fused=self._fused,
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=self.lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
