"""Import: activations captured elsewhere become the same artifact, checked and copied in blocks.

Legend: N rows, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from modeldiff.console import progress
from modeldiff.errors import InputError
from modeldiff.harvest.arrays import ArrayFile, find_array
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.harvest.sizes import bytes_needed
from modeldiff.harvest.statistics import RunningStatistics
from modeldiff.harvest.store import model_name, write_store
from modeldiff.sides import SIDES
from modeldiff.texts.readers import read_jsonl
from modeldiff.workspace.activations import DATASET, plan_name, rows_name
from modeldiff.workspace.artifact import Input
from modeldiff.workspace.bits import ENCODINGS, create_dataset, write_rows
from modeldiff.workspace.files import free_bytes, require_free, sha256_json
from modeldiff.workspace.plan import Document, PairTable, ShardPlan, Tokens, write_plan
from modeldiff.workspace.stage import Order, Work
from modeldiff.workspace.workspace import Workspace

_BLOCK_ROWS = 4096
_DEFAULT_LABEL = "imported"
# A token whose id was not given.
UNKNOWN_ID = -1


def prepare_import(
    settings: HarvestSettings, digest: Callable[[Path], str], *, kind: str, schema: int
) -> tuple[Order, Callable[[Work], dict[str, Any]]]:
    """The `activations` artifact made of two arrays, and of texts if there are any: the order, and what builds it.

    Raises as `harvest.run`.
    """
    arrays = find_arrays(settings)
    inputs = {
        f"import_{side}": Input(
            str(getattr(settings, f"import_{side}")), sha256_json([digest(arrays[side].path), arrays[side].key])
        )
        for side in SIDES
    }
    if settings.import_texts is not None:
        if not settings.import_texts.is_file():
            raise InputError(f"--import-texts: there is no file {settings.import_texts}")
        inputs["import_texts"] = Input(str(settings.import_texts), digest(settings.import_texts))
    return Order(kind, settings, inputs, schema), partial(_build, settings=settings, arrays=arrays)


def estimate_import(settings: HarvestSettings, workspace: Workspace) -> dict[str, Any]:
    """What `harvest.estimate` gives, for an import."""
    arrays = find_arrays(settings)
    needed = _needed(settings, arrays)
    free = free_bytes(workspace.folder)
    return {
        "pairs": arrays["a"].rows,
        "pairs_in_texts": None,
        "bytes_needed": needed,
        "bytes_free": free,
        "fits": needed <= free,
        "documents_looked_at": 0,
        **{
            side: {
                "model": getattr(settings, f"model_{side}"),
                "layers": None,
                "layer": getattr(settings, f"layer_{side}"),
                "width": arrays[side].width,
                "context": None,
                "kept": None,
                "characters": None,
            }
            for side in SIDES
        },
    }


def find_arrays(settings: HarvestSettings) -> dict[str, ArrayFile]:
    """Both arrays, by side. Raises InputError when they cannot be read or their rows differ in number."""
    arrays = {side: find_array(str(getattr(settings, f"import_{side}")), f"--import-{side}") for side in SIDES}
    if arrays["a"].rows != arrays["b"].rows:
        raise InputError(
            f"row i of A must belong with row i of B, but {arrays['a'].path} has {arrays['a'].rows:,} rows "
            f"and {arrays['b'].path} has {arrays['b'].rows:,}"
        )
    return arrays


def _needed(settings: HarvestSettings, arrays: dict[str, ArrayFile]) -> int:
    texts = settings.import_texts
    per_pair = texts.stat().st_size / arrays["a"].rows + 64 if texts else 0.0
    return bytes_needed(arrays["a"].rows, {side: arrays[side].width for side in SIDES}, settings.storage, per_pair)


def _build(work: Work, *, settings: HarvestSettings, arrays: dict[str, ArrayFile]) -> dict[str, Any]:
    rows = arrays["a"].rows
    require_free(work.folder, _needed(settings, arrays), f"an import of {rows:,} pairs")
    if settings.import_texts is not None:
        shards, labels = _write_plans(work, settings.import_texts, rows, settings.shard_pairs)
    else:
        shards = [min(settings.shard_pairs, rows - start) for start in range(0, rows, settings.shard_pairs)]
        labels = []
    for side in SIDES:
        _copy(work, side, arrays[side], shards, settings.storage)
    sides = {
        side: {
            "width": arrays[side].width,
            "encoding": settings.storage,
            "model": model_name(model) if (model := getattr(settings, f"model_{side}")) else None,
            "revision": getattr(settings, f"revision_{side}"),
            "layer": getattr(settings, f"layer_{side}"),
            "trust_remote_code": settings.trust_remote_code,
        }
        for side in SIDES
    }
    store = write_store(work, sides, shards, labels, has_texts=settings.import_texts is not None)
    return {"pairs": rows, "median_norm": {side: store.sides[side].median_norm for side in SIDES}}


def _copy(work: Work, side: str, array: ArrayFile, shards: list[int], encoding: str) -> None:
    missing = [shard for shard in range(len(shards)) if not work.has(rows_name(shard, side))]
    if not missing:
        return
    done = sum(shards) - sum(shards[shard] for shard in missing)
    with array.open() as read, progress(f"import {side.upper()}", sum(shards), "pairs", done=done) as bar:
        for shard in missing:
            first = sum(shards[:shard])
            name = rows_name(shard, side)
            temporary = work.temporary(name)
            statistics = RunningStatistics(array.width)
            with h5py.File(temporary, "w") as file:
                dataset = create_dataset(file, DATASET, shards[shard], array.width, encoding)
                for start in range(0, shards[shard], _BLOCK_ROWS):
                    stop = min(start + _BLOCK_ROWS, shards[shard])
                    stored_ND = _stored(read(first + start, first + stop), first + start, array.path, side, encoding)
                    write_rows(dataset, start, stored_ND)
                    statistics.add(stored_ND)
                    bar.advance(stop - start)
            statistics.save(work.resume, shard, side)
            work.commit(temporary, name)


def _stored(x_ND: torch.Tensor, first: int, path: Path, side: str, encoding: str) -> torch.Tensor:
    """The rows in the storage dtype. Raises InputError, naming the row, when they are not finite in it."""
    stored_ND = x_ND.to(ENCODINGS[encoding][0])
    if not torch.isfinite(stored_ND).all():
        bad = int(torch.nonzero(~torch.isfinite(stored_ND).all(dim=1))[0])
        if torch.isfinite(x_ND[bad]).all():
            raise InputError(
                f"--import-{side}: row {first + bad} of {path} is too large for {encoding}: "
                "use --storage bfloat16 or float32"
            )
        raise InputError(f"--import-{side}: row {first + bad} of {path} holds NaN or infinity: leave such pairs out")
    return stored_ND


def _write_plans(work: Work, path: Path, rows: int, shard_pairs: int) -> tuple[list[int], list[str]]:
    """Write the plan files from the texts; give (pairs of each shard, labels). A shard ends with a document."""
    labels: list[str] = []
    shards: list[int] = []
    waiting: list[tuple[Document, np.ndarray]] = []
    for document, ends in _documents(path, labels):
        waiting.append((document, ends))
        if sum(len(one) for _, one in waiting) >= shard_pairs:
            shards.append(_write_plan(work, len(shards), waiting))
            waiting = []
    if waiting:
        shards.append(_write_plan(work, len(shards), waiting))
    if sum(shards) != rows:
        raise InputError(f"{path}: its documents have {sum(shards):,} 'ends', but the activations have {rows:,} rows")
    return shards, labels


def _write_plan(work: Work, shard: int, documents: list[tuple[Document, np.ndarray]]) -> int:
    counts = [len(ends) for _, ends in documents]
    name = plan_name(shard)
    if not work.has(name):
        token = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
        pairs = PairTable(
            document=np.repeat(np.arange(len(documents), dtype=np.int32), counts),
            token=dict.fromkeys(SIDES, token),
            char_end=np.concatenate([ends for _, ends in documents]).astype(np.int32),
            window=dict.fromkeys(SIDES, np.ones(len(token), np.int32)),
        )
        temporary = work.temporary(name)
        write_plan(temporary, ShardPlan([document for document, _ in documents], pairs))
        work.commit(temporary, name)
    return sum(counts)


def _documents(path: Path, labels: list[str]) -> Iterator[tuple[Document, np.ndarray]]:
    """Documents and the ends of their pairs; the stretch between two ends stands for a token of both sides."""
    for index, (where, record) in enumerate(read_jsonl(path)):
        text, ends, label = record.get("text"), record.get("ends"), record.get("source", _DEFAULT_LABEL)
        if not isinstance(text, str) or not isinstance(ends, list) or not isinstance(label, str):
            raise InputError(f'{where}: expected {{"text": ..., "ends": [...]}} and a text "source", if any')
        valid = all(isinstance(end, int) and 0 < end <= len(text) for end in ends)
        if not ends or not valid or any(b <= a for a, b in itertools.pairwise(ends)):
            raise InputError(f"{where}: 'ends' must be rising character offsets from 1 to {len(text)}, one per pair")
        if label not in labels:
            labels.append(label)
        ends_N = np.array(ends, np.int32)
        starts_N = np.concatenate([[0], ends_N[:-1]]).astype(np.int32)
        tokens = {side: Tokens(_ids(record, f"ids_{side}", len(ends), where), starts_N, ends_N) for side in SIDES}
        yield Document(text, labels.index(label), index, tokens), ends_N


def _ids(record: dict[str, Any], field: str, count: int, where: str) -> np.ndarray:
    ids = record.get(field)
    if ids is None:
        return np.full(count, UNKNOWN_ID, np.int32)
    if not isinstance(ids, list) or len(ids) != count or not all(isinstance(i, int) for i in ids):
        raise InputError(f"{where}: '{field}' must be a list of {count} token ids, one per pair")
    return np.array(ids, np.int32)
