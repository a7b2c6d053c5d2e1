"""Digests of an artifact's files: BLAKE3, and SHA-256 for the files of artifacts made before.

A digest is one string that says how it was made: "blake3:<hex>", or plain hex for SHA-256, as it was always written. So
what is worked out from the digests of an old artifact is what it was before.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3

from modeldiff.workspace.files import fsync_file

# By the name that manifests give them.
_MAKE: dict[str, Any] = {"blake3": blake3, "sha256": hashlib.sha256}
ALGORITHMS = tuple(_MAKE)
_UNNAMED = "sha256"
# Read in blocks into one buffer: the pages of a mapped file would count as memory of the process.
_READ_BYTES = 1 << 20


def digest_file(path: Path, algorithm: str = "blake3") -> str:
    """Digest of a file's content, read in blocks."""
    digest = _MAKE[algorithm]()
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return joined(algorithm, digest.hexdigest())


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file's content is what it was when its digest, by whichever algorithm, was made."""
    return digest_file(path, parted(digest)[0]) == digest


def durable_digest(path: Path) -> str:
    """Make a finished file's content durable; its digest, worked out while the disk is busy."""
    with ThreadPoolExecutor(1, "digest") as beside:  # both let other threads run
        digest = beside.submit(digest_file, path)
        fsync_file(path)
        return digest.result()


def joined(algorithm: str, hexadecimal: str) -> str:
    """The one string."""
    return hexadecimal if algorithm == _UNNAMED else f"{algorithm}:{hexadecimal}"


def parted(digest: str) -> tuple[str, str]:
    """(algorithm, hex) of a digest."""
    algorithm, _, hexadecimal = digest.rpartition(":")
    return algorithm or _UNNAMED, hexadecimal
