"""How a training step's time and memory grow with the dictionary, the width and k, beside the clean dense step.

    python -m tests.benchmarks.growth [--csv FILE] [--figure FILE] [--rounds 5] [--read FILE]

One of the three varies at a time. Every size is measured in a process of its own: both steps in turn, after the peak of
each one's memory (Linux only). --read draws what an earlier run wrote with --csv.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import json
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from torch import device

from modeldiff.crosscoder.plan import Job, step_parts
from tests.benchmarks.__main__ import machine
from tests.benchmarks.dense import dense_step
from tests.benchmarks.rows import interleaved, mib, ratio
from tests.benchmarks.start import Sizes, Start, Step, make_start
from tests.benchmarks.step import ours_step

BASE = Sizes(width=256, features=4096, k=32, batch=2048)
VARIED: dict[str, list[int]] = {
    "features": [1024, 2048, 4096, 8192, 16384, 32768],
    "width": [64, 128, 256, 512, 1024],
    "k": [8, 16, 32, 64, 128, 256],
}
_LABELS = {"features": "features", "width": "width of each model", "k": "active features per pair (k)"}
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Measured:
    """Seconds of a step (medians) and their ratio (median over the rounds); peak bytes of a step beside the data, None
    where they cannot be read, and what `train --plan` says about ours."""

    width: int
    features: int
    k: int
    batch: int
    ours_seconds: float
    dense_seconds: float
    ratio: float
    ours_bytes: int | None
    dense_bytes: int | None
    ours_planned: int


def measure(sizes: Sizes, rounds: int) -> Measured:
    """Measure in this process."""
    made: dict[str, Callable[[Start], Step]] = {"ours": ours_step, "dense": dense_step}
    _load(made)
    start = make_start(sizes, log_every=1 << 40)
    peaks = {name: _peak(make, start) for name, make in made.items()}
    steps = {name: make(start) for name, make in made.items()}
    batches = {name: start.batches() for name in made}
    # The only step of ours that is logged is its first, in the round that warms up.
    run = {name: lambda name=name: steps[name](next(batches[name])) for name in made}
    seconds = interleaved(run, rounds)
    return Measured(
        **{name: value for name, value in asdict(sizes).items() if name != "exclusive"},
        ours_seconds=statistics.median(seconds["ours"]),
        dense_seconds=statistics.median(seconds["dense"]),
        ratio=ratio(seconds, "dense", "ours"),
        ours_bytes=peaks["ours"],
        dense_bytes=peaks["dense"],
        ours_planned=_planned(start),
    )


def _load(made: dict[str, Callable[[Start], Step]]) -> None:
    """Steps of a tiny size: code and libraries are in memory afterwards."""
    tiny = make_start(Sizes(width=16, features=64, k=2, batch=64), log_every=1 << 40)
    for make in made.values():
        step = make(tiny)
        for x_B2d in tiny.batches_NB2d[:2]:
            step(x_B2d)


def _peak(make: Callable[[Start], Step], start: Start) -> int | None:
    """Most memory of three steps (the moments are made in the first), above what is held before."""
    if not _STATUS.exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    step = make(start)
    for x_B2d in start.batches_NB2d[:3]:
        step(x_B2d)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _planned(start: Start) -> int:
    """Bytes of a step of ours without dead features; the batch itself is the benchmark's data."""
    crosscoder, recipe = start.crosscoder()
    job = Job(
        config=crosscoder.config,
        recipe=replace(recipe, auxk_alpha=0.0),
        precision="float32",
        device=device("cpu"),
        pairs=0,
        pair_bytes=4 * 2 * start.sizes.width,
        block_rows=1,
        buffer_bytes=0,
    )
    sizes = start.sizes
    return sum(step_parts(job).values()) - 4 * sizes.batch * 2 * sizes.width


def measure_all(rounds: int) -> list[tuple[str, Measured]]:
    """(what varies, measured) for every size; the common one is measured once."""
    known: dict[Sizes, Measured] = {}
    found = []
    for varied, values in VARIED.items():
        for value in values:
            sizes = replace(BASE, **{varied: value})
            if sizes not in known:
                with ProcessPoolExecutor(1, get_context("spawn")) as process:
                    known[sizes] = process.submit(measure, sizes, rounds).result()
                print(_line(known[sizes]), flush=True)  # noqa: T201
            found.append((varied, known[sizes]))
    return found


def _line(one: Measured) -> str:
    memory = f"{mib(one.ours_bytes)} MiB (planned {mib(one.ours_planned)}), dense {mib(one.dense_bytes)} MiB"
    return (
        f"d {one.width:4}, {one.features:5} features, k {one.k:3}: {1000 * one.ours_seconds:6.1f} ms, "
        f"dense {1000 * one.dense_seconds:6.0f} ms, {one.ratio:.1f} x; {memory}"
    )


def draw(found: list[tuple[str, Measured]], file: Path) -> None:
    """Time above, memory below; one column for each thing that varies."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    figure.suptitle(
        f"around {BASE.features:,} features, width {BASE.width} + {BASE.width}, k {BASE.k}; {BASE.batch:,} pairs a step"
    )
    axes = figure.subplots(2, len(VARIED), sharex="col", sharey="row")
    looks: dict[str, dict[str, Any]] = {
        "dense": {"color": "#777777", "marker": "s", "label": "plain dense PyTorch"},
        "ours": {"color": "#0072B2", "marker": "o", "label": "modeldiff"},
    }
    for column, varied in enumerate(VARIED):
        ones = [one for name, one in found if name == varied]
        x = [getattr(one, varied) for one in ones]
        time, memory = axes[:, column]
        for name, look in looks.items():
            time.plot(x, [1000 * getattr(one, f"{name}_seconds") for one in ones], markersize=5, **look)
            sizes = [getattr(one, f"{name}_bytes") for one in ones]
            if all(sizes):
                memory.plot(x, [size / 2**20 for size in sizes], markersize=5, **look)
        planned = [one.ours_planned / 2**20 for one in ones]
        memory.plot(x, planned, color="#0072B2", linestyle=":", marker="", label="as train --plan says")
        for one, side in ((ones[0], "left"), (ones[-1], "right")):
            place = (getattr(one, varied), 1000 * one.ours_seconds)
            offset = {"xytext": (0, -12), "textcoords": "offset points", "va": "top", "ha": side}
            time.annotate(f"{one.ratio:.1f}×", place, color="#0072B2", fontsize=11, **offset)
        for panel in (time, memory):
            panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3)
            panel.xaxis.set_major_locator(FixedLocator(x))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.tick_params(labelsize=11)
        memory.set_xticklabels([f"{value // 1024}k" if varied == "features" else str(value) for value in x])
        memory.set_xlabel(_LABELS[varied], fontsize=12)
    for panel, label in ((axes[0, 0], "time of a step (ms)"), (axes[1, 0], "memory of a step (MiB)")):
        panel.set_ylabel(label, fontsize=12)
        low, high = panel.get_ylim()
        panel.set_ylim(low / 2.6, 2 * high)
    axes[0, 0].legend(fontsize=11, loc="upper left")
    lines, labels = axes[1, 0].get_legend_handles_labels()
    axes[1, 0].legend(lines[-1:], labels[-1:], fontsize=11, loc="upper left")
    figure.savefig(file, dpi=130, metadata={"Software": None} if file.suffix == ".png" else None)


def _write(found: list[tuple[str, Measured]], file: Path) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["varied", *Measured.__dataclass_fields__])
        writer.writerows([varied, *asdict(one).values()] for varied, one in found)


def _read(file: Path) -> list[tuple[str, Measured]]:
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [
        (row.pop("varied"), Measured(**{name: json.loads(value or "null") for name, value in row.items()}))
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.growth", description=__doc__)
    parser.add_argument("--csv", type=Path, help="write the numbers into this file")
    parser.add_argument("--figure", type=Path, help="draw them into this file")
    parser.add_argument("--read", type=Path, help="numbers of an earlier run instead of new ones")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.read:
        found = _read(arguments.read)
    else:
        print(machine(), flush=True)  # noqa: T201
        found = measure_all(arguments.rounds)
    if arguments.csv:
        _write(found, arguments.csv)
    if arguments.figure:
        draw(found, arguments.figure)


if __name__ == "__main__":
    main()
