"""The sums of the pass: the moments of both directions, and a permutation without memory of all pairs."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.features.measures.stitch.scan import Permuted, scan
from modeldiff.linear.ridge import Moments
from modeldiff.splits import split
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.made_activations import make_activations


def test_the_moments_of_both_directions(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    x = {side: torch.randn(2000, width, generator=generator) for side, width in (("a", 3), ("b", 5))}
    store = ActivationStore(make_activations(Workspace(tmp_path / "ws"), x["a"], x["b"], 300))
    blocks = store.blocks(128)
    stretches = split(store, blocks)
    scanned = scan(store, blocks, stretches, 0.0, torch.device("cpu"), tmp_path)
    for part in ("fit", "choose"):
        centred = {side: x[side][stretches.rows(part)].double() - store.mean[side] for side in ("a", "b")}
        for direction, source, target in (("a_to_b", "a", "b"), ("b_to_a", "b", "a")):
            expected = Moments.empty(x[source].shape[1], x[target].shape[1])
            expected.add_dense(centred[source], centred[target])
            found = scanned.moments(part, direction)
            null = scanned.moments(part, direction, null=True)
            assert found.n == len(centred["a"])
            for name in ("x_D", "xx_DD", "f_G", "ff_G", "fx_GD"):
                torch.testing.assert_close(getattr(found, name), getattr(expected, name))
                assert torch.equal(getattr(null, name), getattr(found, name)) == (name != "fx_GD")


@given(chunks=st.lists(st.integers(0, 40), max_size=12), shift=st.integers(2, 30))
def test_it_is_a_permutation_that_moves_every_pair_far(chunks: list[int], shift: int) -> None:
    n = sum(chunks)
    permuted = Permuted(shift)
    found, first = [], 0
    for chunk in chunks:
        rows = torch.arange(first, first + chunk)[:, None]
        found.append(permuted.add(rows, rows))
        first += chunk
    rest = permuted.rest(n)
    assert (rest is None) == (n == 0)
    found += [rest] if rest else []
    a = [row for side, _ in found for row in side[:, 0].tolist()]
    b = [row for _, side in found for row in side[:, 0].tolist()]
    assert sorted(a) == sorted(b) == list(range(n))
    assert all(abs(i - j) >= min(n, shift) // 2 for i, j in zip(a, b, strict=True))
