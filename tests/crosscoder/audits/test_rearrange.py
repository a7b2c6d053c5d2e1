"""Moving features between partitions: each keeps its rows and Adam's moments, and training goes on.

Legend: F features, D width of one model.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.audits.rearrange import FRESH, rearrange
from modeldiff.crosscoder.training.adam import Adam
from tests.crosscoder.dense import dense_pre, dense_reconstruction
from tests.crosscoder.made import random_crosscoder

WEIGHTS = {"w_enc_a": "a", "w_dec_a": "a", "w_enc_b": "b", "w_dec_b": "b"}
Order = dict[str, list[int]]


def trained() -> tuple[Crosscoder, Adam]:
    """Three steps of Adam have left moments."""
    crosscoder = random_crosscoder()
    optimizer = Adam(crosscoder, clip=1.0)
    for seed in range(3):
        step(crosscoder, optimizer, seed)
    return crosscoder, optimizer


def step(crosscoder: Crosscoder, optimizer: Adam, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(20, width, generator=generator) for width in (6, 9)]
    crosscoder.zero_grad()
    xhat = dense_reconstruction(crosscoder, torch.relu(dense_pre(crosscoder, *x)))
    sum((one - other).square().sum() for one, other in zip(x, xhat, strict=True)).backward()
    optimizer.step(0.01)


def by_feature(crosscoder: Crosscoder, optimizer: Adam) -> dict[str, torch.Tensor]:
    """Every weight and moment as rows of all F features, zero where a feature does not exist on a side."""
    rows = {}
    for name in (*WEIGHTS, "b_enc"):
        parameter = getattr(crosscoder, name)
        seen = crosscoder.sees(WEIGHTS[name]) if name in WEIGHTS else slice(None)
        moments = {key: value for key, value in optimizer.state[parameter].items() if key.startswith("exp_avg")}
        for key, value in {"value": parameter.detach(), **moments}.items():
            rows[f"{name} {key}"] = torch.zeros(crosscoder.n_features, *value.shape[1:])
            rows[f"{name} {key}"][seen] = value
    return rows


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Ten features, some of them new, in partitions of any size."""
    numbers = [FRESH if draw(st.booleans()) and draw(st.booleans()) else i for i in draw(st.permutations(range(10)))]
    first, second = sorted((draw(st.integers(0, 10)), draw(st.integers(0, 10))))
    return {"A": numbers[:first], "shared": numbers[first:second], "B": numbers[second:]}


@settings(max_examples=30)
@given(order=orders())
def test_rows_and_moments_follow_their_feature(order: Order) -> None:
    crosscoder, optimizer = trained()
    before = by_feature(crosscoder, optimizer)
    unpartitioned = {name: getattr(crosscoder, name).detach().clone() for name in ("b_dec_a", "b_dec_b")}
    former_F = rearrange(crosscoder, optimizer, order)
    assert former_F.tolist() == [*order["A"], *order["shared"], *order["B"]]
    assert crosscoder.sizes == {name: len(numbers) for name, numbers in order.items()}
    after = by_feature(crosscoder, optimizer)
    for name, rows in before.items():
        side = WEIGHTS.get(name.split()[0])
        for feature, number in enumerate(former_F.tolist()):
            seen = crosscoder.sees(side) if side else slice(0, 10)
            exists = number != FRESH and seen.start <= feature < seen.stop
            assert torch.equal(after[name][feature], rows[number] if exists else torch.zeros_like(rows[0]))
    for name, value in unpartitioned.items():
        assert torch.equal(getattr(crosscoder, name), value)


def test_training_goes_on() -> None:
    crosscoder, optimizer = trained()
    old = list(crosscoder.parameters())
    rearrange(crosscoder, optimizer, {"A": [], "shared": [0, FRESH, 2, 3, 4, 5, 6], "B": [9, 8, 7]})
    now = list(crosscoder.parameters())
    assert {id(one) for one in optimizer.state} == {id(one) for one in now}
    assert not {id(old[i]) for i in range(5)} & {id(one) for one in optimizer.state}, "all but the decoders' biases"
    before = [one.detach().clone() for one in now]
    with torch.no_grad():
        crosscoder.w_enc_a[1] = crosscoder.w_dec_a[1] = 0.5  # a feature that is zero everywhere has no gradient
    step(crosscoder, optimizer, 3)
    for one, value in zip(now, before, strict=True):
        assert optimizer.state[one]["step"] == 4
        assert (one != value).any(dim=-1).all()
