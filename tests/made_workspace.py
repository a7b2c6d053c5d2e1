"""A workspace with many artifacts that no stage has made: manifests in the real format, without the files they name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from modeldiff.workspace import Input, Workspace
from modeldiff.workspace.artifact import FORMAT, FileEntry, Manifest
from modeldiff.workspace.stage import environment

# As many files as an artifact of moderate size has: ten shards of three files each.
_FILES = [f"shards/{shard:05d}.{part}.h5" for shard in range(10) for part in ("plan", "a", "b")]
_SETTINGS = {f"setting_{number}": number for number in range(30)}
_METRICS = {"held_out": {"pairs": 1000, "fve": {"a": 0.8, "b": 0.7}, "l0": 64.0}}
KINDS = ("activations", "crosscoder", "features", "continuations", "contrast", "steering", "toy", "explain", "impact")


def make_manifests(folder: Path, count: int) -> Workspace:
    """A workspace in `folder` with `count` artifacts, of all kinds in turn; each was made from the one before it."""
    workspace = Workspace(folder)
    workspace.create()
    made_on = environment()
    before: Manifest | None = None
    for number in range(count):
        version, kind = divmod(number, len(KINDS))
        before = Manifest(
            format=FORMAT, kind=KINDS[kind], version=version + 1, name=None, created="2025-01-01T00:00:00+00:00",
            inputs={before.kind: Input(f"{before.kind}:{before.version}", before.digest)} if before else {},
            fingerprint=_digest(f"fingerprint {number}"), settings=_SETTINGS, metrics=_METRICS,
            files={name: FileEntry(1_000_000, _digest(f"{number} {name}")) for name in _FILES},
            environment=made_on, seconds=12.3, peak_memory_bytes=1_000_000_000,
        )  # fmt: skip
        target = workspace.folder / before.kind / str(before.version)
        target.mkdir(parents=True)
        before.write(target)
    return workspace


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
