"""What follows a training besides training.jsonl: TensorBoard, Weights & Biases, Trackio. It never stops one."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modeldiff.console import aside, say
from modeldiff.errors import InputError, first_line

Log = Callable[[int, Mapping[str, Any]], None]
"""Called with a step and its figures."""


@dataclass(frozen=True)
class Followed:
    """The run: a training that goes on after an interruption has the same name and id."""

    name: str
    id: str
    folder: Path
    """For what is written to files."""
    config: Mapping[str, Any]


class Logger(Protocol):
    """One kind of logger. Any of these may raise whatever it likes."""

    def start(self, run: Followed, step: int) -> None:
        """Begin, or go on where `step` is the first that will be logged, perhaps for the second time."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self) -> None: ...


class _TensorBoard:
    def start(self, run: Followed, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(run.folder, purge_step=step)  # what was logged from there on is forgotten

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class _Tracker:
    """W&B or Trackio, which are called alike. W&B knows a run that goes on by its id, Trackio by its name."""

    def __init__(self, package: str) -> None:
        self._package = package

    def start(self, run: Followed, step: int) -> None:  # noqa: ARG002
        self._module = importlib.import_module(self._package)
        project = os.environ.get(f"{self._package.upper()}_PROJECT", "modeldiff")
        own = {"id": run.id} if self._package == "wandb" else {}
        self._module.init(project=project, name=run.name, config=dict(run.config), resume="allow", **own)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def finish(self) -> None:
        self._module.finish()


class Follower:
    """Gives the figures of a run to a logger, begun with the first of them. When the logger fails, that is said once,
    and the training goes on without it. Raises InputError: its package is not installed."""

    def __init__(self, name: str | None, run: Followed) -> None:
        if name is not None and importlib.util.find_spec(name) is None:
            raise InputError(f"--log {name} needs a package: run `pip install 'modeldiff[{name}]'`")
        self._name, self._run, self._started = name, run, False
        self._logger: Logger | None = None
        if name is not None:
            self._logger = _TensorBoard() if name == "tensorboard" else _Tracker(name)

    def log(self, step: int, figures: Mapping[str, Any]) -> None:
        """Numbers by name, some of them in tables: {"fve": {"a": 0.9}} is logged as `fve/a`."""
        if self._logger is not None and not self._started:
            self._started = True
            self._attempt(self._logger.start, self._run, step)
        if self._logger is not None:
            self._attempt(self._logger.log, step, _numbers(figures))

    def close(self) -> None:
        if self._logger is not None and self._started:
            self._attempt(self._logger.finish)

    def _attempt(self, call: Callable[..., None], *args: Any) -> None:
        try:
            with aside():
                call(*args)
        except Exception as error:
            self._logger = None
            say(f"warning: --log {self._name} failed ({first_line(error)}): training.jsonl is written all the same")


def _numbers(figures: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            found[prefix + name] = value
    return found
