"""A BatchTopK crosscoder's training step in plain dense PyTorch, as one would first write it: the baseline.

The same function as the public trainer: features ranked by activation times the sum of both decoders' norms, the mean
of the error's norms as loss.

Legend: B pairs, F features, D = 2 d the two models' widths together.
"""

from __future__ import annotations

import torch
from torch import nn

from tests.benchmarks.start import Start, Step


class DenseCrosscoder(nn.Module):
    """Two linear layers on the two models' activations beside each other."""

    def __init__(self, width: int, features: int, k: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(2 * width, features)
        self.decoder = nn.Linear(features, 2 * width)
        self.k = k

    def forward(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Reconstruction (B, D)."""
        f_BF = torch.relu(self.encoder(x_BD))
        with torch.no_grad():
            w_a_dF, w_b_dF = self.decoder.weight.chunk(2)
            score_BF = f_BF * (w_a_dF.norm(dim=0) + w_b_dF.norm(dim=0))
            kept_K = score_BF.flatten().topk(self.k * len(x_BD), sorted=False).indices
            mask_BF = torch.zeros_like(f_BF).flatten().index_fill_(0, kept_K, 1).view_as(f_BF)
        return self.decoder(f_BF * mask_BF)


def dense_step(start: Start) -> Step:
    """One step: forward, backward, clipping, Adam."""
    sizes = start.sizes
    model = DenseCrosscoder(sizes.width, sizes.features, sizes.k)
    with torch.no_grad():
        model.encoder.weight.copy_(start.enc_FD)
        model.encoder.bias.copy_(start.enc_bias_F)
        model.decoder.weight.copy_(start.dec_FD.T)
        model.decoder.bias.zero_()
    optimizer = torch.optim.Adam(model.parameters(), lr=start.lr)

    def step(x_B2d: torch.Tensor) -> float:
        error_BD = x_B2d.flatten(1) - model(x_B2d.flatten(1))
        loss = error_BD.view_as(x_B2d).norm(dim=2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step
