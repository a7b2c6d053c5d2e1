"""The order of the pairs: every one once per pass, none that is held out, the same when the stream begins later."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from modeldiff.crosscoder.training.data import PairStream
from modeldiff.errors import InputError
from modeldiff.splits import hold_out_blocks
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore, Block
from tests.made_activations import make_activations

ROWS = 1000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Row i holds the number i on both sides, in shards that do not divide into blocks."""
    number_N = torch.arange(ROWS).float()
    x_a, x_b = number_N[:, None].repeat(1, 3), -number_N[:, None].repeat(1, 2)
    workspace = Workspace(tmp_path_factory.mktemp("data") / "w")
    return ActivationStore(make_activations(workspace, x_a, x_b, shard_pairs=330))


def stream(store: ActivationStore, buffer_rows: int) -> PairStream:
    train, _ = hold_out_blocks(store, 0.1)
    return PairStream(store, train, batch=37, seed=0, buffer_bytes=buffer_rows * 5 * 4)


def rows_in(store: ActivationStore, blocks: list[Block]) -> list[int]:
    return [store.first_row[block.shard] + row for block in blocks for row in range(block.start, block.stop)]


def rows_of(store: ActivationStore, buffer_rows: int, batches: int, first: int = 0) -> list[list[int]]:
    found = []
    for x_a, x_b in itertools.islice(stream(store, buffer_rows).batches(first), batches):
        assert torch.equal(x_a[:, 0], -x_b[:, 0]), "row i of A belongs with row i of B"
        found.append([int(value) for value in x_a[:, 0]])
    return found


def test_held_out_blocks_are_spread_and_apart(store: ActivationStore) -> None:
    train, held = hold_out_blocks(store, 0.1)
    assert sorted(rows_in(store, train + held)) == list(range(ROWS))
    held_rows = rows_in(store, held)
    assert len(held_rows) == pytest.approx(0.1 * ROWS, rel=0.2)
    assert min(held_rows) < 200
    assert max(held_rows) > 800


@pytest.mark.parametrize("buffer_rows", [1, 60, 10**6])
def test_every_training_pair_once_per_pass_also_when_the_stream_begins_later(
    store: ActivationStore, buffer_rows: int
) -> None:
    train, _ = hold_out_blocks(store, 0.1)
    expected = sorted(rows_in(store, train))
    whole = rows_of(store, buffer_rows, max(52, 2 * len(expected) // 37 + 1))
    drawn = itertools.chain.from_iterable(whole)
    passes = [list(itertools.islice(drawn, len(expected))) for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == expected
    assert passes[0] != passes[1]
    assert passes[0] != expected
    for first in (1, 5, 24, 25, 49):
        assert rows_of(store, buffer_rows, 2, first=first) == whole[first : first + 2]


@pytest.mark.parametrize("buffer_rows", [64, 200, 899, 900, 5000])
def test_the_buffer_is_all_the_memory_for_pairs(
    store: ActivationStore, buffer_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, int] = {"a": 0, "b": 0}
    read: list[int] = []
    empty_rows, read_into = ActivationStore.empty_rows, ActivationStore.read_into

    def counting(self: ActivationStore, side: str, rows: int) -> torch.Tensor:
        taken[side] += rows
        return empty_rows(self, side, rows)

    def noting(self: ActivationStore, side: str, blocks: Any, x_ND: torch.Tensor) -> None:
        read.append(len(x_ND))
        read_into(self, side, blocks, x_ND)

    monkeypatch.setattr(ActivationStore, "empty_rows", counting)
    monkeypatch.setattr(ActivationStore, "read_into", noting)
    one = stream(store, buffer_rows)
    steps = 3 * one.rows_per_epoch // 37
    for _ in itertools.islice(one.batches(), steps):
        pass
    assert taken["a"] == taken["b"] <= min(buffer_rows, one.rows_per_epoch) + 37, "and of one batch"
    if one.rows_per_epoch <= buffer_rows:
        assert read == 2 * [one.rows_per_epoch], "what fits is read once"
    else:
        assert max(read) <= buffer_rows // 2


def test_too_few_pairs_to_hold_any_out(tmp_path: Path) -> None:
    artifact = make_activations(Workspace(tmp_path / "w"), torch.ones(1, 3), torch.ones(1, 2))
    with pytest.raises(InputError, match="has 1 pairs, too few to hold out"):
        hold_out_blocks(ActivationStore(artifact), 0.02)
