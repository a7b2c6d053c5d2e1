"""Top examples kept while streaming equal those found with everything in memory."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from modeldiff.features.examples import PASSAGE, TopRows, choose, passage_of

N_FEATURES = 3


def streamed(
    f_NF: np.ndarray, document_N: np.ndarray, n: int, block: int, processes: int
) -> list[list[tuple[float, int]]]:
    """Per feature the chosen (activation, row), strongest first. Each process has seen every so manieth block."""
    tops = [(TopRows(N_FEATURES, n), TopRows(N_FEATURES, n)) for _ in range(processes)]
    for number, start in enumerate(range(0, len(f_NF), block)):
        by_document, by_passage = tops[number % processes]
        row, feature = np.nonzero(f_NF[start : start + block])
        value = f_NF[start + row, feature]
        document, row = document_N[start + row], start + row
        by_document.update(feature, value, row, document)
        by_passage.update(feature, value, row, passage_of(document, row))
    for top in (top for both in tops for top in both):
        top.settle()
    (by_document, by_passage), *others = reversed(tops)
    for other_document, other_passage in others:
        by_document.add(other_document)
        by_passage.add(other_passage)
    examples = choose(by_document, by_passage)
    bounds = list(zip(examples.offsets[:-1], examples.offsets[1:], strict=True))
    return [list(zip(examples.activation[a:b].tolist(), examples.row[a:b].tolist(), strict=True)) for a, b in bounds]


def brute_force(f_N: np.ndarray, document_N: np.ndarray, n: int) -> list[tuple[float, int]]:
    """The rule, word for word, on one feature."""
    ranked = sorted((-float(value), row) for row, value in enumerate(f_N) if value > 0)
    chosen, later, documents, passages = [], [], set(), set()
    for negative, row in ranked:
        document, passage = document_N[row], (document_N[row], row // PASSAGE)
        if document not in documents:
            chosen.append((-negative, row))
        elif passage not in passages:
            later.append((-negative, row))
        documents.add(document)
        passages.add(passage)
    return sorted((chosen + later)[:n], key=lambda one: (-one[0], one[1]))


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 150),
    n=st.integers(1, 6),
    block=st.integers(1, 60),
    length=st.integers(1, 80),
    levels=st.integers(1, 20),
    processes=st.integers(1, 3),
)
def test_streaming_keeps_what_sorting_everything_would(
    seed: int, rows: int, n: int, block: int, length: int, levels: int, processes: int
) -> None:
    generator = np.random.default_rng(seed)
    # Few levels make ties, which must go to the earlier row.
    f_NF = (generator.integers(0, levels + 1, (rows, N_FEATURES)) / levels).astype(np.float32)
    f_NF[generator.random((rows, N_FEATURES)) < 0.5] = 0
    document_N = np.arange(rows) // length
    found = streamed(f_NF, document_N, n, block, processes)
    assert found == [brute_force(f_NF[:, i], document_N, n) for i in range(N_FEATURES)]
