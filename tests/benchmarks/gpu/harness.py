"""What a check of a device is made of: rows, which are kept as they come, and phases, none of which ends the others.

A row is about correctness (a deviation from the CPU or from a formula, within a bound: these decide the exit code) or
about speed. What raises, a phase or a part of one, is a wrong row.
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
from tests.benchmarks.start import Sizes as Step

_WARM_UP, _ROUNDS = 2, 9


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    paper: Step
    small: Step
    """Of a small model, where launches and waits rule."""
    middle: Step
    """At which every stage takes seconds."""
    far_rows: int
    """Of a bfloat16 matrix 4096 wide whose last rows begin behind 2^31 values; 0: there is none."""
    squared: int
    """Rows of a matrix by which the device's ceilings are measured."""
    pairs: int
    """Of the bundled pair; likewise features and places."""
    features: int
    places: int
    layers: int
    """Of a Llama as wide as `paper`, of which `harvest_pairs` activations are harvested."""
    harvest_pairs: int


# An 8B Llama has 32 blocks: a harvest of the middle one runs the first 16.
FULL = Sizes(
    paper=Step(width=4096, features=131_072, k=200, batch=2048, exclusive=0.05),
    small=Step(width=512, features=8192, k=64, batch=2048, exclusive=0.05),
    middle=Step(width=4096, features=16_384, k=128, batch=2048, exclusive=0.05),
    far_rows=600_000, squared=8192, pairs=8000, features=512, places=400, layers=17, harvest_pairs=180_000,
)  # fmt: skip
_TINY = Step(width=32, features=256, k=8, batch=64, exclusive=0.1)
DRY = Sizes(
    paper=_TINY, small=_TINY, middle=_TINY, far_rows=0, squared=64, pairs=1200, features=64, places=120, layers=3,
    harvest_pairs=600,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the answer. value: null where nothing was measured, `note` says why; precision: what was multiplied
    in; want: the bound; ok: whether it is met, null where there is none or nothing was measured; decides: whether the
    row is about correctness."""

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
    """`seconds`: what it may take on the device."""

    name: str
    run: Callable[[Bench], None]
    seconds: float


@dataclass
class Bench:
    """A check under way. file: where all rows are written after each one; about: what stands there beside them; folder:
    an empty one for what phases make; limit: seconds from `begun` on, which no phase passes that begins; found: figures
    of one phase that another compares with."""

    device: torch.device
    sizes: Sizes
    folder: Path
    file: Path
    about: dict[str, Any] = field(default_factory=dict)
    dry: bool = False
    limit: float = math.inf
    begun: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)
    phase: str = ""

    def run(self, phases: Iterable[Phase]) -> None:
        """All phases that there is time for, in order."""
        self.write(finished=False)
        for phase in phases:
            self.phase = phase.name
            if self.seconds + phase.seconds > self.limit:
                self.skip("the whole phase", f"no time: it may take {phase.seconds:g} s")
                continue
            echo(f"== {phase.name} (after {self.seconds:.0f} s)")
            with self.guarded("the whole phase"):
                self.free()  # after a fault of the device this raises, too
                phase.run(self)
        self.write(finished=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begun

    @property
    def wrong(self) -> list[str]:
        """What decides the exit code and is not right."""
        return [f"{row.phase}: {row.what}" for row in self.rows if row.decides and row.ok is False]

    def write(self, *, finished: bool) -> None:
        """The file anew; the one before is there until this one is whole."""
        data = {**self.about, "dry": self.dry, "sizes": asdict(self.sizes), "finished": finished, "wrong": self.wrong}
        data |= {"seconds": None if self.dry else round(self.seconds, 1), "rows": [asdict(row) for row in self.rows]}
        temporary = self.file.with_name(f"{self.file.name}.tmp")
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        temporary.replace(self.file)

    def add(
        self, what: str, value: float | None, unit: str = "", precision: str = "", *, most: float = math.inf,
        least: float = -math.inf, ok: bool | None = None, decides: bool = False, note: str = "",
    ) -> None:  # fmt: skip
        """A row of a value that is to be at most, or at least, so much."""
        bounds = [f"{sign} {bound:g}" for sign, bound in (("<=", most), (">=", least)) if math.isfinite(bound)]
        if bounds and value is not None:
            ok = math.isfinite(value) and least <= value <= most
        shown = value if value is None or math.isfinite(value) else str(value)  # JSON has no other numbers
        row = Row(self.phase, what, shown, unit, precision, *bounds or [""], ok, decides, note)
        self.rows.append(row)
        text = "-" if value is None else f"{value:.4g}"
        mark = "" if ok is None else "ok" if ok else "WRONG" if decides else "MISSED"
        echo(f"  {what:<66s} {text:>10s} {unit:<8s} {precision:<9s} {row.want:<9s} {mark} {note}".rstrip())
        self.write(finished=False)

    def right(self, what: str, value: float, precision: str = "", **bound: float) -> None:
        """About correctness."""
        self.add(what, float(value), "", precision, decides=True, **bound)

    def speed(self, what: str, value: float, unit: str, precision: str = "", *, note: str = "", **wish: float) -> None:
        """A figure of time or memory. A dry run has no use for it."""
        self.add(what, None if self.dry else float(value), unit, precision, note=note, **wish)

    def skip(self, what: str, note: str) -> None:
        self.add(what, None, note=note)

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """What raises inside is a wrong row, and no more."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self.add(what, None, ok=False, decides=True, note=reason)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def free(self) -> None:
        """Give memory back, and look for its peak from now on."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory(self, what: str, precision: str = "", **wish: float) -> None:
        """The peak since `free`."""
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else 0
        self.speed(f"... memory at the most, {what}", peak / 1e9, "GB", precision, **wish)

    def timed(self, run: Callable[[], object], count: int, warm_up: int = 0) -> list[float]:
        """Milliseconds of each of so many runs; the device has done its work when one ends."""
        took = []
        for _ in range(1 if self.dry else warm_up + count):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            took.append(1000 * (time.perf_counter() - start))
        return took[-count:]

    def part(
        self, what: str, run: Callable[[], object], precision: str = "", *, gigabytes: float = 0, teraflop: float = 0
    ) -> None:
        """Time one operation, and say what that is of the bytes that it moves or the products that it makes."""
        with self.guarded(what):
            took = statistics.median(self.timed(run, _ROUNDS, _WARM_UP))
            self.speed(what, took, "ms", precision)
            for amount, unit in ((gigabytes, "GB/s"), (teraflop, "TFLOP/s")):
                if amount:
                    self.speed("... that is", 1000 * amount / took, unit, precision)

    def normal(self, *shape: int, seed: int) -> torch.Tensor:
        """Random numbers, float32, on the device."""
        return torch.randn(*shape, generator=torch.Generator(self.device).manual_seed(seed), device=self.device)
