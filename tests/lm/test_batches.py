"""Which sequences go together, how many tokens at a time, and padding."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.lm import batches as batches_module
from modeldiff.lm.batches import BATCH_TOKENS, batches, chunks, padded, token_budget, while_memory_lasts
from modeldiff.lm.model import LanguageModel


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 200))
def test_batches_hold_every_sequence_once_within_the_budget(lengths: list[int], budget: int) -> None:
    found = batches(lengths, budget)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def test_sequences_of_like_length_go_together_and_a_long_one_alone() -> None:
    assert batches([5, 9, 2, 40, 5], 20) == [[2, 0, 4], [1], [3]]


def test_the_budget_is_the_devices_or_what_the_logits_allow(lm_of: Callable[[str], LanguageModel]) -> None:
    lm = lm_of("llama")
    assert token_budget(lm) == token_budget(lm, logit_values=1 << 40) == BATCH_TOKENS["cpu"]
    assert token_budget(lm, logit_values=11 * lm.vocabulary - 1) == 10
    assert token_budget(lm, by_device={"cpu": 7}) == 7


def test_sequences_are_padded_on_the_right_and_masked() -> None:
    ids_BT, mask_BT = padded([torch.tensor([5, 6, 7]), torch.tensor([8])])
    assert ids_BT.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask_BT.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_chunks_cover_every_position_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "CHUNK_VALUES", 100)
    positions = list(range(10))
    assert [positions[part] for part in chunks(10, 30)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert len(list(chunks(10, 1000))) == 10  # a vocabulary above the limit: one at a time


def test_where_memory_ends_half_as_many_are_tried() -> None:
    tried: list[int] = []

    def make(size: int) -> str:
        tried.append(size)
        if size > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "made"

    assert while_memory_lasts(make, 150) == "made"
    assert tried == [150, 75, 37]


def test_memory_for_none_is_an_error() -> None:
    def make(_: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        while_memory_lasts(make, 4)
