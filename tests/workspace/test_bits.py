"""What is written to HDF5 comes back bit for bit."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.errors import DamagedError
from modeldiff.workspace.bits import ENCODINGS, RowWriter, chunk_rows, encoding_of

SPECIAL = [-1.5, 1.5, -0.0, 0.0, float("inf"), float("-inf"), float("nan"), 1e-40, -1e-40, 3.3895e38, -3.3895e38, -1e-3]


def round_trip(path: Path, x_ND: torch.Tensor, encoding: str) -> torch.Tensor:
    with h5py.File(path, "w") as file:
        writer = RowWriter(file, "activations", len(x_ND), x_ND.shape[1], encoding)
        for part_ND in x_ND.split(3):
            writer.append(part_ND)
    with h5py.File(path, "r") as file:
        assert encoding_of(file["activations"]) == encoding
        return torch.from_numpy(file["activations"][()]).view(ENCODINGS[encoding][0])


def as_bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_special_values_survive(tmp_path: Path, encoding: str) -> None:
    dtype = ENCODINGS[encoding][0]
    x_ND = torch.tensor(SPECIAL, dtype=torch.float32).to(dtype).reshape(4, 3)
    back_ND = round_trip(tmp_path / "x.h5", x_ND, encoding)
    assert back_ND.dtype == dtype
    assert torch.equal(as_bits(back_ND), as_bits(x_ND))


def test_every_bfloat16_bit_pattern_survives(tmp_path: Path) -> None:
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    x_ND = bits.view(torch.bfloat16).reshape(256, 256)
    assert torch.equal(as_bits(round_trip(tmp_path / "x.h5", x_ND, "bfloat16")), as_bits(x_ND))


def test_a_dataset_without_its_encoding_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["activations"] = np.zeros((2, 2), np.int16)
        with pytest.raises(DamagedError, match="encoding None"):
            encoding_of(file["activations"])


@given(width=st.integers(1, 20_000), encoding=st.sampled_from(list(ENCODINGS)))
def test_chunks_have_between_64_and_4096_rows_and_about_two_mebibytes(width: int, encoding: str) -> None:
    rows = chunk_rows(width, encoding)
    assert 64 <= rows <= 4096
    assert rows in (64, 4096) or 2**20 <= rows * width * ENCODINGS[encoding][0].itemsize <= 2**21
