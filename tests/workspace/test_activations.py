"""Reading blocks of a store in place."""

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from modeldiff.errors import DamagedError
from modeldiff.workspace import Workspace, bits
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.artifact import FileEntry
from modeldiff.workspace.files import blake3_file
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
@pytest.mark.parametrize("most_bytes", [1, 4, 1 << 20])
def test_parts_of_chunks_are_found(
    tmp_path: Path, threads_from: int, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system reads less than it was asked for."""
    preadv = os.preadv
    monkeypatch.setattr(bits, "_WORTH_THREADS", threads_from)
    monkeypatch.setattr(bits.os, "preadv", lambda file, into, at: preadv(file, [into[0][:most_bytes]], at))
    monkeypatch.setattr(bits, "chunk_rows", lambda *_: 8)
    monkeypatch.setattr(bits, "_PIECE_BYTES", 4 * 2 * 4)
    x_ND = torch.arange(100.0).reshape(50, 2)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        writer = bits.RowWriter(file, "x", 50, 2, "float32")
        writer.append(x_ND[:7])
        writer.append(x_ND[7:])
    with h5py.File(tmp_path / "x.h5") as file:
        layout = bits.RowLayout.of(file["x"], writer.digests)
    assert layout.digest_P.shape == (13, 32)  # pieces of four rows, two in a chunk
    for start, stop in ((3, 5), (7, 25), (48, 50), (16, 24), (0, 50), (3, 5)):
        into = np.empty((stop - start, 2), np.float32)
        bits.read_all(list(layout.reads(start, memoryview(into).cast("B"))))
        assert torch.equal(torch.from_numpy(into), x_ND[start:stop])


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

    monkeypatch.setattr(bits, "_WORTH_THREADS", threads_from)
    monkeypatch.setattr(bits.os, "preadv", fail)
    with pytest.raises(DamagedError, match=r"00000\.a\.h5: cannot be read \(Input/output error\); "):
        store.read_side("a", Block(0, 0, 4))


def with_dataset(store: ActivationStore, **dataset: Any) -> str:
    """Put another dataset into the file of shard 0, with the digest that then belongs to it."""
    name = "shards/00000.a.h5"
    path = store.artifact.file(name)
    with h5py.File(path, "r+") as file:
        del file["activations"]
        file.create_dataset("activations", **dataset).attrs["encoding"] = "bfloat16"
    store.artifact.manifest.files[name] = FileEntry(path.stat().st_size, blake3_file(path))
    return str(path)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"shape": (4, 2)}, r"expected \(4, 3\) rows and columns in bfloat16, found \(4, 2\)"),
        ({"shape": (4, 3), "dtype": np.float16}, "has encoding 'bfloat16' and type float16"),
        ({"shape": (4, 3), "chunks": (2, 1)}, "expected chunks of whole rows without filters"),
        ({"shape": (4, 3), "chunks": (2, 3), "compression": "gzip"}, "expected chunks of whole rows without filters"),
        ({"shape": (4, 3), "chunks": (2, 3)}, "some of its 4 rows were never written"),
    ],
)
def test_a_dataset_that_is_not_as_it_was_made_is_refused(
    store: ActivationStore, dataset: dict[str, Any], message: str
) -> None:
    path = with_dataset(store, **{"dtype": np.uint16, **dataset})
    with pytest.raises(DamagedError, match=f"{path}.*{message}"):
        store.read_side("a", Block(0, 0, 2))
