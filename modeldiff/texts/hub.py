"""Data sets of the hub, or local folders of the same layout, streamed row by row (optional package `datasets`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modeldiff.errors import InputError, MachineError


def read_dataset(location: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, fields) of each row of a data set NAME[:CONFIG[:SPLIT]]; NAME may be a local folder.

    Raises:
        MachineError: the package `datasets` is not installed, or the hub does not answer.
        InputError: it cannot open the data set.
    """
    name, config, split = _parts(location)
    try:
        import datasets
    except ImportError:
        raise MachineError(f"data set '{location}' needs a package: run `pip install 'modeldiff[datasets]'`") from None
    commit = _commit(name)
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True, revision=commit)
    except Exception as error:  # it passes on whatever its readers and its network library raise
        raise InputError(f"data set '{location}' cannot be opened: {_first_line(error)}") from error
    for number, row in enumerate(rows, 1):
        yield f"data set {location}, row {number}", row


def dataset_identity(location: str, digest_file: Callable[[Path], str]) -> dict[str, Any]:
    """What identifies the content of a data set: its commit on the hub, or the digests of its folder's files.

    Raises:
        InputError: there is no such data set; MachineError: the hub does not answer.
    """
    name, config, split = _parts(location)
    if Path(name).is_dir():
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        content: Any = {path.relative_to(name).as_posix(): digest_file(path) for path in files}
    else:
        content = [name, _commit(name)]
    return {"config": config, "split": split, "content": content}


def _parts(location: str) -> tuple[str, str | None, str]:
    parts = location.split(":")
    if len(parts) > 3:
        raise InputError(f"data set '{location}' has too many parts: expected hf:NAME[:CONFIG[:SPLIT]]")
    name, config, split = parts + [""] * (3 - len(parts))
    return name, config or None, split or "train"


def _commit(name: str) -> str | None:
    """The newest commit of a data set on the hub; None for a local folder."""
    if Path(name).is_dir():
        return None
    from huggingface_hub import HfApi, errors

    try:
        return str(HfApi().dataset_info(name).sha)
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise InputError(f"there is no local folder and no data set on the hub named '{name}'") from None
    except Exception as error:  # the client passes on what its network library raises
        raise MachineError(f"the hub gave no answer for data set '{name}': {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
