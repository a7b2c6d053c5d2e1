"""Timing of a training run: when a checkpoint is due, and the log of its speed. Nothing here changes the result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

# Writing checkpoints may take this share of the time.
_WRITING_SHARE = 0.05


class CheckpointClock:
    """Says when the next checkpoint is due: after some seconds, or later when writing one takes long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = time.monotonic()
        self._cost = 0.0

    def now(self) -> bool:
        return time.monotonic() - self._last >= max(self._seconds, self._cost / _WRITING_SHARE)

    def writing(self) -> _Timed:
        def done(seconds: float) -> None:
            self._cost = seconds
            self._last = time.monotonic()

        return _Timed(done)


class _Timed:
    """Calls `done` with the seconds spent inside."""

    def __init__(self, done: Callable[[float], None]) -> None:
        self._done = done

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._done(time.monotonic() - self._start)


class ThroughputLog:
    """Pairs per second, and the share of the time that the run waited for data, between logged steps."""

    def __init__(self, path: Path, batch: int) -> None:
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._batch = batch
        self._step: int | None = None
        self._begun = time.monotonic()
        self._waited = 0.0

    def __enter__(self) -> ThroughputLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def waiting(self) -> _Timed:
        def done(seconds: float) -> None:
            self._waited += seconds

        return _Timed(done)

    def write(self, step: int) -> None:
        now = time.monotonic()
        if self._step is not None:
            seconds = max(1e-9, now - self._begun)
            record = {
                "step": step,
                "pairs_per_second": round((step - self._step) * self._batch / seconds, 1),
                "waiting_for_data": round(self._waited / seconds, 4),
            }
            self._file.write(json.dumps(record) + "\n")
        self._step, self._begun, self._waited = step, now, 0.0
