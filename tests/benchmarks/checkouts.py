"""Modules of a peer, imported from its checkout without what its training step does not need.

Peers import data sets, trackers and model libraries at the top of the files that hold their step. Here these names
stand for empty classes while the file is imported, and a package's own `__init__` is not run. Nothing of it stays in
`sys.modules`: two peers may have packages of one name. Nothing is written into the checkout.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import huggingface_hub  # noqa: F401  peers import it, too, and it should not meet the stubs
import torch

_STUBS = ("accelerate", "datasets", "natsort", "nnsight", "simple_parsing", "transformers", "zstandard")
if importlib.util.find_spec("einops") is None:
    _STUBS = (*_STUBS, "einops")


def load(peers: Path | None, checkout: str, *modules: str) -> list[ModuleType] | str:
    """The modules, or in a few words why they cannot be had.

    Args:
        peers: folder of the checkouts.
        checkout: `<owner>-<repository>`, the name of the checkout's folder.
        modules: full names, all of one package at the top of the checkout.
    """
    if peers is None:
        return "no --peers folder"
    folder = peers.resolve() / checkout
    package = modules[0].partition(".")[0]
    if not (folder / package).is_dir():
        return f"no {checkout}/{package} in the --peers folder"
    try:
        with (
            _apart(package, *_STUBS),
            mock.patch.object(sys, "meta_path", [_StubFinder(), *sys.meta_path]),
            mock.patch.object(sys, "dont_write_bytecode", True),
            mock.patch.dict(os.environ, {} if torch.cuda.is_available() else {"SPARSIFY_DISABLE_TRITON": "1"}),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            for name in modules:
                _bare_packages(folder, name)
            return [importlib.import_module(name) for name in modules]
    except Exception as error:  # whatever a peer's file does when it is run
        return f"{checkout} cannot be imported: {type(error).__name__}: {error}"


@contextlib.contextmanager
def _apart(*packages: str) -> Iterator[None]:
    """As if none of these packages had ever been imported; afterwards all is as it was."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in packages]

    before = {name: sys.modules.pop(name) for name in ours()}
    try:
        yield
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


def _bare_packages(folder: Path, module: str) -> None:
    """Put the packages that a module is in into `sys.modules`, without running their `__init__`."""
    parts = module.split(".")
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*parts[:count]))]
        sys.modules.setdefault(name, package)


class _StubFinder:
    """Finds an empty module for every name in the stubbed packages."""

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in _STUBS:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Einops(spec.name) if spec.name == "einops" else _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Stub(ModuleType):
    """A module in which every name is a class that takes any arguments and does nothing."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda *_, **__: None})


class _Einops(_Stub):
    """The two functions of einops that the steps call, over the same torch functions that it calls."""

    @staticmethod
    def rearrange(tensor: torch.Tensor, pattern: str) -> torch.Tensor:
        """Permute axes; patterns without brackets only."""
        left, right = (side.split() for side in pattern.split("->"))
        return tensor.permute([left.index(axis) for axis in right])

    @staticmethod
    def einsum(*tensors_and_pattern: torch.Tensor | str) -> torch.Tensor:
        """torch.einsum with words for letters."""
        *tensors, pattern = tensors_and_pattern
        assert isinstance(pattern, str)
        words = sorted(set(pattern.replace(",", " ").replace("->", " ").split()))
        letter = {word: chr(ord("a") + number) for number, word in enumerate(words)}
        spaced = pattern.replace(",", " , ").replace("->", " -> ").split()
        return torch.einsum("".join(letter.get(word, word) for word in spaced), *tensors)
