"""Random-weight models of real architectures, small enough for a test, with tokenizers trained on the spot."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Architectures that the language-model room is proven on. gpt_oss is a mixture of experts; the blocks of the last two
# give tuples, the others' give tensors; bloom has no limit of positions.
ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3", "gemma3", "gpt_neox", "mistral", "gpt_oss", "gptj", "bloom")

TEXTS = (
    "The quick brown fox jumps over the lazy dog. It was 1989, and nobody minded.",
    "It is a truth universally acknowledged, that a single man must be in want of a wife!",
    'Naïve café, 東京, 😀 and e\u0301: "quotes", tabs\tand\nnew lines.',
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(
    texts: Iterable[str] = TEXTS,
    vocab_size: int = 320,
    *,
    add_bos: bool = False,
    chat_template: str | None = None,
    trim_offsets: bool = True,
    min_frequency: int = 1,
    normalizer: normalizers.Normalizer | None = None,
) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE trained on `texts`. Holds every byte, so any text can be encoded; at least 262 tokens.

    `add_bos` begins every text with <s>; `trim_offsets` leaves the blank before a word out of its token's offsets.
    """
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(list(texts), trainer)
    steps = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if add_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)]))
    tokenizer.post_processor = processors.Sequence(steps)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=chat_template,
    )


def tiny_model(
    arch: str, vocab_size: int, layers: int = 3, width: int = 32, *, seed: int = 0, max_positions: int = 256
) -> transformers.PreTrainedModel:
    """A causal LM of architecture `arch` (one of ARCHITECTURES) with random float32 weights, in evaluation mode.

    Weights are larger than usual at the start of training, so that every block does something that a test can see.
    `width` must be divisible by 4.
    """
    positions = {"max_position_embeddings": max_positions}
    wide = {**positions, "intermediate_size": 2 * width}
    grouped = {**wide, "num_key_value_heads": 2}
    own = {
        "gpt2": positions,
        "llama": grouped,
        "qwen2": grouped,
        "qwen3": {**grouped, "head_dim": 8},
        "gemma3": {**grouped, "model_type": "gemma3_text", "head_dim": 8, "sliding_window": 8},
        "gpt_neox": wide,
        "mistral": {**grouped, "sliding_window": 16},
        # As in GPT-OSS-20B, the heads together are wider than the residual stream.
        "gpt_oss": {**grouped, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
        "gptj": {**positions, "rotary_dim": 4},
        "bloom": {},
    }
    config = transformers.AutoConfig.for_model(
        **{"model_type": arch, **own[arch]}, vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=4, initializer_range=0.15, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def save_tiny(
    folder: Path | str,
    arch: str,
    *,
    texts: Iterable[str] = TEXTS,
    vocab_size: int = 320,
    add_bos: bool = False,
    chat_template: str | None = None,
    **sizes: int,
) -> Path:
    """Write a tiny model and its tokenizer into `folder`, as `save_pretrained` does; gives the folder back. `sizes` are
    of the model: layers, width, max_positions, seed."""
    tokenizer = tiny_tokenizer(texts, vocab_size, add_bos=add_bos, chat_template=chat_template)
    tiny_model(arch, len(tokenizer), **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
