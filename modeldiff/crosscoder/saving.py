"""A crosscoder on disk and on the hub: config.json beside model.safetensors, read strictly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.distributed import Spans, take_rows
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.errors import DamagedError, InputError
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json, replace_into, temporary_path, write_json

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


def load(source: Artifact | Path | str, *, device: str | torch.device = "cpu") -> Crosscoder:
    """The crosscoder of an artifact (its files are checked), of a folder, or of a hub repository.

    Raises:
        InputError, DamagedError: as `Crosscoder.from_pretrained`.
    """
    if isinstance(source, Artifact):
        return _read(source.file(CONFIG_NAME), source.file(WEIGHTS_NAME), device)
    return from_source(source, device)


def from_source(source: Path | str, device: str | torch.device) -> Crosscoder:
    """See `Crosscoder.from_pretrained`."""
    folder = Path(source)
    if not folder.is_dir():
        folder = _from_hub(str(source))
    return _read(folder / CONFIG_NAME, folder / WEIGHTS_NAME, device)


def save(crosscoder: Crosscoder, folder: Path) -> None:
    """See `Crosscoder.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(folder / WEIGHTS_NAME)
    write_weights(crosscoder, temporary)
    replace_into(temporary, folder / WEIGHTS_NAME)
    write_json(folder / CONFIG_NAME, crosscoder.config.to_json())


def write_weights(crosscoder: Crosscoder, path: Path) -> None:
    """The weights as safetensors, float32."""
    weights = {name: value.detach().cpu().contiguous() for name, value in crosscoder.state_dict().items()}
    save_file(weights, path, metadata={"format": "pt"})


def push(crosscoder: Crosscoder, repository: str, *, private: bool) -> str:
    """See `Crosscoder.push_to_hub`."""
    from tempfile import TemporaryDirectory

    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=private, exist_ok=True)
    with TemporaryDirectory() as folder:
        save(crosscoder, Path(folder))
        return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload crosscoder"))


def _from_hub(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"'{repository}' is neither a folder nor a repository that could be read from the hub ({reason})"
        ) from None


def _read(config_path: Path, weights_path: Path, device: str | torch.device) -> Crosscoder:
    config = CrosscoderConfig.from_json(read_json(config_path), str(config_path))
    crosscoder = Crosscoder(config)
    read_tensors(weights_path, dict(crosscoder.state_dict()))
    return crosscoder.to(device)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says about itself.

    Raises:
        DamagedError: naming the file.
    """
    with _opened(path) as file:
        return dict(file.metadata() or {})


def read_tensors(path: Path, into: dict[str, torch.Tensor], spans: Callable[[str], Spans | None] | None = None) -> None:
    """Fill the tensors of `into` from a safetensors file that must hold exactly these names, shapes and dtypes.

    With `spans` they are parts of what the file holds: for each name, which rows (see shards.py).

    Copies, instead of taking over the file's memory: its alignment differs from that of fresh tensors, and with it
    the last bits of matrix products.

    Raises:
        DamagedError: naming the file and what is wrong with it.
    """
    with _opened(path) as file:
        missing, unknown = sorted(into.keys() - file.keys()), sorted(file.keys() - into.keys())
        if missing or unknown:
            what = f"tensor '{missing[0]}' is missing" if missing else f"tensor '{unknown[0]}' is unknown"
            raise DamagedError(f"{path}: {what}")
        for name, target in into.items():
            if spans is not None:
                take_rows(target, file.get_slice(name), spans(name))
                continue
            found = file.get_tensor(name)
            if found.shape != target.shape or found.dtype != target.dtype:
                raise DamagedError(
                    f"{path}: tensor '{name}' should be {target.dtype} {tuple(target.shape)}, "
                    f"found {found.dtype} {tuple(found.shape)}"
                )
            target.copy_(found)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: cannot be read as safetensors, it may be truncated ({error})") from None
