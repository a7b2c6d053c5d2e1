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


def test_a_file_that_became_shorter_is_named(store: ActivationStore) -> None:
    store.read_side("a", Block(0, 0, 4))
    path = store.artifact.folder / "shards/00000.a.h5"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedError, match=r"00000\.a\.h5: cannot be read \(ends before byte .*\); "):
        store.read_side("a", Block(0, 0, 4))


@pytest.mark.parametrize("threads_from", [0, 1 << 30])
def test_a_disk_that_fails_is_named(store: ActivationStore, threads_from: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(places, "_WORTH_THREADS", threads_from)
    monkeypatch.setattr(places.os, "preadv", fail)
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
