"""Reading blocks of a store in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from modeldiff.errors import DamagedError
from modeldiff.workspace import Workspace, places
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.bits import create_dataset, write_rows
from tests.made_activations import make_activations

X_A, X_B = torch.arange(30.0).reshape(10, 3), -torch.arange(20.0).reshape(10, 2)


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return ActivationStore(make_activations(Workspace(tmp_path / "ws"), X_A, X_B, 4, encoding="bfloat16"))


def test_blocks_of_several_shards_come_in_the_asked_order(store: ActivationStore) -> None:
    blocks = [Block(2, 0, 2), Block(0, 3, 4), Block(0, 0, 2), Block(1, 1, 3)]
    x_ND = store.empty_rows("a", 7)
    store.read_into("a", blocks, x_ND)
    assert x_ND.dtype == torch.bfloat16
    assert torch.equal(x_ND, X_A[[8, 9, 3, 0, 1, 5, 6]].bfloat16())
    assert torch.equal(store.read_side("b", Block(1, 1, 3)), X_B[5:7].bfloat16())


@pytest.mark.parametrize("cached", [True, False, None])
@pytest.mark.parametrize("stage_bytes", [1, 12, 1 << 20])
def test_rows_of_both_sides_go_to_places_of_their_own(
    store: ActivationStore, cached: bool | None, stage_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all is in the page cache, nothing, or as it is; places that nobody asked for stay as they are."""
    monkeypatch.setattr(places, "_STAGE_BYTES", stage_bytes)
    monkeypatch.setattr(places, "_PULL_BYTES", 3)
    if cached is not None:
        monkeypatch.setattr(places, "_is_cached", lambda *_: cached)
    blocks = [Block(2, 0, 2), Block(0, 3, 4), Block(0, 0, 2), Block(1, 1, 3)]
    rows, at_N = [8, 9, 3, 0, 1, 5, 6], np.array([1, 6, 4, 8, 3, 0, 7])
    x = {side: store.empty_rows(side, 9).fill_(99) for side in ("a", "b")}
    store.read_scattered(blocks, x, at_N)
    for side, all_ND in (("a", X_A), ("b", X_B)):
        expected_MD = torch.full((9, all_ND.shape[1]), 99).bfloat16()
        expected_MD[at_N] = all_ND[rows].bfloat16()
        assert torch.equal(x[side], expected_MD)


@pytest.mark.parametrize("threads_from", [0, 1 << 30])
@pytest.mark.parametrize("read_bytes", [1, 4, 1 << 20])
def test_parts_of_chunks_are_found(
    tmp_path: Path, threads_from: int, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_WORTH_THREADS", threads_from)
    monkeypatch.setattr(places, "_READ_BYTES", read_bytes)
    x_ND = torch.arange(100.0).reshape(50, 2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=x_ND.numpy(), chunks=(8, 2))
    with h5py.File(tmp_path / "x.h5") as file:
        found = places.RowPlaces.of(file["x"])
    assert found is not None
    for start, stop in ((0, 50), (3, 5), (7, 25), (48, 50), (16, 24)):
        into = np.empty((stop - start, 2), np.float32)
        places.read_pieces(list(found.pieces(start, memoryview(into).cast("B"))))
        assert torch.equal(torch.from_numpy(into), x_ND[start:stop])


@pytest.mark.parametrize("kind", [{"compression": "gzip"}, {"chunks": None}, {"chunks": (2, 1)}])
def test_what_only_hdf5_can_read_is_left_to_it(store: ActivationStore, kind: dict[str, Any]) -> None:
    path = store.artifact.file("shards/00001.a.h5")
    with h5py.File(path, "r+") as file:
        rows, attributes = file["activations"][()], dict(file["activations"].attrs)
        del file["activations"]
        file.create_dataset("activations", data=rows, **kind).attrs.update(attributes)
    store._checked.add("shards/00001.a.h5")  # the digest is another one now
    assert torch.equal(store.read_side("a", Block(1, 1, 4)), X_A[5:8].bfloat16())
    x = {side: store.empty_rows(side, 3) for side in ("a", "b")}
    store.read_scattered([Block(1, 1, 4)], x, np.array([2, 0, 1]))
    assert torch.equal(x["a"], X_A[[6, 7, 5]].bfloat16())
    assert torch.equal(x["b"], X_B[[6, 7, 5]].bfloat16())


def test_a_file_that_became_shorter_is_named(store: ActivationStore) -> None:
    store.read_side("a", Block(0, 0, 4))
    path = store.artifact.folder / "shards/00000.a.h5"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedError, match=r"00000\.a\.h5: cannot be read \(ends before byte .*\); "):
        store.read_side("a", Block(0, 0, 4))
    x = {side: store.empty_rows(side, 4) for side in ("a", "b")}
    with pytest.raises(DamagedError, match=r"00000\.a\.h5: cannot be read \(ends before byte .*\); "):
        store.read_scattered([Block(0, 0, 4)], x, np.arange(4))


@pytest.mark.parametrize("threads_from", [0, 1 << 30])
def test_a_disk_that_fails_is_named(store: ActivationStore, threads_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(places, "_WORTH_THREADS", threads_from)
    monkeypatch.setattr(places.os, "preadv", fail)
    x = {side: store.empty_rows(side, 4) for side in ("a", "b")}
    with pytest.raises(DamagedError, match=r"00000\.a\.h5: cannot be read \(Input/output error\); "):
        store.read_scattered([Block(0, 0, 4)], x, np.arange(4))
    with pytest.raises(DamagedError, match=r"00000\.a\.h5: cannot be read \(Input/output error\); "):
        store.read_side("a", Block(0, 0, 4))


def test_a_file_of_another_dtype_is_refused(store: ActivationStore) -> None:
    path = store.artifact.file("shards/00000.a.h5")
    with h5py.File(path, "r+") as file:
        del file["activations"]
        write_rows(create_dataset(file, "activations", 4, 3, "float16"), 0, X_A[:4])
    store._checked.add("shards/00000.a.h5")
    with pytest.raises(DamagedError, match=r"columns in bfloat16, found \(4, 3\) in float16"):
        store.read_side("a", Block(0, 0, 2))
