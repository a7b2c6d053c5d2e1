"""Files of other libraries, from a folder, by path or from the hub: tensors and a config, checked, nothing executed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pickle  # for the name of its error alone: weights are read with weights_only=True
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from modeldiff.crosscoder.saving import from_hub
from modeldiff.errors import DamagedError, InputError, first_line
from modeldiff.workspace.files import read_json, sha256_json

# In a folder, the first of these that is there.
WEIGHTS = ("model.safetensors", "sae_weights.safetensors", "ae.pt", "model_final.pt", "model.pt")
CONFIGS = ("config.json", "cfg.json", "model_cfg.yaml")
_COMPILED = "_orig_mod."


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of a dictionary, read on first use."""

    name: str
    """The path or the repository that was asked for."""
    path: Path
    """The file of weights."""
    config_path: Path | None

    @functools.cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        return _tensors(self.path)

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """Empty where there is none."""
        return _config(self.config_path) if self.config_path else {}

    def digest(self, digest_of: Callable[[Path], str]) -> str:
        """Of the files, from that of each."""
        return sha256_json([digest_of(path) for path in (self.path, self.config_path) if path])

    def only(self, *names: str) -> None:
        """Raise InputError where there is another tensor: it might change what the dictionary says."""
        if unknown := sorted(self.tensors.keys() - set(names)):
            raise InputError(f"{self.name} has a tensor '{unknown[0]}', of which nothing is known here")

    def take(self, name: str, *shape: int | None) -> torch.Tensor:
        """A tensor as float32. Raises DamagedError: it is missing, or not of this shape (None: any number)."""
        found = self.tensors.get(name)
        if found is None:
            raise DamagedError(f"{self.path}: tensor '{name}' is missing")
        pairs = list(itertools.zip_longest(shape, found.shape, fillvalue=-1))
        if any(want not in (None, size) for want, size in pairs) or not found.is_floating_point():
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            shown = f"{found.dtype} {tuple(found.shape)}"
            raise DamagedError(f"{self.path}: tensor '{name}' should be numbers of shape ({wanted}), found {shown}")
        return found.to(torch.float32)

    def number(self, name: str) -> float:
        """A tensor of one number. Raises DamagedError: it is not, or not finite."""
        found = self.tensors[name]
        if found.numel() != 1 or not math.isfinite(found):
            raise DamagedError(f"{self.path}: tensor '{name}' should be one finite number")
        return float(found)

    def setting(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of the config, at its top or under "trainer". Raises DamagedError: it is of another type."""
        inside = self.config.get("trainer")
        value = self.config.get(name, inside.get(name) if isinstance(inside, Mapping) else None)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise DamagedError(f"the config beside {self.path}: '{name}' is {value!r}")
        return value


def open_source(name: str) -> Source:
    """A folder, a file of weights and the config beside it, or a repository of the hub. Raises InputError: there is
    none of these, or no weights are in it."""
    path = Path(name)
    if not path.exists():
        path = from_hub(name, (*WEIGHTS, *CONFIGS))
    if path.is_dir():
        found = [path / one for one in WEIGHTS if (path / one).is_file()]
        if not found:
            raise InputError(f"{name} has no weights: expected one of {', '.join(WEIGHTS)}")
        path = found[0]
    return Source(name, path, next((path.parent / one for one in CONFIGS if (path.parent / one).is_file()), None))


def _config(path: Path) -> dict[str, Any]:
    if path.suffix != ".yaml":
        return read_json(path)
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path}: cannot be read as YAML ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise DamagedError(f"{path}: expected names and values")
    return found


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """All dense tensors of a file; what else a state dict holds is left aside."""
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # about the age of the file
                found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise DamagedError(
            f"{path}: cannot be read as weights alone; it may be damaged, or hold code, which is never run "
            f"({first_line(error)})"
        ) from None
    if not isinstance(found, Mapping):
        raise DamagedError(f"{path}: expected a table of tensors, found {type(found).__name__}")
    return {str(name).replace(_COMPILED, ""): tensor.detach() for name, tensor in found.items() if _is_dense(tensor)}


def _is_dense(value: Any) -> bool:
    """A tensor whose numbers are all in the file: one of few bytes may claim any shape."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
