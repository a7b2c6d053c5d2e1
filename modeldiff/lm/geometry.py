"""Layers, width and length of a model from its configuration alone; no weights are read."""

from __future__ import annotations

from dataclasses import dataclass

import transformers

from modeldiff.errors import InputError
from modeldiff.lm.ref import ModelRef, locate


@dataclass(frozen=True)
class Geometry:
    """The numbers of a model that a harvest is planned with."""

    name: str
    n_layers: int
    width: int
    max_positions: int | None

    @property
    def default_layer(self) -> int:
        """The middle block (the same as LanguageModel.default_layer)."""
        return self.n_layers // 2

    def layer(self, asked: int | None, option: str) -> int:
        """The block to read. Raises InputError when `asked` is out of range."""
        layer = self.default_layer if asked is None else asked
        if not 0 <= layer < self.n_layers:
            raise InputError(f"{option} {layer} is out of range: model {self.name} has blocks 0 to {self.n_layers - 1}")
        return layer


def read_geometry(ref: ModelRef) -> Geometry:
    """The geometry of a model.

    Raises:
        InputError: there is no such model, or its configuration is not that of a language model.
    """
    place = locate(ref)
    arguments = {"gguf_file": place.gguf_file} if place.gguf_file else {}
    try:
        config = transformers.AutoConfig.from_pretrained(
            place.source,
            revision=place.revision,
            trust_remote_code=ref.trust_remote_code,
            local_files_only=place.local,
            **arguments,
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the configuration of model {ref.short_name} cannot be used: {reason}") from error
    text_config = config.get_text_config(decoder=True)
    n_layers, width = getattr(text_config, "num_hidden_layers", None), getattr(text_config, "hidden_size", None)
    if not n_layers or not width:
        raise InputError(f"model {ref.short_name} has no num_hidden_layers and hidden_size: expected a language model")
    return Geometry(ref.short_name, n_layers, width, getattr(text_config, "max_position_embeddings", None))
