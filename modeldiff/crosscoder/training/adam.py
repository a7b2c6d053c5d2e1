"""Adam, with the gradient's norm clipped."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim.adam import adam

from modeldiff.crosscoder.model import Crosscoder

_BETAS = (0.9, 0.999)


class Adam:
    """Adam (Kingma & Ba 2015), by the function that torch.optim.Adam calls, whose bookkeeping takes longer than a small
    crosscoder's step. `state` holds `exp_avg`, `exp_avg_sq` and `step` of each parameter.

    Args:
        clip: the norm that gradients are scaled down to.

    Attributes:
        scales: whether Adam itself scales gradients while it reads them. On the CPU they are scaled before it, which
            rounds otherwise.
    """

    def __init__(self, crosscoder: Crosscoder, clip: float) -> None:
        self.state: dict[nn.Parameter, dict[str, torch.Tensor]] = {}
        for one in crosscoder.parameters():
            moments = {name: torch.zeros_like(one.data) for name in ("exp_avg", "exp_avg_sq")}
            self.state[one] = {**moments, "step": torch.zeros((), device=one.device)}
        device = crosscoder.b_enc.device.type
        self.scales, self._clip, self._fused = device == "cuda", clip, device in ("cpu", "cuda")

    @torch.no_grad()
    def step(self, lr: float, norm: torch.Tensor | None = None) -> None:
        """`norm`: that of all gradients (0-d), if they are to be scaled down; they are overwritten then."""
        scale = None
        if norm is not None and self.scales:
            scale = (norm + 1e-6) / self._clip  # what is added is as in torch's function
        elif norm is not None:
            clip_grads_with_norm_(self.state, self._clip, norm)
        firsts, seconds, steps = ([one[at] for one in self.state.values()] for at in ("exp_avg", "exp_avg_sq", "step"))
        grads = [one.grad for one in self.state if one.grad is not None]
        adam(
            list(self.state), grads, firsts, seconds, [], steps,
            foreach=False, fused=self._fused, grad_scale=scale, amsgrad=False, beta1=_BETAS[0], beta2=_BETAS[1], lr=lr,
            weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip
