"""Reading and writing activations: our sharded files against plain memory maps, raw reads, and the forks' loader.

Cold means that the files' pages were dropped from the page cache just before. CPU time is that of the whole process.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.data import PairStream
from modeldiff.sides import SIDES
from modeldiff.splits import hold_out_blocks
from modeldiff.workspace import Work, Workspace
from modeldiff.workspace.activations import DATASET, ActivationStore, rows_name
from modeldiff.workspace.bits import RowWriter
from modeldiff.workspace.hdf5 import NewFile
from tests.benchmarks.fork_store import fork_loader, rows_per_cpu_second
from tests.benchmarks.rows import Options, Row, against, interleaved
from tests.made_activations import make_activations

WIDTH = 512
SHARDS, SHARD_PAIRS = 8, 32_768
PAIRS = SHARDS * SHARD_PAIRS
BATCH = 2048
PAIR_BYTES = len(SIDES) * WIDTH * 2
_SIZES = f"{PAIRS * PAIR_BYTES >> 20} MiB, rows of 2 x {WIDTH} bf16, {SHARDS} shards"
_LEAST_ROUNDS = 5
_FORK_BATCHES = 4


def rows(options: Options) -> Iterator[Row]:
    rounds = max(_LEAST_ROUNDS, options.rounds)
    yield _append(options.folder / "append", rounds)
    random = torch.Generator().manual_seed(0)
    x_a, x_b = (torch.randn(PAIRS, WIDTH, generator=random).bfloat16() for _ in SIDES)
    workspace = Workspace(options.folder / "workspace")
    store = ActivationStore(make_activations(workspace, x_a, x_b, SHARD_PAIRS, encoding="bfloat16"))
    del x_a, x_b
    yield from _reads(store, rounds)
    yield _loader(store, options)


def _append(folder: Path, rounds: int) -> Row:
    shard = torch.randn(SHARD_PAIRS, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    bits = shard.view(torch.uint16).numpy()
    folder.mkdir()

    def mapped() -> None:
        path = folder / "map"
        array = np.memmap(path, dtype=np.uint16, mode="w+", shape=(len(SIDES) * PAIRS, WIDTH))
        for start in range(0, len(array), SHARD_PAIRS):
            array[start : start + SHARD_PAIRS] = bits
        array.flush()
        with path.open("rb+") as file:
            os.fsync(file.fileno())

    def sharded() -> None:
        work = Work(folder / "work")
        for number in range(SHARDS):
            for side in SIDES:
                name = rows_name(number, side)
                temporary = work.temporary(name)
                with NewFile(temporary) as file:
                    RowWriter(file, DATASET, SHARD_PAIRS, WIDTH, "bfloat16").append(shard)
                work.commit(temporary, name)

    def clear() -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                path.unlink()
        os.sync()

    seconds = interleaved({"memmap": mapped, "ours": sharded}, rounds, before=clear)
    clear()
    return against("append: fsync, rename, digest, against memmap + fsync", seconds, "memmap", 0.70, _SIZES)


def _reads(store: ActivationStore, rounds: int) -> Iterator[Row]:
    paths = sorted(path for side in SIDES for path in store.artifact.folder.glob(f"shards/*.{side}.h5"))
    sizes = f"{_SIZES}, --buffer-mib {TrainSettings().buffer_mib}"
    with closing(epochs(store)) as reading:
        variants = {"raw": lambda: read_raw(paths), "ours": lambda: next(reading)}
        cold = interleaved(variants, rounds, before=lambda: evict(paths))
        warm = interleaved(variants, rounds)
    for name, seconds, target in (("cold", cold, 0.80), ("warm", warm, 0.30)):
        yield against(f"shuffled training reads, {name}, against raw in order", seconds, "raw", target, sizes)


def read_raw(paths: list[Path]) -> None:
    """Every byte, in order, into one buffer."""
    buffer = bytearray(2 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def epochs(store: ActivationStore) -> Generator[int]:
    """Every `next` reads every pair once, as training takes them, and gives how many these were; what is read ahead at
    the end of one epoch serves the next."""
    train, _ = hold_out_blocks(store, 1e-6)  # nearly everything
    stream = PairStream(store, train, batch=BATCH, seed=0, buffer_bytes=TrainSettings().buffer_mib << 20)
    steps = stream.rows_per_epoch // BATCH
    with closing(stream.batches()) as batches:
        while True:
            for _ in range(steps):
                next(batches)
            yield steps * BATCH


def evict(paths: list[Path]) -> None:
    """Drop the files' pages from the page cache; they must be on disk already."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _loader(store: ActivationStore, options: Options) -> Row:
    """CPU time, both from the page cache: the forks' loader needs it for every single row."""
    what = "shuffled training reads per CPU-second, warm, against the forks' loader"
    loader = fork_loader(options.peers, options.folder / "fork", PAIRS, WIDTH, BATCH)
    if isinstance(loader, str):
        return Row(what, None, 30, note=loader)
    found: dict[str, list[float]] = {"ours": [], "fork": []}
    with closing(epochs(store)) as reading:
        for number in range(1 + max(_LEAST_ROUNDS, options.rounds)):
            start = time.process_time()
            pairs = next(reading)
            seconds = time.process_time() - start
            theirs = rows_per_cpu_second(loader, _FORK_BATCHES)
            if number:
                found["ours"].append(pairs / seconds)
                found["fork"].append(theirs)
    ratio = statistics.median(a / b for a, b in zip(found["ours"], found["fork"], strict=True))
    speed = {name: f"{statistics.median(rates) * PAIR_BYTES / 1e6:.0f} MB/s" for name, rates in found.items()}
    return Row(what, ratio, 30, note=f"{_SIZES}; ours {speed['ours']}, the forks' {speed['fork']} per core")
