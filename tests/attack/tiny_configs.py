"""A tiny configuration of any causal language model that transformers has: its own defaults, with the sizes made small.

Sizes are known by the names of their fields, in the configuration and in those inside it. What a class needs besides is
in `OWN`, by model type.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import transformers

LAYERS, WIDTH, POSITIONS, VOCABULARY = 4, 32, 64, 320

# The first rule that matches a field's name says its value. Only whole numbers above 4 are changed.
_RULES: tuple[tuple[str, int], ...] = (
    (r"^num_key_value_heads$", 4),
    (r"^pad_token_id$", 2),
    (r"^bos_token_id$", 0),
    (r"^eos_token_id$", 1),
    (r"token_(id|index)$", 3),
    (r"vocab_size", VOCABULARY),
    (r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length)$", POSITIONS),
    (r"(num|n)_(key_value|kv)_heads|kv_n_heads|num_attention_groups", 2),
    (r"num_(hidden_)?layers$|_layers$|^n_layers?$|^num_blocks$|^depth$", LAYERS),
    (r"heads$|^n_head$", 4),
    (r"per_tok|topk|top_k", 2),
    (r"experts$|^num_experts|expert_num$", 4),
    (r"head_dim|head_size|^v_head|kv_channels|rotary_dim|dim_head", 8),
    (r"rank$|_state$|state_size|^chunk_size$|mamba_chunk_size", 8),
    (r"intermediate|ffn|dff$|mlp_dim|dim_ff|d_inner|feed_forward", 2 * WIDTH),
    (r"window|chunk|attention_chunk|block_size", 16),
    (r"hidden_size|d_model|n_embd|emb_dim|embed_dim|embedding_size|proj_dim|^input_size$", WIDTH),
)

OWN: dict[str, dict[str, Any]] = {}


def tiny_config(model_type: str) -> transformers.PreTrainedConfig:
    """Raises what the configuration's class raises for its own defaults made small."""
    kind = transformers.CONFIG_MAPPING[model_type]
    return kind(**_merged(_sizes(kind), OWN.get(model_type, {})))


def _sizes(kind: type) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if type(field.default) is int and field.default > 4:
            values = (value for pattern, value in _RULES if re.search(pattern, field.name))
            small[field.name] = next(values, field.default)
    inner = {name: one for name, one in getattr(kind, "sub_configs", {}).items() if dataclasses.is_dataclass(one)}
    return small | {name: _sizes(one) for name, one in inner.items()}


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """`second` goes first, also inside."""
    both = [name for name in first.keys() & second.keys() if isinstance(second[name], dict)]
    return first | second | {name: _merged(first[name], second[name]) for name in both}
