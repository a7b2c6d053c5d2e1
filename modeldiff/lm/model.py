"""A language model in memory: the transformers model, its tokenizer, and what the other rooms ask about it."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from modeldiff.errors import InputError
from modeldiff.lm.blocks import find_blocks
from modeldiff.lm.ref import ModelRef


class LanguageModel:
    """A causal language model, frozen and in evaluation mode.

    model: the transformers causal LM; body: the same without the head that makes logits; tokenizer; blocks: the
    decoder blocks in order; n_layers; width: of the residual stream (D); vocabulary: number of tokens (V);
    max_positions: the longest sequence its configuration allows, or None; device; dtype: of the weights; ref: where it
    came from; recommended: what the model's files say of generation, taken off the model, for transformers would fill
    in from it whatever a call leaves out.
    Raises InputError when the blocks cannot be found (`find_blocks`).
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        ref: ModelRef,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.recommended, model.generation_config = model.generation_config, transformers.GenerationConfig()
        self.tokenizer = tokenizer
        self.ref = ref
        self.body: nn.Module = model.base_model
        self.blocks = find_blocks(model)
        self.n_layers = len(self.blocks)
        config = model.config.get_text_config(decoder=True)
        self.width: int = config.hidden_size
        self.vocabulary: int = config.vocab_size
        self.max_positions: int | None = getattr(config, "max_position_embeddings", None)

    @property
    def name(self) -> str:
        return self.ref.short_name

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def default_layer(self) -> int:
        """The middle block: the paper reads "middle layers" (paper §2.6)."""
        return self.n_layers // 2

    def logits(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """What it predicts at every token, (B, T, V), in its dtype and on its device. Whether autograd watches is for
        the caller to say.

        Args:
            ids_BT: int64 token ids, padded on the right with any valid id; mask_BT: 1 at tokens, 0 at padding.
        """
        made: torch.Tensor = self.model(
            input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device), use_cache=False
        ).logits
        return made

    def check_layer(self, layer: int) -> None:
        """Raise InputError unless `layer` is the index of a block, counted from 0."""
        if not 0 <= layer < self.n_layers:
            raise InputError(f"layer {layer} is out of range: model {self.name} has blocks 0 to {self.n_layers - 1}")

    def check_length(self, n_tokens: int) -> None:
        """Raise InputError if a sequence of `n_tokens` is longer than the model has positions."""
        if self.max_positions is not None and n_tokens > self.max_positions:
            raise InputError(
                f"{n_tokens} tokens are too long for model {self.name}, which has {self.max_positions} positions"
            )
