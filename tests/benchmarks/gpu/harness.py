"""What a check of a device is made of: rows, which are kept as they come; phases, none of which ends the others; a limit.

A row is about correctness (a deviation from the CPU, or from a formula, that must not pass a bound: these decide the
exit code) or about speed (a figure, with a wish at most). A phase or a part of one that raises is a wrong row.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from modeldiff.console import echo
from tests.benchmarks.start import Sizes as StepSizes


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Attributes:
        paper, small, middle: training steps at the size of the DFC paper, at one that a small model has, and at one
            whose every stage takes seconds.
        middle_pairs: activations of the size `middle`, in a store.
        far_rows: of a bfloat16 matrix 4096 wide whose last rows begin behind 2^31 values; 0: there is none.
        copied, squared: bytes, and rows of a matrix, by which the device's ceilings are measured.
        pairs, features, places: of the bundled pair of models.
        layers, width: of the model of random weights that is harvested; harvest_pairs: of its activations.
        rounds: times that something is run, of which the median counts.
    """

    paper: StepSizes
    small: StepSizes
    middle: StepSizes
    middle_pairs: int
    far_rows: int
    copied: int
    squared: int
    pairs: int
    features: int
    places: int
    layers: int
    width: int
    harvest_pairs: int
    rounds: int


# 17 blocks of an 8B Llama: as many as a harvest of its middle one runs.
FULL = Sizes(
    paper=StepSizes(width=4096, features=131_072, k=200, batch=2048, exclusive=0.05),
    small=StepSizes(width=512, features=8192, k=64, batch=2048, exclusive=0.05),
    middle=StepSizes(width=4096, features=16_384, k=128, batch=2048, exclusive=0.05),
    middle_pairs=32_768, far_rows=600_000, copied=1 << 31, squared=8192, pairs=8000, features=512, places=600,
    layers=17, width=4096, harvest_pairs=180_000, rounds=9,
)  # fmt: skip
DRY = Sizes(
    paper=StepSizes(width=32, features=256, k=8, batch=64, exclusive=0.1),
    small=StepSizes(width=16, features=128, k=8, batch=64, exclusive=0.1),
    middle=StepSizes(width=32, features=256, k=8, batch=64, exclusive=0.1),
    middle_pairs=1024, far_rows=0, copied=1 << 16, squared=64, pairs=1200, features=64, places=80,
    layers=3, width=64, harvest_pairs=600, rounds=1,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the answer.

    Attributes:
        value: null: nothing was measured; `note` says why.
        precision: what was multiplied in, where it matters.
        want: in words; ok: whether that is met; null: nothing is wanted, or nothing was measured.
        decides: whether the row is about correctness, and so about the exit code.
    """

    phase: str
    what: str
    value: float | str | None
    unit: str = ""
    precision: str = ""
    want: str = ""
    ok: bool | None = None
    decides: bool = False
    note: str = ""


@dataclass(frozen=True)
class Phase:
    """`seconds`: what it may take on the device; it does not begin when that would pass the limit."""

    name: str
    run: Callable[[Bench], None]
    seconds: float


@dataclass
class Bench:
    """A check under way: where it runs, what it found.

    Attributes:
        file: the rows are written there after each one, in one piece; None: nowhere.
        about: what the file says besides the rows: device, versions.
        folder: an empty one for what phases make.
        limit: seconds from `begun` on.
        found: figures of one phase that others compare with, by name.
    """

    device: torch.device
    sizes: Sizes
    folder: Path
    file: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    dry: bool = False
    limit: float = math.inf
    begun: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)
    phase: str = ""

    def run(self, phases: Iterable[Phase]) -> None:
        """All phases that there is time for, in order."""
        for phase in phases:
            self.phase = phase.name
            if self.seconds + phase.seconds > self.limit:
                self.add(Row(phase.name, "the whole phase", None, note=f"left out: it may take {phase.seconds:g} s"))
                continue
            echo(f"== {phase.name} (after {self.seconds:.0f} s)")
            self.free()
            with self.guarded("the whole phase"):
                phase.run(self)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    @property
    def wrong(self) -> list[str]:
        """What decides the exit code and is not right."""
        return [f"{row.phase}: {row.what}" for row in self.rows if row.decides and row.ok is False]

    def add(self, row: Row) -> None:
        self.rows.append(row)
        value = row.value if isinstance(row.value, str) else "-" if row.value is None else f"{row.value:.4g}"
        mark = {True: "ok", False: "WRONG" if row.decides else "MISSED", None: ""}[row.ok]
        words = f"  {row.what:<66s} {value:>10s} {row.unit:<9s} {row.precision:<8s} {row.want:<14s} {mark}"
        echo(" ".join(filter(None, (words.rstrip(), f"({row.note})" if row.note else ""))))
        self.write()

    def write(self, **more: Any) -> None:
        """The file anew: the one before is there until this one is whole."""
        if self.file:
            seconds = None if self.dry else round(self.seconds, 1)
            data = {**self.about, "seconds": seconds, "wrong": self.wrong, **more, "rows": list(map(asdict, self.rows))}
            temporary = self.file.with_name(f"{self.file.name}.tmp")
            temporary.write_text(json.dumps(data, indent=1) + "\n")
            temporary.replace(self.file)

    def right(self, what: str, value: float, most: float, precision: str = "", note: str = "") -> None:
        """A deviation, which must be a number of at most `most`."""
        value = float(value)
        ok = math.isfinite(value) and value <= most
        shown = value if math.isfinite(value) else str(value)  # JSON has no other numbers
        self.add(Row(self.phase, what, shown, "", precision, f"at most {most:g}", ok, decides=True, note=note))

    def least(self, what: str, value: float, least: float, precision: str = "") -> None:
        """A share or a number, which must be at least `least`."""
        ok = value >= least
        self.add(Row(self.phase, what, float(value), "", precision, f"at least {least:g}", ok, decides=True))

    def speed(
        self, what: str, value: float, unit: str, precision: str = "", *,
        most: float | None = None, least: float | None = None, note: str = "",
    ) -> None:  # fmt: skip
        """A figure of time or memory, which a dry run has no use for."""
        wish = f"at most {most:g}" if most is not None else f"at least {least:g}" if least is not None else ""
        if self.dry:
            self.add(Row(self.phase, what, None, unit, precision, wish, note="a dry run measures nothing"))
            return
        ok = value <= most if most is not None else value >= least if least is not None else None
        self.add(Row(self.phase, what, float(value), unit, precision, wish, ok, note=note))

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """What raises inside is a wrong row, and no more."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            note = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.add(Row(self.phase, what, None, ok=False, decides=True, note=note))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Give memory back, and begin to look for the peak anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    @property
    def peak_gb(self) -> float:
        """10^9 bytes, since `free`."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else math.nan

    def milliseconds(self, run: Callable[[], object]) -> float:
        """Median over the rounds, after two that warm up; the device has done its work when a round ends."""
        for _ in range(0 if self.dry else 2):
            run()
        took = []
        for _ in range(self.sizes.rounds):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            took.append(1000 * (time.perf_counter() - start))
        return statistics.median(took)

    def part(
        self, what: str, run: Callable[[], object], precision: str = "", *, gigabytes: float = 0, teraflop: float = 0
    ) -> None:
        """Time one operation, and say what that is of the bytes that it moves or the products that it makes."""
        with self.guarded(what):
            took = self.milliseconds(run)
            self.speed(what, took, "ms", precision)
            if gigabytes:
                self.speed("... that is", 1000 * gigabytes / took, "GB/s")
            if teraflop:
                self.speed("... that is", 1000 * teraflop / took, "TFLOP/s")

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, seed: int) -> torch.Tensor:
        """Random numbers, float32, on the device."""
        return torch.randn(*shape, generator=self.generator(seed), device=self.device)
