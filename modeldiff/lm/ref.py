"""Where a model comes from (a hub name, a folder, an adapter or a GGUF file), and what identifies its contents."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeldiff.errors import InputError, MachineError, first_line
from modeldiff.lm.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of
from modeldiff.sides import SIDES
from modeldiff.workspace.artifact import Input
from modeldiff.workspace.files import sha256_file

# Files of a model folder that decide what a model computes: configuration, weights, tokenizer (by the names that the
# tokenizers of transformers use), chat template, code. Taking one too many costs a recomputation, taking one too few
# would reuse results of another model. Whatever else lies there, training data say, is none of a model's.
_CONTENT = re.compile(
    r"((generation_|tokenizer_|adapter_)?config|tokenizer|special_tokens_map|added_tokens|normalizer|emoji|byte_maps|"
    r"word_shape|word_pronunciation|tekken|chat_template|.*vocab.*|.*\.safetensors\.index)\.json|"
    r"(.*vocab.*|merges|dict)\.txt|.*\.(safetensors|model|spm|codes|tiktoken|jinja|py)"
)
# What is fetched of an adapter on the hub: itself and its tokenizer.
_OF_ADAPTER = [ADAPTER_CONFIG, ADAPTER_WEIGHTS, "*token*", "*vocab*", "merges.txt", "*.model", "*.jinja"]
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class ModelRef:
    name: str
    """A name on the hub (`org/model`), a local folder, or the path of a .gguf file; of a model or a PEFT adapter."""
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
    adapter: Path | None = None
    """The folder of a PEFT adapter that goes on top; the rest is about its base model."""

    @property
    def files(self) -> list[Path]:
        """Of what is local, the files that decide what the model computes."""
        folder = Path(self.source)
        if self.gguf_file:
            return [folder / self.gguf_file]
        return content_files(folder) if self.local else []


def content_files(folder: Path) -> list[Path]:
    """The files of a model's or an adapter's folder that decide what it computes."""
    return sorted(path for path in folder.iterdir() if path.is_file() and _CONTENT.fullmatch(path.name))


def locate(ref: ModelRef) -> Location:
    """Find the folder, GGUF file or hub commit that `ref` means; for a hub name this may download its config.json, or
    the adapter that it is. Raises InputError: there is no such model; MachineError: the hub answers with an error."""
    path = Path(ref.name).expanduser()
    if path.exists() and ref.revision is not None:
        raise InputError(f"revision '{ref.revision}' is only for models on the hub, but {ref.name} is a local path")
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"there is no GGUF file {ref.name}")
        return Location(str(path.parent), local=True, gguf_file=path.name)
    if (path / ADAPTER_CONFIG).is_file():
        return _with_base(path, ref)
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
    if adapter := _hub_adapter(ref):
        return _with_base(adapter, ref)
    return Location(ref.name, local=False, revision=_hub_commit(ref))


def _with_base(folder: Path, ref: ModelRef) -> Location:
    """Where the base model of an adapter is."""
    if any(path.suffix == ".safetensors" and path.name != ADAPTER_WEIGHTS for path in content_files(folder)):
        raise InputError(
            f"folder {folder} holds a model and an adapter: move one of them, with its config, into a folder of its own"
        )
    name, revision = base_of(folder)
    try:
        base = locate(ModelRef(name, revision, ref.trust_remote_code))
    except InputError as error:
        raise InputError(f"the base model of adapter {ref.name} cannot be found: {error}") from error
    if base.adapter:
        raise InputError(f"adapter {ref.name} is for {name}, which is an adapter itself: merge and save that first")
    return dataclasses.replace(base, adapter=folder)


def _hub_adapter(ref: ModelRef) -> Path | None:
    """The folder of the hub's cache that holds an adapter, fetched if need be; None: the name is not an adapter's."""
    from huggingface_hub import errors, hf_hub_download, snapshot_download

    try:
        commit = Path(hf_hub_download(ref.name, ADAPTER_CONFIG, revision=ref.revision)).parent.name
        return Path(snapshot_download(ref.name, revision=commit, allow_patterns=_OF_ADAPTER))
    except (OSError, ValueError, errors.EntryNotFoundError):
        return None  # what is wrong with the name, if anything, is said where its config.json is looked for


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

    Local folder or GGUF file: {"name": its name, "digest": SHA-256 over names and contents of the files that belong to
    a model (`content_files`)}; where the folder lies does not matter. Hub: {"name", "commit"}. Adapter: {"name",
    "digest"}, over its files and the identity of its base model. `digest_file` may supply the digest of a file (for
    instance a cached one). Raises as `locate`.
    """
    location = locate(ref)
    if location.adapter is None and not location.local:
        return {"name": location.source, "commit": str(location.revision)}
    total = hashlib.sha256()
    for file in [*location.files, *(content_files(location.adapter) if location.adapter else ())]:
        total.update(f"{file.name}\0{(digest_file or sha256_file)(file)}\n".encode())
    if location.adapter and not location.local:
        total.update(f"{location.source}\0{location.revision}\n".encode())
    name = location.gguf_file or Path(location.source).resolve().name
    return {"name": ref.short_name if location.adapter else name, "digest": total.hexdigest()}
