"""What a model's configuration says: how many blocks, how wide, which tokens, how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import transformers

from modeldiff.errors import InputError

# Under which names configurations keep their longest sequence; transformers gives most of them the first one as well.
_POSITIONS = ("max_position_embeddings", "max_seq_len", "max_target_positions")
# How many blocks: the first of these that a configuration itself has. What decoders of two-part models have goes first,
# for there the last one counts the encoder's.
_LAYERS = ("decoder_layers", "num_decoder_layers", "num_layers")
# How many residual streams run beside one another, where there are several.
_STREAMS = ("altup_num_inputs", "hc_mult", "hc_count")


@dataclass(eq=False)
class Geometry:
    """The numbers of a model that decide what it can be asked."""

    name: str
    """Of the model, for messages."""
    n_layers: int
    """Decoder blocks."""
    width: int
    """D of the residual stream, of all streams together where several run beside one another."""
    vocabulary: int
    """V: it has embeddings for token ids below this."""
    max_positions: int | None
    """The longest sequence in tokens; None: its configuration sets no limit."""
    streams: int = 1

    @classmethod
    def of(cls, config: transformers.PreTrainedConfig, name: str) -> Geometry:
        """By a configuration, of the text part where there are several. Raises InputError: it does not say how many
        blocks, how wide or how many tokens."""
        config = config.get_text_config(decoder=True)
        n_layers = next((vars(config)[key] for key in _LAYERS if vars(config).get(key)), None)
        n_layers = n_layers or getattr(config, "num_hidden_layers", None)
        width, vocabulary = getattr(config, "hidden_size", None), getattr(config, "vocab_size", None)
        if not n_layers or not width or not vocabulary:
            raise InputError(
                f"model {name} has no num_hidden_layers, hidden_size and vocab_size: expected a language model"
            )
        positions = next((n for key in _POSITIONS if isinstance(n := getattr(config, key, None), int) and n > 0), None)
        streams = next((n for key in _STREAMS if (n := getattr(config, key, None))), 1)
        return Geometry(name, n_layers, width * streams, vocabulary, positions, streams)

    def layer(self, asked: int | None, option: str) -> int:
        """The block to read, by default the middle one (paper §2.6). Raises InputError when it is out of range."""
        layer = self.n_layers // 2 if asked is None else asked
        if not 0 <= layer < self.n_layers:
            raise InputError(f"{option} {layer} is out of range: model {self.name} has blocks 0 to {self.n_layers - 1}")
        return layer

    def check_layer(self, layer: int) -> None:
        """Raise InputError unless `layer` is the index of a block, counted from 0."""
        self.layer(layer, "layer")

    def check_length(self, n_tokens: int) -> None:
        """Raise InputError if a sequence of `n_tokens` is longer than the model has positions."""
        if self.max_positions is not None and n_tokens > self.max_positions:
            raise InputError(
                f"{n_tokens} tokens are too long for model {self.name}, which has {self.max_positions} positions"
            )

    def check_ids(self, largest: int, tokenizer: Any) -> None:
        """Raise InputError if the largest of some token ids, which `tokenizer` gave, has no embedding."""
        if largest >= self.vocabulary:
            token = tokenizer.convert_ids_to_tokens(largest)
            raise InputError(
                f"the tokenizer of model {self.name} gives token {token!r} the id {largest}, but the model has "
                f"embeddings for {self.vocabulary} tokens: resize them (resize_token_embeddings), or give the model "
                "the tokenizer that it was trained with"
            )
