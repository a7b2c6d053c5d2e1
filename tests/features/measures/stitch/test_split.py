"""Which pairs are fitted on, and which are kept for the choice of the ridge and for the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.errors import InputError
from modeldiff.features.measures.stitch.split import cut, document_starts, sample, split
from modeldiff.linear.stitch import PARTS, Stretches
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.made_activations import make_activations


def made_store(folder: Path, rows: int, texts: list[str] | None = None, shard_pairs: int = 1000) -> ActivationStore:
    x = torch.ones(rows, 2)
    return ActivationStore(make_activations(Workspace(folder / "ws"), x, x, shard_pairs, texts))


def every_part(stretches: Stretches) -> dict[str, np.ndarray]:
    return {part: stretches.rows(part) for part in PARTS}


def test_the_parts_are_disjoint_and_have_their_shares(tmp_path: Path) -> None:
    store = made_store(tmp_path, 20_000)
    parts = every_part(split(store, sample(store, 20_000)))
    together = np.concatenate(list(parts.values()))
    assert len(np.unique(together)) == len(together)
    assert 0.9 < len(together) / 20_000 <= 1  # the rest are gaps
    shares = {part: len(rows) / 20_000 for part, rows in parts.items()}
    assert shares == pytest.approx({"fit": 0.8, "choose": 0.1, "report": 0.1}, abs=0.06)


def test_without_texts_no_two_parts_are_neighbours(tmp_path: Path) -> None:
    store = made_store(tmp_path, 20_000)
    parts = every_part(split(store, sample(store, 20_000)))
    for one, other in (("fit", "choose"), ("fit", "report"), ("choose", "report")):
        assert np.abs(parts[one][:, None] - parts[other][None]).min() > 50


def test_documents_stay_whole(tmp_path: Path) -> None:
    """Documents of 30 words, some of them on both sides of the end of a shard."""
    texts = [" ".join(f"w{i % 7}" for i in range(30))] * 200
    store = made_store(tmp_path, 6000, texts)
    stretches = split(store, sample(store, 6000))
    part_DN = stretches.part_of(np.arange(6000)).reshape(200, 30)
    assert (part_DN == part_DN[:, :1]).all()
    assert set(part_DN[:, 0]) == {0, 1, 2}  # and nothing is lost in gaps


def test_a_long_document_is_cut_with_a_gap(tmp_path: Path) -> None:
    store = made_store(tmp_path, 5000, [" ".join(["w"] * 5000)])
    parts = every_part(split(store, sample(store, 5000)))
    assert all(len(rows) for rows in parts.values())
    assert np.abs(parts["fit"][:, None] - parts["report"][None]).min() > 20


def test_document_starts(tmp_path: Path) -> None:
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


@given(st.integers(100, 2500))
def test_a_sample_holds_at_most_what_was_asked_for(tmp_path_factory: pytest.TempPathFactory, pairs: int) -> None:
    store = made_store(tmp_path_factory.mktemp("sample"), 2000)
    blocks = sample(store, pairs)
    rows = np.concatenate([np.arange(len(b)) + store.first_row[b.shard] + b.start for b in blocks])
    assert (np.diff(rows) > 0).all()
    assert len(rows) == 2000 if pairs >= 2000 else 0.7 * pairs < len(rows) <= pairs
    if pairs < 2000:  # from all over
        assert rows[0] < 300
        assert rows[-1] > 1700


def test_too_few_pairs(tmp_path: Path) -> None:
    store = made_store(tmp_path, 5)
    with pytest.raises(InputError, match="too few to fit, choose and report"):
        split(store, sample(store, 1000))


def test_part_of() -> None:
    stretches = Stretches(np.array([2, 5, 9]), np.array([5, 7, 10]), np.array([0, 2, 1]))
    assert stretches.part_of(np.arange(12)).tolist() == [-1, -1, 0, 0, 0, 2, 2, -1, -1, 1, -1, -1]
    assert stretches.rows("report").tolist() == [5, 6]
    assert stretches.ranges("choose") == [(9, 10)]
