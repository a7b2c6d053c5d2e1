"""The sums of the pass: the moments of both directions, and a permutation without memory of all pairs."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.features.measures.stitch.sums import JointMoments, Permuted
from modeldiff.linear.ridge import Moments


def test_the_moments_of_both_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, width, generator=generator, dtype=torch.float64) for width in (3, 5))
    joint = JointMoments(3, 5)
    for rows in (slice(0, 20), slice(20, 50)):
        joint.add(a[rows], b[rows])
    for direction, (x, f) in {"a_to_b": (a, b), "b_to_a": (b, a)}.items():
        expected = Moments.empty(x.shape[1], f.shape[1])
        expected.add_dense(x, f)
        found = joint.moments(direction)
        assert found.n == 50
        for name in ("x_D", "xx_DD", "f_G", "ff_G", "fx_GD"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def test_other_products_take_the_place_of_the_true_ones() -> None:
    joint = JointMoments(3, 5)
    joint.add(torch.ones(4, 3, dtype=torch.float64), torch.ones(4, 5, dtype=torch.float64))
    other = torch.arange(15, dtype=torch.float64).reshape(3, 5)
    assert torch.equal(joint.moments("a_to_b", other).fx_GD, other.T)
    assert torch.equal(joint.moments("b_to_a", other).fx_GD, other)
    assert torch.equal(joint.moments("a_to_b", other).xx_DD, joint.moments("a_to_b").xx_DD)


@given(chunks=st.lists(st.integers(0, 40), max_size=12), shift=st.integers(2, 30))
def test_it_is_a_permutation_that_moves_every_pair_far(chunks: list[int], shift: int) -> None:
    n = sum(chunks)
    permuted = Permuted(shift)
    found, first = [], 0
    for chunk in chunks:
        rows = torch.arange(first, first + chunk)[:, None]
        found.append(permuted.add(rows, rows))
        first += chunk
    rest = permuted.rest()
    assert (rest is None) == (n == 0)
    found += [rest] if rest else []
    a = [row for side, _ in found for row in side[:, 0].tolist()]
    b = [row for _, side in found for row in side[:, 0].tolist()]
    assert sorted(a) == sorted(b) == list(range(n))
    assert all(abs(i - j) >= min(n, shift) // 2 for i, j in zip(a, b, strict=True))
