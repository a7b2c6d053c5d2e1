"""Import: activations captured elsewhere become the same artifact, checked and copied in blocks.

They are (N, D) arrays in .npy, .safetensors or HDF5 files. Legend: N rows, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from modeldiff.console import progress
from modeldiff.errors import DamagedError, InputError, ModeldiffError, first_line
from modeldiff.harvest.pieces import Piece
from modeldiff.harvest.planner import bytes_needed, write_shard
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.harvest.store import Rows, missing_shards, shard_file, write_store
from modeldiff.sides import SIDES
from modeldiff.texts.readers import read_objects
from modeldiff.workspace.activations import plan_name
from modeldiff.workspace.artifact import Input
from modeldiff.workspace.bits import ENCODINGS
from modeldiff.workspace.files import require_free, sha256_json
from modeldiff.workspace.hdf5 import open_hdf5
from modeldiff.workspace.plan import Document, PairTable, Tokens
from modeldiff.workspace.stage import Work

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_BLOCK_ROWS = 4096
# A token whose id was not given.
UNKNOWN_ID = -1


@dataclass(frozen=True)
class ArrayFile:
    path: Path
    key: str | None
    """Tensor or data set in the file; None for .npy."""
    rows: int
    width: int


def find_arrays(settings: HarvestSettings) -> dict[str, ArrayFile]:
    """Both arrays, by side. Raises InputError: no such file or key, not two-dimensional, empty, not of a floating type,
    or different numbers of rows; DamagedError: a file cannot be read."""
    arrays = {side: _find_array(getattr(settings, f"import_{side}"), f"--import-{side}") for side in SIDES}
    if arrays["a"].rows != arrays["b"].rows:
        raise InputError(
            f"row i of A must belong with row i of B, but {arrays['a'].path} has {arrays['a'].rows:,} rows "
            f"and {arrays['b'].path} has {arrays['b'].rows:,}"
        )
    return arrays


def import_inputs(
    settings: HarvestSettings, arrays: dict[str, ArrayFile], digest: Callable[[Path], str]
) -> dict[str, Input]:
    """What an import is made from, for its fingerprint."""
    inputs = {}
    for side, array in arrays.items():
        content = sha256_json([digest(array.path), array.key])
        inputs[f"import_{side}"] = Input(getattr(settings, f"import_{side}"), content)
    if settings.import_texts is not None:
        if not settings.import_texts.is_file():
            raise InputError(f"--import-texts: there is no file {settings.import_texts}")
        inputs["import_texts"] = Input(str(settings.import_texts), digest(settings.import_texts))
    return inputs


def import_bytes(settings: HarvestSettings, arrays: dict[str, ArrayFile]) -> int:
    texts, rows = settings.import_texts, arrays["a"].rows
    per_pair = texts.stat().st_size / rows + 64 if texts else 0.0
    widths = {side: array.width for side, array in arrays.items()}
    return bytes_needed(rows, widths, settings.storage, per_pair)


def build_import(work: Work, settings: HarvestSettings, arrays: dict[str, ArrayFile]) -> dict[str, Any]:
    """Copy both arrays and the texts, if there are any; give the metrics."""
    rows = arrays["a"].rows
    require_free(work.folder, import_bytes(settings, arrays), f"an import of {rows:,} pairs")
    shards = [min(settings.shard_pairs, rows - start) for start in range(0, rows, settings.shard_pairs)]
    labels: list[str] = []
    if settings.import_texts is not None:
        shards, labels = _write_plans(work, settings.import_texts, rows, settings.shard_pairs)
    for side in SIDES:
        _copy(work, side, arrays[side], shards, settings.storage)
    layers = {"a": settings.layer_a, "b": settings.layer_b}
    widths = {side: array.width for side, array in arrays.items()}
    metrics = write_store(work, settings, widths, layers, shards, labels)
    for side, median_norm in metrics["median_norm"].items():
        if not median_norm:  # activations are counted in it
            raise InputError(
                f"--import-{side}: more than half of the rows of {arrays[side].path} are zero: leave such pairs out"
            )
    return metrics


def _copy(work: Work, side: str, array: ArrayFile, shards: list[int], encoding: str) -> None:
    missing = missing_shards(work, shards, side)
    if not missing:
        return
    done = sum(shards) - sum(shards[shard] for shard in missing)
    with _opened(array.path) as arrays, progress(f"import {side.upper()}", sum(shards), "pairs", done) as bar:
        for shard in missing:
            first, end = sum(shards[:shard]), sum(shards[: shard + 1])
            with shard_file(work, shard, side, shards[shard], array.width, encoding) as append:
                for start in range(first, end, _BLOCK_ROWS):
                    stop = min(start + _BLOCK_ROWS, end)
                    with _reading(array.path):
                        x_ND = _tensor(arrays[array.key][start:stop])
                    append(Rows.of(_stored(x_ND, start, array.path, side, encoding)))
                    bar.advance(stop - start)


def _stored(x_ND: torch.Tensor, first: int, path: Path, side: str, encoding: str) -> torch.Tensor:
    """The rows in the storage dtype. Raises InputError, naming the row, when they are not finite in it."""
    stored_ND = x_ND.to(ENCODINGS[encoding][0])
    if not torch.isfinite(stored_ND).all():
        bad = int(torch.nonzero(~torch.isfinite(stored_ND).all(dim=1))[0])
        what = f"--import-{side}: row {first + bad} of {path}"
        if torch.isfinite(x_ND[bad]).all():
            raise InputError(f"{what} is too large for {encoding}: use --storage bfloat16 or float32")
        raise InputError(f"{what} holds NaN or infinity: leave such pairs out")
    return stored_ND


def _find_array(entry: str, option: str) -> ArrayFile:
    """The array that `FILE` or `FILE:KEY` means."""
    path, key = Path(entry), None
    head, colon, tail = entry.rpartition(":")
    # A colon before a separator belongs to the path.
    if not path.exists() and colon and head and Path(head).suffix:
        path, key = Path(head), tail
    if not path.is_file():
        raise InputError(f"{option}: there is no file {path}")
    if path.suffix.lower() not in (".npy", ".safetensors", ".h5", ".hdf5"):
        raise InputError(f"{option}: {path} ends in '{path.suffix}': expected .npy, .safetensors or .h5")
    with _opened(path) as arrays:
        key = _choose_key(arrays, path, key, option)
        array = arrays[key]
        shape = tuple((array.get_shape() if path.suffix.lower() == ".safetensors" else array.shape) or ())
        place = f"{path}:{key}" if key else str(path)
        if len(shape) != 2:
            raise InputError(f"{option}: {place} has shape {shape}: expected (pairs, width)")
        if 0 in shape:
            raise InputError(f"{option}: {place} is empty: its shape is {shape}")
        with _reading(path):
            dtype = _tensor(array[:1]).dtype
        if dtype not in _DTYPES:
            raise InputError(f"{option}: {place} has type {dtype}: expected bfloat16, float16, float32 or float64")
        return ArrayFile(path, key, *shape)


def _choose_key(keys: Collection[str | None], path: Path, key: str | None, option: str) -> str | None:
    if None in keys and key:
        raise InputError(f"{option}: {path} holds one array: leave out ':{key}'")
    found = ", ".join(sorted(map(str, keys))) or "nothing"
    if key is None and len(keys) != 1:
        raise InputError(f"{option}: which array of {path}? It holds {found}; choose one as {path}:KEY")
    chosen = next(iter(keys)) if key is None else key.strip("/")
    if chosen not in keys:
        raise InputError(f"{option}: {path} has no '{key}': it holds {found}")
    return chosen


@contextmanager
def _opened(path: Path) -> Iterator[dict[str | None, Any]]:
    """The arrays of a file, by key (None in .npy), to be sliced; none is read yet. Raises DamagedError: the file
    cannot be opened. What goes wrong inside of the `with` is not blamed on it."""
    suffix = path.suffix.lower()
    arrays: dict[str | None, Any] = {}
    with ExitStack() as stack:
        with _reading(path):
            if suffix == ".npy":
                arrays[None] = np.lib.format.open_memmap(path, mode="r")
            elif suffix == ".safetensors":
                file = stack.enter_context(safe_open(path, framework="pt"))
                arrays |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            else:
                file = stack.enter_context(open_hdf5(path))
                file.visititems(lambda name, item: arrays.update({name: item} if hasattr(item, "shape") else {}))
        yield arrays


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Around what reads the file, and nothing else."""
    try:
        yield
    except ModeldiffError:
        raise
    except Exception as error:  # NumPy, safetensors and HDF5 raise errors of many kinds for a file they cannot read
        raise DamagedError(f"{path}: cannot be read ({first_line(error)})") from None


def _tensor(array: Any) -> torch.Tensor:
    """A copy in the machine's byte order; kinds that torch lacks come out as one that is no float."""
    if isinstance(array, torch.Tensor):
        return array
    array = np.array(array)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        return torch.zeros(0, dtype=torch.int64 if array.dtype.kind in "iu" else torch.bool)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _write_plans(work: Work, path: Path, rows: int, shard_pairs: int) -> tuple[list[int], list[str]]:
    """Write the plan files from the texts; give (pairs of each shard, labels). A shard ends with a document."""
    labels: list[str] = []
    shards: list[int] = []
    pieces: list[Piece] = []

    def close() -> None:
        if not work.has(plan_name(len(shards))):
            write_shard(work, len(shards), pieces)
        shards.append(sum(len(pairs) for _, pairs in pieces))
        pieces.clear()

    for index, (where, record) in enumerate(read_objects(path)):
        pieces.append(_piece(record, where, index, labels))
        if sum(len(pairs) for _, pairs in pieces) >= shard_pairs:
            close()
    if pieces:
        close()
    if sum(shards) != rows:
        raise InputError(f"{path}: its documents have {sum(shards):,} 'ends', but the activations have {rows:,} rows")
    return shards, labels


def _piece(record: dict[str, Any], where: str, index: int, labels: list[str]) -> Piece:
    """A document and its pairs; the text between two ends stands for a token of both sides."""
    text, ends, label = record.get("text"), record.get("ends"), record.get("source", "imported")
    if not isinstance(text, str) or not isinstance(ends, list) or not isinstance(label, str):
        raise InputError(f'{where}: expected {{"text": ..., "ends": [...]}} and a text "source", if any')
    valid = all(isinstance(end, int) and 0 < end <= len(text) for end in ends)
    if not ends or not valid or any(b <= a for a, b in itertools.pairwise(ends)):
        raise InputError(f"{where}: 'ends' must be rising character offsets from 1 to {len(text)}, one per pair")
    if label not in labels:
        labels.append(label)
    count = len(ends)
    ends_N = np.array(ends, np.int32)
    starts_N = np.concatenate([[0], ends_N[:-1]]).astype(np.int32)
    tokens = {side: Tokens(_ids(record, f"ids_{side}", count, where), starts_N, ends_N) for side in SIDES}
    token, window = np.arange(count, dtype=np.int32), np.ones(count, np.int32)
    pairs = PairTable(np.zeros(count, np.int32), dict.fromkeys(SIDES, token), ends_N, dict.fromkeys(SIDES, window))
    return Document(text, labels.index(label), index, tokens), pairs


def _ids(record: dict[str, Any], field: str, count: int, where: str) -> np.ndarray:
    ids = record.get(field)
    if ids is None:
        return np.full(count, UNKNOWN_ID, np.int32)
    if not isinstance(ids, list) or len(ids) != count or not all(isinstance(i, int) for i in ids):
        raise InputError(f"{where}: '{field}' must be a list of {count} token ids, one per pair")
    return np.array(ids, np.int32)
