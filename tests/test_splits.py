"""Which blocks are read, and which pairs are fitted on or held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.splits import PARTS, Stretches, cut, document_starts, evenly_spread, split, spread_blocks
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore, Block
from tests.made_activations import make_activations


def made_store(folder: Path, rows: int, texts: list[str] | None = None, shard_pairs: int = 1000) -> ActivationStore:
    x = torch.ones(rows, 2)
    return ActivationStore(make_activations(Workspace(folder / "ws"), x, x, shard_pairs, texts))


def made_parts(folder: Path, rows: int, texts: list[str] | None = None) -> dict[str, np.ndarray]:
    """The rows of each part of a store."""
    store = made_store(folder, rows, texts)
    stretches = split(store, store.blocks(1024))
    return {part: stretches.rows(part) for part in PARTS}


def test_the_middle_of_each_share_is_taken_and_everything_where_that_is_asked_for() -> None:
    assert evenly_spread(100, 4) == [12, 37, 62, 87]
    assert evenly_spread(5, 2) == [1, 3]
    assert evenly_spread(3, 3) == evenly_spread(3, 7) == [0, 1, 2]


@given(pairs=st.integers(1, 2500))
def test_blocks_hold_about_as_many_pairs_as_were_asked_for_from_all_over(pairs: int) -> None:
    blocks = [Block(0, start, start + 10) for start in range(0, 2000, 10)]
    chosen = spread_blocks(blocks, pairs)
    assert abs(sum(map(len, chosen)) - min(pairs, 2000)) < 10
    assert chosen == sorted(chosen, key=lambda block: block.start)
    if pairs > 200:
        assert chosen[0].start < 100
        assert chosen[-1].start >= 1900
    assert spread_blocks(blocks, None) == blocks


def test_without_texts_the_parts_are_disjoint_have_their_shares_and_lie_apart(tmp_path: Path) -> None:
    parts = made_parts(tmp_path, 20_000)
    together = np.concatenate(list(parts.values()))
    assert len(np.unique(together)) == len(together)
    assert 0.9 < len(together) / 20_000 <= 1  # the rest are gaps
    shares = {part: len(rows) / 20_000 for part, rows in parts.items()}
    assert shares == pytest.approx({"fit": 0.8, "choose": 0.1, "report": 0.1}, abs=0.06)
    for one, other in (("fit", "choose"), ("fit", "report"), ("choose", "report")):
        assert np.abs(parts[one][:, None] - parts[other][None]).min() > 50


def test_documents_stay_whole(tmp_path: Path) -> None:
    """Documents of 30 words, some of them on both sides of the end of a shard."""
    parts = made_parts(tmp_path, 6000, [" ".join(f"w{i % 7}" for i in range(30))] * 200)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(6000)), "nothing is lost in gaps"
    assert all((np.bincount(rows // 30, minlength=200) % 30 == 0).all() for rows in parts.values())


def test_a_long_document_is_cut_with_a_gap(tmp_path: Path) -> None:
    parts = made_parts(tmp_path, 5000, [" ".join(["w"] * 5000)])
    assert all(len(rows) for rows in parts.values())
    assert np.abs(parts["fit"][:, None] - parts["report"][None]).min() > 20


def test_a_document_begins_where_another_ended_also_in_another_shard(tmp_path: Path) -> None:
    store = made_store(tmp_path, 10, ["a b c", "d e f g", "h i j"], shard_pairs=5)
    assert document_starts(store, store.blocks(100)).tolist() == [0, 3, 7]
    assert document_starts(store, store.blocks(2)).tolist() == [0, 3, 7]


@given(starts=st.sets(st.integers(0, 300)), length=st.integers(1, 60), stop=st.integers(1, 300))
def test_stretches_cover_the_rows_and_keep_their_length(starts: set[int], length: int, stop: int) -> None:
    found = list(cut(0, stop, np.array(sorted(starts), np.int64), length))
    assert [row for first, end in found for row in range(first, end)] == list(range(stop))
    for first, end in found[:-1]:
        assert length <= end - first <= 2 * length
        assert end - first == 2 * length or end in starts


def test_part_of() -> None:
    stretches = Stretches(np.array([2, 5, 9]), np.array([5, 7, 10]), np.array([0, 2, 1]))
    assert stretches.part_of(np.arange(12)).tolist() == [-1, -1, 0, 0, 0, 2, 2, -1, -1, 1, -1, -1]
    assert stretches.rows("report").tolist() == [5, 6]
    assert stretches.ranges("choose") == [(9, 10)]
    assert Stretches(*np.zeros((3, 0), np.int64)).part_of(np.arange(2)).tolist() == [-1, -1]
