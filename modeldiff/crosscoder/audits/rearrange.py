"""Moving features between the partitions of a crosscoder in training, with their share of Adam's state.

Legend: F features, Fs features that one side has, D width of one model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.training.adam import Adam
from modeldiff.sides import SIDES

FRESH = -1
"""In place of a feature's number: a new one, with zero weights and moments."""


def rearrange(crosscoder: Crosscoder, optimizer: Adam, order: Mapping[str, Sequence[int]]) -> torch.Tensor:
    """Give the crosscoder new partitions of the same total size.

    What a feature has on a side it keeps; on a side that it did not have before it starts with zero weights. The
    parameters are new objects; the optimizer is told. Returns (F,), for every feature its former number, or FRESH.

    Args:
        order: by partition ("A", "shared", "B"), the numbers of the features that it shall hold, FRESH for new ones.
    """
    former_F = torch.tensor([i for name in ("A", "shared", "B") for i in order[name]], dtype=torch.long)
    assert len(former_F) == crosscoder.n_features, "a rearranged crosscoder has as many features as before"
    had = {side: crosscoder.sees(side) for side in SIDES}
    has = {"a": slice(0, len(order["A"]) + len(order["shared"])), "b": slice(len(order["A"]), None)}
    crosscoder.config = dataclasses.replace(
        crosscoder.config, n_a_only=len(order["A"]), n_shared=len(order["shared"]), n_b_only=len(order["B"])
    )
    rows = {"b_enc": former_F}
    for side in SIDES:
        former_Fs = former_F[has[side]]
        there_Fs = (former_Fs >= had[side].start) & (former_Fs < had[side].stop)
        rows[f"w_enc_{side}"] = torch.where(there_Fs, former_Fs - had[side].start, FRESH)
        rows[f"w_dec_{side}"] = rows[f"w_enc_{side}"]
    for name, former in rows.items():
        old = crosscoder.get_parameter(name)
        new = nn.Parameter(_taken(old.data, former))
        setattr(crosscoder, name, new)
        state = optimizer.state.pop(old)
        moments = {moment: _taken(state[moment], former) for moment in ("exp_avg", "exp_avg_sq")}
        optimizer.state[new] = {**moments, "step": state["step"]}
    return former_F


def _taken(tensor: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    rows = rows.to(tensor.device)
    made = tensor.new_zeros(len(rows), *tensor.shape[1:])
    made[rows != FRESH] = tensor[rows[rows != FRESH]]
    return made
