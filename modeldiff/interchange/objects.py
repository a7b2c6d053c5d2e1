"""Artifacts to an object store or another file system (s3://, gs://, file:// and what else fsspec knows), and back.

Layout at an address:
    content/DIGEST    each file of the artifact, called by its BLAKE3
    manifest.json     last: without it there is no artifact yet

A file that is there under its digest, in its size, is not sent again: the same command goes on where one was cut off.
Likewise with files that a pull has fetched.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from modeldiff.console import progress
from modeldiff.errors import DamagedError, InputError, MachineError, ModeldiffError, first_line
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.artifact import MANIFEST_NAME, Manifest
from modeldiff.workspace.files import locked, read_json, replace_into, sha256_json, write_bytes
from modeldiff.workspace.kept import found_entry
from modeldiff.workspace.workspace import PARTIAL, check_name


def is_address(place: str) -> bool:
    """Whether it means a file system, and not a repository of the hub."""
    return "://" in place


def push(artifact: Artifact, address: str) -> str:
    """Upload an artifact, file by file, and return the address. Raises DamagedError: a file is not what was written;
    InputError: no such kind of address; MachineError: the store cannot be reached, or refuses."""
    manifest = artifact.manifest
    with _opened(address) as (store, root), progress("push", artifact.size, "bytes") as bar:
        store.makedirs(f"{root}/content", exist_ok=True)
        for name, entry in manifest.files.items():
            there = f"{root}/content/{entry.blake3}"
            if not store.exists(there) or store.size(there) != entry.size:
                store.put_file(str(artifact.file(name)), there)
            bar.advance(entry.size)
        store.put_file(str(artifact.folder / MANIFEST_NAME), f"{root}/{MANIFEST_NAME}")
    return address


def pull(address: str, workspace: Workspace, *, name: str | None = None) -> Artifact:
    """What `push` uploaded, as the next version of its kind, or the one that is here already; every file is compared
    with its digest. Raises InputError: there is none; DamagedError: the manifest, or a file, is not what was written;
    MachineError: as `push`; another process pulls the same."""
    check_name(name)
    with _opened(address) as (store, root):
        if not store.exists(f"{root}/{MANIFEST_NAME}"):
            raise InputError(f"{address} has no {MANIFEST_NAME}: nothing was pushed there, or not all of it")
        content = store.cat_file(f"{root}/{MANIFEST_NAME}")
        workspace.create()
        parent = workspace.folder / PARTIAL / f"pulled-{sha256_json([address, content.hex()])[:32]}"
        try:
            with locked(parent.with_suffix(".lock"), wait=False):
                made = _pulled(store, root, address, content, parent, workspace, name)
                shutil.rmtree(parent)
                parent.with_suffix(".lock").unlink()
                return made
        except BlockingIOError:
            raise MachineError(f"another process pulls {address} into {workspace.folder}: wait for it") from None


def _pulled(
    store: Any, root: str, address: str, content: bytes, parent: Path, workspace: Workspace, name: str | None
) -> Artifact:
    parent.mkdir(exist_ok=True)
    write_bytes(parent / MANIFEST_NAME, content)
    kind, version, _ = head(parent / MANIFEST_NAME)
    folder = parent / kind / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / MANIFEST_NAME, content)
    artifact = Artifact(folder, Manifest.read(folder))
    if here := _here(artifact, workspace):
        return here
    with progress("pull", artifact.size, "bytes") as bar:
        for one, entry in artifact.manifest.files.items():
            if found_entry(folder / one) != entry:
                there, temporary = f"{root}/content/{entry.blake3}", parent / "fetched"
                if not re.fullmatch(r"[0-9a-f]{64}", entry.blake3) or not store.exists(there):
                    raise DamagedError(f"{address}: {one} is missing")
                store.get_file(there, str(temporary))
                if found_entry(temporary) != entry:
                    raise DamagedError(f"{address}: {one} is damaged: its digest is not the manifest's")
                (folder / one).parent.mkdir(parents=True, exist_ok=True)
                replace_into(temporary, folder / one)
            bar.advance(entry.size)
    return place(artifact, workspace, address, name)


@contextmanager
def _opened(address: str) -> Iterator[tuple[Any, str]]:
    """(the file system, the path in it). What goes wrong there becomes one line."""
    from fsspec.core import url_to_fs

    try:
        store, root = url_to_fs(address)
    except (ImportError, ValueError) as error:  # a library is missing; no such protocol
        raise InputError(f"'{address}' cannot be opened ({first_line(error)})") from None
    try:
        yield store, root.rstrip("/")
    except ModeldiffError:
        raise
    except Exception as error:  # each library has errors of its own
        raise MachineError(
            f"{address}: {first_line(error)}: check the address and your login; the same command continues"
        ) from None


def place(artifact: Artifact, workspace: Workspace, source: str, name: str | None) -> Artifact:
    """Publish an artifact whose folder came from elsewhere and was checked, or answer with the one that is the same."""
    with workspace.lock():
        if here := _here(artifact, workspace):
            return here
        environment = {**artifact.manifest.environment, "pulled_from": source}
        new = workspace.next_version(artifact.kind)
        manifest = dataclasses.replace(artifact.manifest, version=new, name=name, environment=environment)
        manifest.write(artifact.folder)
        return workspace.place(artifact.folder, manifest)


def _here(artifact: Artifact, workspace: Workspace) -> Artifact | None:
    found = (one for one in workspace.artifacts(artifact.kind) if one.manifest.digest == artifact.manifest.digest)
    return next(found, None)


def head(path: Path) -> tuple[str, int, list[str]]:
    """Kind, version and names of the files, of a manifest that is not checked yet: nothing may point elsewhere."""
    data = read_json(path)
    kind, version, files = data.get("kind"), data.get("version"), data.get("files")
    plain = isinstance(kind, str) and re.fullmatch(r"[a-z]+", kind) and type(version) is int and version > 0
    if not plain or not isinstance(files, dict):
        raise DamagedError(f"{path}: is not the manifest of an artifact")
    for one in files:
        parts = PurePosixPath(one).parts
        if not parts or one != "/".join(parts) or ".." in parts or "\\" in one or one == MANIFEST_NAME:
            raise DamagedError(f"{path}: no artifact has a file called {one!r}")
    return str(kind), int(str(version)), list(files)
