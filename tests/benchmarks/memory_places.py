"""Where a command's memory goes: resident memory, sampled beside the line of modeldiff that is running.

    python -m tests.benchmarks.memory_places OUT.json train --features 8192 ...

runs `modeldiff train ...` in this process, prints the lines with the most resident memory, and writes all of them, and
the modules that were loaded, into OUT.json. Linux only. Peaks shorter than a millisecond may be missed, and what was
freed may stay resident: take numbers from a run that is not watched, places from this one. With
MALLOC_MMAP_THRESHOLD_=1048576 in the environment glibc gives memory back at once: what then is less was fragmentation.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import modeldiff
from modeldiff.cli.main import run

_PACKAGE = Path(modeldiff.__file__).parent
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SECONDS = 0.001
_SHOWN = 12


@dataclass
class Place:
    """A line of modeldiff, and the memory of the process while it ran.

    Attributes:
        place: "crosscoder/trainer.py:112 _descend", under the line that called it.
        most: largest resident bytes in it.
        own: of those, the part that belongs to no file: what the program allocated. The rest is code.
        samples: how often it was met, about its time in milliseconds.
    """

    place: str
    most: int = 0
    own: int = 0
    samples: int = 0


class Watcher(threading.Thread):
    """Samples the main thread until `stop`."""

    def __init__(self) -> None:
        super().__init__(name="memory", daemon=True)
        self.places: dict[str, Place] = {}
        self._main = threading.main_thread().ident
        self._stopped = threading.Event()

    def run(self) -> None:
        with open("/proc/self/statm", "rb", buffering=0) as statm:
            while not self._stopped.wait(_SECONDS):
                statm.seek(0)
                resident, of_files = (int(pages) * _PAGE for pages in statm.read().split()[1:3])
                name = _place(sys._current_frames().get(self._main))
                here = self.places.setdefault(name, Place(name))
                here.samples += 1
                if resident > here.most:
                    here.most, here.own = resident, resident - of_files

    def stop(self) -> list[Place]:
        """All places, the one with the most memory first."""
        self._stopped.set()
        self.join()
        return sorted(self.places.values(), key=lambda one: -one.most)


def _place(frame: FrameType | None) -> str:
    """The innermost line of modeldiff, and the one of modeldiff that called it."""
    lines: list[str] = []
    while frame is not None and len(lines) < 2:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_PACKAGE):
            lines.append(f"{file.relative_to(_PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(lines) or "elsewhere"


def main() -> int:
    out, args = Path(sys.argv[1]), sys.argv[2:]
    watcher = Watcher()
    watcher.start()
    try:
        run(args)
    except SystemExit as done:
        code = int(done.code or 0)
    places = watcher.stop()
    out.write_text(json.dumps({"places": [asdict(one) for one in places], "modules": list(sys.modules)}, indent=1))
    for one in places[:_SHOWN]:
        print(  # noqa: T201
            f"{one.most / 2**20:7.0f} MiB ({one.own / 2**20:.0f} own) {one.samples:6} ms  {one.place}", file=sys.stderr
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
