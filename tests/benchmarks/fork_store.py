"""The forks' way of storing activations and of reading them in random order, over data of ours.

`PairedActivationCache` of science-of-finetuning/dictionary_learning under a DataLoader, set up as in its training
script, and the function that writes its shards. Its DataLoader has 32 worker processes there; here the reading is done
in this process, so that its CPU time can be taken.

Legend: N rows, D width of one model.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import DataLoader

from tests.benchmarks.checkouts import load
from tests.benchmarks.peers import FORK

# Its default: rows of one file.
_SHARD_ROWS = 10**6
_NAME = "layer_0_out"


def fork_loader(peers: Path | None, folder: Path, rows: int, width: int, batch: int) -> DataLoader[Any] | str:
    """Batches (batch, 2, D) of two models' activations in bfloat16 in random order, or why there are none.

    Each `iter()` of it is one pass in a new order. The activations, `rows` random ones per model, are written into
    `folder` first, in two subfolders, in the forks' own format.
    """
    loaded = load(peers, FORK, "dictionary_learning.cache")
    if isinstance(loaded, str):
        return loaded
    (cache,) = loaded
    random = torch.Generator().manual_seed(0)
    stores = [folder / side for side in ("a", "b")]
    for store in stores:
        _write_store(cache, store, rows, width, random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = cache.PairedActivationCache(*map(str, stores), _NAME)
    return DataLoader(dataset, batch_size=batch, shuffle=True, generator=random)


def rows_per_cpu_second(loader: DataLoader[Any], batches: int) -> float:
    """Rows of both models that one CPU core reads in a second, over the first batches of a pass but the very first,
    before which it draws the order of all rows."""
    reader = iter(loader)
    next(reader)
    start = time.process_time()
    read = sum(len(batch) for _, batch in zip(range(batches), reader, strict=False))
    return read / (time.process_time() - start)


def _write_store(cache: ModuleType, store: Path, rows: int, width: int, random: torch.Generator) -> None:
    """Random rows with log-normal scales of the columns, shards and what the cache reads beside them."""
    folder = store / _NAME
    folder.mkdir(parents=True)
    scale_D = torch.randn(width, generator=random).exp()
    starts = range(0, rows, _SHARD_ROWS)
    for number, first in enumerate(starts):
        rows_ND = torch.empty(min(_SHARD_ROWS, rows - first), width, dtype=torch.bfloat16)
        for part in rows_ND.split(1 << 16):
            part.copy_(torch.randn(part.shape, generator=random) * scale_D)
        with contextlib.redirect_stdout(io.StringIO()):
            cache.save_shard(rows_ND, str(folder), number, _NAME, "out")
    config = {"total_size": rows, "shard_count": len(starts), "d_model": width, "store_tokens": True}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(torch.zeros(rows, dtype=torch.long), store / "tokens.pt")
