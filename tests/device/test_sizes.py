"""Numbers past 2^31: a batch of 16,384 pairs and 131,072 features has so many products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from modeldiff.crosscoder.fast import topk
from modeldiff.crosscoder.fast.topk import rows_and_columns
from modeldiff.features.codes import SparseCodes, block_rows
from modeldiff.features.examples import PASSAGE, passage_of
from tests.device.double import double

PAIRS, FEATURES, PAIRS_READ = 16_384, 131_072, 10**9
BORDER = 2**31


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_flat_indices_past_the_border_have_their_rows_and_columns(device: str) -> None:
    flat = [0, FEATURES - 1, FEATURES, BORDER - 1, BORDER, BORDER + 5, 2 * PAIRS * FEATURES - 1]
    with double():
        rows_K, columns_K = rows_and_columns(torch.tensor(flat, device=device), FEATURES)
        assert list(zip(rows_K.tolist(), columns_K.tolist(), strict=True)) == [divmod(one, FEATURES) for one in flat]


def test_the_true_ones_of_a_large_mask_are_found_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a part has 1000 entries, and in use so many that 32 bits count them."""
    assert topk._MOST_ENTRIES < BORDER
    monkeypatch.setattr(topk, "_MOST_ENTRIES", 1000)
    mask = torch.rand(7, 331, generator=torch.Generator().manual_seed(0)) < 0.1
    with double():
        found = topk.indices_of(mask.to("cuda")).cpu()
    assert found.tolist() == np.flatnonzero(mask.numpy()).tolist()


def test_entries_of_an_encoded_block_stay_below_the_border_of_its_int32_offsets() -> None:
    for features in (1, 1_000, FEATURES, 2**20, BORDER // 64 - 1):
        assert block_rows(features) * features < BORDER


def test_rows_and_features_at_the_end_of_a_block_are_kept() -> None:
    rows = block_rows(FEATURES)
    codes = SparseCodes(torch.tensor([0, rows - 1]), torch.tensor([FEATURES - 1] * 2), torch.ones(2))
    assert codes.matrix(rows, FEATURES).nonzero()[1].tolist() == [FEATURES - 1] * 2


def test_joined_codes_count_their_entries_in_64_bits_where_they_are_so_many() -> None:
    """scipy chooses by the number of entries; `joined_codes` and `Encoder.matrix` rely on it."""
    assert sparse.get_index_dtype(maxval=BORDER) == np.int64


def test_passages_of_a_billion_pairs_are_apart() -> None:
    row = np.array([0, PASSAGE, PAIRS_READ - 1, PAIRS_READ + PASSAGE])
    document = np.array([0, 0, BORDER - 1, BORDER - 1])
    assert len(set(passage_of(document, row).tolist())) == 4
