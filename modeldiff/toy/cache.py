"""Finished cells on disk, shared by all toy runs of a workspace: one JSON file each, whole or absent, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modeldiff.console import say
from modeldiff.errors import DamagedError, InputError
from modeldiff.records import check_fields
from modeldiff.toy.cell import CellSpec
from modeldiff.workspace import Workspace
from modeldiff.workspace.files import read_json, sha256_json, write_json

# Counted up when the same cell would give another result than before.
SCHEMA = 4
_FIELDS = {"spec", "result", "digest"}


def fingerprint(cell: CellSpec) -> str:
    """SHA-256 over all that decides the result of a cell."""
    return sha256_json(["toy cell", SCHEMA, cell.to_json()])


class CellCache:
    """The results of finished cells, by fingerprint.

    Args:
        workspace: where they are kept (`workspace clean` drops them).
    """

    def __init__(self, workspace: Workspace) -> None:
        self.folder = workspace.toy_cells

    def path(self, cell: CellSpec) -> Path:
        return self.folder / f"{fingerprint(cell)}.json"

    def read(self, cell: CellSpec) -> dict[str, Any] | None:
        """The result of a cell, None if there is none. A file that is not what was written is said and dropped."""
        path = self.path(cell)
        if not path.exists():
            return None
        try:
            data = read_json(path)
            check_fields(data, required=_FIELDS, where=str(path))
            if sha256_json([data["spec"], data["result"]]) != data["digest"]:
                raise DamagedError(f"{path}: its content is not what was written (digest differs)")
        except (DamagedError, InputError, ValueError) as error:
            say(f"{error}; dropped, the cell is computed again")
            path.unlink()
            return None
        result: dict[str, Any] = data["result"]
        return result

    def write(self, cell: CellSpec, result: dict[str, Any]) -> dict[str, Any]:
        """Keep a result durably; returns it as `read` will."""
        spec = _as_json(cell.to_json())
        result = _as_json(result)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.path(cell), {"spec": spec, "result": result, "digest": sha256_json([spec, result])})
        return result


def _as_json(data: dict[str, Any]) -> dict[str, Any]:
    """What data becomes when it is written and read again, so that a fresh result and a cached one are the same."""
    read: dict[str, Any] = json.loads(json.dumps(data, allow_nan=False))
    return read
