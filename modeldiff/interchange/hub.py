"""Artifacts to the Hugging Face hub and back: every file and the manifest, and a model card made from it. What has
"://" in it is the address of another store (objects.py)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modeldiff import __version__
from modeldiff.crosscoder.saving import from_hub
from modeldiff.errors import DamagedError, InputError, MachineError, first_line
from modeldiff.interchange import objects
from modeldiff.interchange.card import card
from modeldiff.interchange.objects import head, place
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.artifact import MANIFEST_NAME, Manifest
from modeldiff.workspace.files import fsync_file
from modeldiff.workspace.workspace import PARTIAL, check_name

CARD_NAME = "README.md"


def push(artifact: Artifact, repository: str, *, private: bool = False) -> str:
    """Upload an artifact in one commit and return its address. The user's own login is used.

    Raises:
        DamagedError: a file of the artifact is not what was written.
        InputError: the hub refuses: no login, no such account, no right to write.
        MachineError: the hub cannot be reached.
    """
    if objects.is_address(repository):
        return objects.push(artifact, repository)
    from huggingface_hub import CommitOperationAdd, HfApi

    if problems := artifact.problems():
        raise DamagedError(f"{artifact.ref}: {problems[0]}; {artifact.mend}")
    text = card(artifact, repository).encode()
    files = {name: str(artifact.folder / name) for name in (*artifact.files(), MANIFEST_NAME)}
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    operations.append(CommitOperationAdd(path_in_repo=CARD_NAME, path_or_fileobj=text))
    with _refusals(repository):
        api = HfApi(library_name="modeldiff", library_version=__version__)
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message=f"Upload {artifact.ref}")
    return str(getattr(done, "commit_url", done))


@contextmanager
def _refusals(repository: str) -> Iterator[None]:
    """What the hub says as one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    # Of the HTTP library, whichever it is, and of sockets.
    network: Any = (*HfHubHTTPError.__bases__, OSError)
    try:
        yield
    except (HFValidationError, LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise InputError(
            f"the hub does not take '{repository}' ({first_line(error)}): log in with `hf auth login`, and name it "
            "USER/NAME"
        ) from None
    except network as error:
        raise MachineError(f"the hub could not be reached ({first_line(error)})") from None


def pull(repository: str, workspace: Workspace, *, name: str | None = None) -> Artifact:
    """An artifact that `push` uploaded, as the next version of its kind, or the one that is here if it is here already.

    Every file is compared with its digest; files that the manifest does not name stay where they are. What it was made
    from need not be in this workspace: commands that need it say so, and take another.

    Raises:
        InputError: there is no such repository, or no artifact in it.
        DamagedError: the manifest, or a file, is not what was written.
    """
    if objects.is_address(repository):
        return objects.pull(repository, workspace, name=name)
    check_name(name)
    found = from_hub(repository, (MANIFEST_NAME,)) / MANIFEST_NAME
    if not found.is_file():
        raise InputError(
            f"{repository} has no {MANIFEST_NAME}, so nothing that `modeldiff push` uploaded: see `import`"
        )
    kind, version, names = head(found)
    there = from_hub(repository, (MANIFEST_NAME, *names))
    workspace.create()
    with tempfile.TemporaryDirectory(prefix="pulled-", dir=workspace.folder / PARTIAL) as parent:
        folder = Path(parent) / kind / str(version)
        for one in (MANIFEST_NAME, *names):
            _copy(there / one, folder / one, repository)
        artifact = Artifact(folder, Manifest.read(folder))
        if problems := artifact.problems():
            raise DamagedError(f"{repository}: {problems[0]}")
        return place(artifact, workspace, repository, name)


def _copy(source: Path, target: Path, repository: str) -> None:
    if not source.is_file():
        raise DamagedError(f"{repository}: {source.name} is missing")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    fsync_file(target)
