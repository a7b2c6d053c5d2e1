"""A crosscoder on disk and on the hub: config.json beside model.safetensors, read strictly.

Layout (normative; of the other files: training/run.py; F features, Fa and Fb those that A and B have, in their order):
    config.json                   fields of `CrosscoderConfig`
    model.safetensors             normalised units; row i of a matrix is of feature i, of w_*_b of feature n_a_only + i
        w_enc_a, w_dec_a (Fa, Da) float32
        w_enc_b, w_dec_b (Fb, Db) float32
        b_enc (F,) float32
        b_dec_a (Da,) float32
        b_dec_b (Db,) float32

With raw activations x_a and x_b of a pair, the names of config.json, and A, S and B for the n_a_only, n_shared and
n_b_only features of these parts, in this order (Fa: A and S; Fb: S and B):

    pre(A) = x_a scale_a w_enc_a'                  pre(B) = x_b scale_b w_enc_b'
    pre(S) = x_a scale_a w_enc_a' + x_b scale_b w_enc_b', half of it where combine is "mean"
    f = pre + b_enc where (pre + b_enc) s > threshold, else 0
    reconstruction of A = (f(A, S) w_dec_a + b_dec_a) / scale_a, of B likewise from f(S, B)

s is 1 for the selection "activation"; with |a| and |b| the norms of a feature's rows of w_dec_a and w_dec_b (0 where it
has none), "l2": sqrt(|a|² + |b|²), "sum": |a| + |b|, "mean": |a| + |b|, half of it for S. The first n_designated
features of S have threshold_designated in place of threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.errors import DamagedError, InputError
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json, replace_into, temporary_path, write_json

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
Spans = list[tuple[int, int, int]]
"""(first row in the whole tensor, first row in a part of it, number of rows) of each piece of the part."""


class Saved(nn.Module):
    """A module made from a `CrosscoderConfig`, with the methods of the Hugging Face libraries."""

    config: CrosscoderConfig

    def save_pretrained(self, folder: Path | str) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = temporary_path(folder / WEIGHTS_NAME)
        self.write_weights(temporary)
        replace_into(temporary, folder / WEIGHTS_NAME)
        write_json(folder / CONFIG_NAME, self.config.to_json())

    def write_weights(self, path: Path) -> None:
        """The weights as safetensors, float32."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, path, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, source: Artifact | Path | str, *, device: str | torch.device = "cpu") -> Self:
        """The crosscoder of an artifact (its files are checked), of a folder, or of a repository of the Hugging Face
        hub if there is no such folder.

        Raises:
            InputError: there is neither.
            DamagedError: a file is missing, truncated, or does not fit the config; it is named.
        """
        if isinstance(source, Artifact):
            config_path, weights_path = source.file(CONFIG_NAME), source.file(WEIGHTS_NAME)
        else:
            folder = Path(source) if Path(source).is_dir() else from_hub(str(source), (CONFIG_NAME, WEIGHTS_NAME))
            config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
        crosscoder = cls(CrosscoderConfig.from_json(read_json(config_path), str(config_path)))
        read_tensors(weights_path, dict(crosscoder.state_dict()))
        return crosscoder.to(device)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to the Hugging Face hub (needs the user's own login) and return the address of the commit."""
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload crosscoder"))


def from_hub(repository: str, patterns: Sequence[str]) -> Path:
    """The folder with these files of a repository of the hub. Raises InputError: it cannot be read."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"'{repository}' is neither a folder nor a repository that could be read from the hub ({reason})"
        ) from None


def read_tensors(path: Path, into: dict[str, torch.Tensor], spans: Callable[[str], Spans | None] | None = None) -> None:
    """Fill the tensors of `into` from a safetensors file that must hold exactly these names, shapes and dtypes. With
    `spans` only some rows: for each name (first row in the file, first row in the tensor, number); None: all.

    Copies, instead of taking over the file's memory: its alignment differs from that of fresh tensors, and with it
    the last bits of matrix products. Raises DamagedError, naming the file and what is wrong with it.
    """
    with _opened(path) as file:
        missing, unknown = sorted(into.keys() - file.keys()), sorted(file.keys() - into.keys())
        if missing or unknown:
            what = f"tensor '{missing[0]}' is missing" if missing else f"tensor '{unknown[0]}' is unknown"
            raise DamagedError(f"{path}: {what}")
        for name, target in into.items():
            for part, found in _pieces(file, name, target, spans(name) if spans else None):
                if found.shape != part.shape or found.dtype != part.dtype:
                    raise DamagedError(
                        f"{path}: tensor '{name}' should be {part.dtype} {tuple(part.shape)}, "
                        f"found {found.dtype} {tuple(found.shape)}"
                    )
                part.copy_(found)


def _pieces(
    file: Any, name: str, target: torch.Tensor, spans: Spans | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Parts of a tensor, and what an open file has for them."""
    if spans is None:
        yield target, file.get_tensor(name)
    for first, at, n in spans or ():
        yield target[at : at + n], file.get_slice(name)[first : first + n]


def overlap(held: Spans, wanted: Spans) -> Spans:
    """Of two parts of a tensor, the rows that are in both: (first row in the one that is held, first row in the one
    that is wanted, number)."""
    return [
        (low - first + at, low - start + place, high - low)
        for first, at, n in held
        for start, place, m in wanted
        if (low := max(first, start)) < (high := min(first + n, start + m))
    ]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: cannot be read as safetensors, it may be truncated ({error})") from None
