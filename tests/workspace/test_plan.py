"""The plan file gives back what was put in, and the same plan gives the same bytes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.errors import DamagedError
from modeldiff.sides import SIDES
from modeldiff.workspace.plan import Document, PairTable, ShardPlan, Tokens, read_plan, write_plan


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def make_plan(texts: list[str]) -> ShardPlan:
    documents = [
        Document(text, i % 3, 10 + i, {side: Tokens(ints(1, 2), ints(-1, 0), ints(-1, len(text))) for side in SIDES})
        for i, text in enumerate(texts)
    ]
    count = len(texts)
    column = np.arange(count, dtype=np.int32)
    pairs = PairTable(column, {side: np.ones(count, np.int32) for side in SIDES}, column, dict.fromkeys(SIDES, column))
    return ShardPlan(documents, pairs)


@given(texts=st.lists(st.text(), max_size=6))
def test_round_trip_and_equal_bytes(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("plan")
    write_plan(folder / "one.h5", make_plan(texts))
    write_plan(folder / "two.h5", make_plan(texts))
    assert (folder / "one.h5").read_bytes() == (folder / "two.h5").read_bytes()
    back = read_plan(folder / "one.h5")
    assert [d.text for d in back.documents] == texts
    assert [(d.source, d.index) for d in back.documents] == [(i % 3, 10 + i) for i in range(len(texts))]
    assert back.pairs.document.tolist() == list(range(len(texts)))
    for document in back.documents:
        assert document.tokens["b"].starts.tolist() == [-1, 0]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "00000.plan.h5"
    write_plan(path, make_plan(["some text"]))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DamagedError, match=r"00000\.plan\.h5"):
        read_plan(path)
