"""Where a model comes from (a name on the hub, a local folder or a GGUF file), and what identifies its contents."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeldiff.errors import InputError, MachineError, first_line
from modeldiff.sides import SIDES
from modeldiff.workspace.artifact import Input
from modeldiff.workspace.files import sha256_file

# Files of a model folder that decide what a model computes: configuration, weights, tokenizer, chat template, code.
# Taking one too many costs a recomputation, taking one too few would reuse results of another model.
_CONTENT_SUFFIXES = {".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken", ".py"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelRef:
    name: str
    """A name on the hub (`org/model`), a local folder, or the path of a .gguf file."""
    revision: str | None = None
    """Branch, tag or commit on the hub; only for hub names."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may be run."""

    @property
    def short_name(self) -> str:
        """The name for messages: the hub name, or the last part of a path."""
        return Path(self.name).name if Path(self.name).expanduser().exists() else self.name


@dataclass(frozen=True)
class Location:
    """What `from_pretrained` is given for a ModelRef."""

    source: str
    """The local folder, or the hub name."""
    local: bool
    """True when nothing may be asked of the hub."""
    gguf_file: str | None = None
    """Name of the GGUF file in the folder."""
    revision: str | None = None
    """The commit on the hub."""


def locate(ref: ModelRef) -> Location:
    """Find the folder, GGUF file or hub commit that `ref` means; for a hub name this may download its config.json.
    Raises InputError: there is no such model; MachineError: the hub answers with an error."""
    path = Path(ref.name).expanduser()
    if path.exists() and ref.revision is not None:
        raise InputError(f"revision '{ref.revision}' is only for models on the hub, but {ref.name} is a local path")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no GGUF file {ref.name}")
        return Location(str(path.parent), local=True, gguf_file=path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            gguf = sorted(path.glob("*.gguf"))
            if gguf:
                raise InputError(f"folder {path} has no config.json; give the path of the GGUF file, {gguf[0]}")
            raise InputError(f"folder {path} has no config.json: expected a model saved by save_pretrained")
        return Location(str(path), local=True)
    if path.exists():
        raise InputError(f"{ref.name} is a file: expected a model folder, a .gguf file or a name on the hub")
    if not _HUB_NAME.fullmatch(ref.name):
        raise InputError(f"there is no model folder {ref.name}, and it cannot be a name on the hub (org/model)")
    return Location(ref.name, local=False, revision=_hub_commit(ref))


def _hub_commit(ref: ModelRef) -> str:
    """The commit that a hub name and revision stand for, from the hub or, without it, from its local cache."""
    from huggingface_hub import errors, hf_hub_download

    revision = f" (revision '{ref.revision}')" if ref.revision else ""
    # In this order: the later ones are more general.
    explained: dict[type[Exception], str] = {
        errors.GatedRepoError: f"model '{ref.name}' is gated: accept its terms on its hub page, then run "
        "`hf auth login`",
        errors.RepositoryNotFoundError: f"there is no local folder and no model on the hub named '{ref.name}' "
        "(if it is private: `hf auth login`)",
        errors.RevisionNotFoundError: f"model '{ref.name}' has no revision '{ref.revision}' on the hub",
        errors.LocalEntryNotFoundError: f"model '{ref.name}'{revision} is neither a local folder nor in the hub's "
        "local cache, and the hub cannot be reached: check the name, the network and HF_HUB_OFFLINE",
        errors.EntryNotFoundError: f"'{ref.name}' on the hub has no config.json: it is not a transformers model",
    }
    try:
        config = hf_hub_download(ref.name, "config.json", revision=ref.revision)
    except tuple(explained) as error:
        raise InputError(next(text for kind, text in explained.items() if isinstance(error, kind))) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise MachineError(f"the hub gave no answer for '{ref.name}': {first_line(error)}") from error
    # The cache keeps each commit in a folder of that name.
    return Path(config).parent.name


def refs_of(settings: Any) -> dict[str, ModelRef]:
    """By side, the model that the settings name (model_a, revision_a, ..., trust_remote_code)."""
    named = {side: (getattr(settings, f"model_{side}"), getattr(settings, f"revision_{side}")) for side in SIDES}
    return {side: ModelRef(*one, settings.trust_remote_code) for side, one in named.items()}


def model_input(ref: ModelRef, digest_file: Callable[[Path], str] | None = None) -> Input:
    """The model as it is now, for a fingerprint. As `model_identity`."""
    identity = model_identity(ref, digest_file)
    return Input(ref.name, identity.get("digest") or identity["commit"])


def model_identity(ref: ModelRef, digest_file: Callable[[Path], str] | None = None) -> dict[str, str]:
    """What identifies the contents of a model, for a fingerprint.

    Local folder or GGUF file: {"name": its name, "digest": SHA-256 over names and contents of its configuration,
    weights and tokenizer files}; where the folder lies does not matter. Hub: {"name", "commit"}.
    `digest_file` may supply the digest of a file (for instance a cached one). Raises as `locate`.
    """
    location = locate(ref)
    if not location.local:
        return {"name": location.source, "commit": str(location.revision)}
    folder = Path(location.source)
    if location.gguf_file:
        name, files = location.gguf_file, [folder / location.gguf_file]
    else:
        name = folder.resolve().name
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in _CONTENT_SUFFIXES)
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{(digest_file or sha256_file)(file)}\n".encode())
    return {"name": name, "digest": total.hexdigest()}
