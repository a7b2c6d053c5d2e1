"""places.safetensors: where each listed entry holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from scipy import sparse

from modeldiff.contrast.contexts import Context, Contexts
from modeldiff.contrast.discovery import Candidate, Outcome, Verified
from modeldiff.contrast.run import places_of
from modeldiff.contrast.stored import read_places


def _outcome() -> Outcome:
    on_CP = sparse.csr_matrix(np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1]], np.float32))
    contexts = Contexts([Context("word", name) for name in ("oak", "elm", "ash")], on_CP)
    entries = [Verified(Candidate(c, 1.0, [], {"a": [], "b": []}), {}, 1.0, False) for c in (2, 1, 0)]
    return Outcome(contexts, np.zeros(4, bool), 3, entries, 0.0)


def _read(folder: Path, content: bytes) -> list[list[int]]:
    path = folder / "places.safetensors"
    path.write_bytes(content)
    artifact = cast(Any, SimpleNamespace(file=lambda name: folder / name))
    return [one.tolist() for one in read_places(artifact)]


def test_of_each_entry_in_the_order_asked_for(tmp_path: Path) -> None:
    assert _read(tmp_path, places_of(_outcome(), [1, 3, 2])) == [[1, 2, 3], [0, 2], []]


def test_no_entries(tmp_path: Path) -> None:
    assert _read(tmp_path, places_of(_outcome(), [])) == []
