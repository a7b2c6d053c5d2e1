"""Means over the last pairs of a text: what lasts along it stands out from what changes with every word.

Legend: N rows (pairs in the order of the text), D width.
"""

from __future__ import annotations

import torch


def running_mean(x_ND: torch.Tensor, over: int) -> torch.Tensor:
    """(N, D) float64: row i is the mean of rows i - over + 1 to i, of fewer at the beginning; one text's rows."""
    sum_ND = x_ND.double().cumsum(dim=0)
    mean_ND = sum_ND.clone()
    mean_ND[over:] -= sum_ND[:-over]
    count_N = torch.arange(1, len(x_ND) + 1, dtype=torch.float64, device=x_ND.device).clamp(max=over)
    return mean_ND / count_N[:, None]
