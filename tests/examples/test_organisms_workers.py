"""Processes that do the tasks of the organisms' commands."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from examples.organisms.workers import run_tasks

PARENT = """
from examples.organisms.workers import run_tasks
from tests.examples.test_organisms_workers import wait_for_ever
run_tasks([0], wait_for_ever, 1, 1, print)
"""


def wait_for_ever(_: Any) -> bool:
    sys.stdout.write("at work\n")
    sys.stdout.flush()
    threading.Event().wait()
    return True


def die_at_two(task: tuple[Path, int]) -> bool:
    folder, number = task
    if number == 2:
        os._exit(7)
    (folder / str(number)).touch()
    return True


def test_a_killed_command_leaves_no_worker_behind() -> None:
    command = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    assert command.stdout.readline() == "at work\n"
    command.kill()
    # The worker holds the other end: it is closed once the worker has ended.
    assert command.communicate(timeout=60)[0] == ""


def test_the_other_tasks_go_on_when_a_process_dies(tmp_path: Path) -> None:
    failed: list[tuple[int, str]] = []
    run_tasks(
        [(tmp_path, number) for number in range(5)], die_at_two, 2, 1, lambda task, why: failed.append((task[1], why))
    )
    assert failed == [(2, "the process ended with exit code 7")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "3", "4"]
