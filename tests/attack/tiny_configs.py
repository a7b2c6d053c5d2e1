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

_VISION = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_GROUPS = {"n_group": 2, "topk_group": 1}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_GEMMA_3N = {"num_kv_shared_layers": 2, "layer_types": ["full_attention"] * LAYERS}
_GEMMA_3N |= {"activation_sparsity_pattern": [0.0] * LAYERS}
_ASSISTANT = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": LAYERS}
_QWEN_4 = {f"indexer_{name}": 4 for name in ("n_heads", "kv_heads", "head_dim", "budget", "compress_ratio")}
_QWEN_4 |= {"indexer_kv_heads": 1, "indexer_head_dim": 8}
_QWEN_4 |= {"ngram_vocab_size_base": 64, "make_ngram_vocab_size_divisible_by": 2, "split_ngram_parts": 2}
_DOTS_3 = {f"swa_{name}": 8 for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank")}
_DOTS_3 |= {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16, "swa_q_lora_rank": 8}

OWN: dict[str, dict[str, Any]] = {
    "axk1": _GROUPS,
    "bailing_hybrid": _GROUPS | {"first_k_dense_replace": 1, "layer_group_size": 2},
    "beam": _GROUPS,
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v3": _GROUPS,
    "deepseek_v32": _GROUPS,
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note": {
        "text_config": _DOTS_3,
        "vision_config": {"mlp_layer_types": ["dense"] * LAYERS, "adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
        "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
    },
    "dots3_note_text": _DOTS_3,
    "ernie4_5_moe": {"moe_k": 2},
    "gemma3": {"vision_config": {**_VISION, "image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 1},
    "gemma3n": {"text_config": _GEMMA_3N},
    "gemma3n_text": _GEMMA_3N,
    "gemma4_assistant": {"text_config": _ASSISTANT},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "n_groups": 2},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "mllama": {"text_config": {"cross_attention_layers": [1]}},
    "ministral": {"head_dim": 8},
    "moshi": {"audio_vocab_size": VOCABULARY},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 2, "mamba_num_heads": 4},
    "qwen4_exp": {"text_config": _QWEN_4},
    "qwen4_exp_text": _QWEN_4,
    "reformer": {"is_decoder": True, "axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16)},
    "xlstm": {"max_inference_chunksize": 16384},  # in pieces, transformers loses the shape of its state
    "xmod": {"default_language": "en_XX", "is_decoder": True},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}


def tiny_config(model_type: str) -> transformers.PreTrainedConfig:
    """Raises what the configuration's class raises for its own defaults made small."""
    kind = transformers.CONFIG_MAPPING[model_type]
    return kind(**_merged(_sizes(kind), OWN.get(model_type, {})))


def _sizes(kind: type) -> dict[str, Any]:
    # Larger weights than usual, so that every block does something that a check can see.
    usual = {"is_decoder": True, "initializer_range": 0.15}
    small: dict[str, Any] = {name: value for name, value in usual.items() if name in kind.__dataclass_fields__}
    for field in dataclasses.fields(kind):
        if type(field.default) is int and field.default > 4:
            values = (value for pattern, value in _RULES if re.search(pattern, field.name))
            small[field.name] = next(values, field.default)
    for name, part in {**getattr(kind, "sub_configs", {}), **getattr(kind, "sub_configs_defaults", {})}.items():
        if model_type := getattr(part, "model_type", None):
            small[name] = {"model_type": model_type, **_sizes(transformers.CONFIG_MAPPING[model_type])}
        elif dataclasses.is_dataclass(part):
            small[name] = _sizes(part)
    return small


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """`second` goes first, also inside."""
    both = [name for name in first.keys() & second.keys() if isinstance(second[name], dict)]
    return first | second | {name: _merged(first[name], second[name]) for name in both}
