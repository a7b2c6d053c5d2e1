"""Reading blocks of a store in place."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest
import torch

from modeldiff.errors import DamagedError
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.bits import read_into
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


def test_rows_of_another_dtype_are_refused(store: ActivationStore) -> None:
    path = store.artifact.file("shards/00000.a.h5")
    with h5py.File(path) as file, pytest.raises(DamagedError, match=r"00000\.a\.h5: holds torch.bfloat16"):
        read_into(file["activations"], 0, torch.empty(2, 3, dtype=torch.float16))
