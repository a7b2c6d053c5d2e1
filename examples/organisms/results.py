"""results.jsonl: one line for each (pair, seed of the crosscoder, method)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from .catalogue import Pair

RESULTS = "results.jsonl"
# In the order of tables. Those without a crosscoder first.
ONCE = ("words", "diff mining (logits)", "diff mining (probabilities)", "diff mining (words)", "perplexity")
SEEDED = ("features", "all", "exclusive", "exclusive anywhere")
METHODS = (*ONCE, *SEEDED)


def read_rows(out: Path) -> list[dict[str, Any]]:
    """All lines of results.jsonl; the last one of a (pair, seed, method) counts, an error never hides a result, and a
    process that died (method `*`) is forgotten once the pair has another row."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    path = out / RESULTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line being written when the process was killed
        key = (row["pair"], row["seed"], row["method"])
        if "error" not in row or key not in found or "error" in found[key]:
            found[key] = row
        if row["method"] != "*":
            found.pop((row["pair"], None, "*"), None)
    return list(found.values())


def write_row(out: Path, row: dict[str, Any]) -> None:
    """One line more, whole, whoever else writes."""
    with FileLock(out / f"{RESULTS}.lock"), (out / RESULTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def pair_row(pair: Pair, seed: int | None, method: str) -> dict[str, Any]:
    """What every row begins with."""
    return {
        "pair": pair.name, "kind": pair.kind, "variant": pair.variant, "relation": pair.relation, "seed": seed,
        "method": method,
    }  # fmt: skip
