"""Tokenizers and models of the bundled pair: byte-level BPE, a GPT-2-like model A and a Llama-like model B."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

# Tensor names: B rows of a batch, T tokens of a row.
WINDOW = 256


@dataclass(frozen=True)
class Recipe:
    """What differs between the two models' training. ``batch`` is in rows of WINDOW tokens."""

    side: str
    vocabulary: int
    learning_rate: float
    seed: int
    batch: int = 8


RECIPES = {
    "A": Recipe("A", vocabulary=2048, learning_rate=2e-3, seed=11),
    "B": Recipe("B", vocabulary=3000, learning_rate=1.5e-3, seed=12),
}


def train_tokenizer(recipe: Recipe, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with character offsets; encoding puts the start token in front."""
    start, end = ("<|endoftext|>", "<|endoftext|>") if recipe.side == "A" else ("<s>", "</s>")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=sorted({start, end}, reverse=True),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.Sequence(
        [
            # Offsets leave out the blank before a word.
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, bpe.token_to_id(start))]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=start, eos_token=end, pad_token=end, model_max_length=WINDOW
    )


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Random weights from the recipe's seed: A has 4 blocks of width 128, B 4 blocks of width 192."""
    torch.manual_seed(recipe.seed)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if recipe.side == "A":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=WINDOW, n_embd=128, n_layer=4, n_head=4,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=tokenizer.pad_token_id, **ids,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=WINDOW,
            tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id, **ids,
        )
    )  # fmt: skip


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """``save_pretrained``, with a class name in the settings that every transformers release knows."""
    tokenizer.save_pretrained(folder)
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings_path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def pack_rows(documents: Sequence[list[int]], order: Sequence[int], end_id: int) -> Tensor:
    """Rows of WINDOW + 1 token ids (B, T): whole documents with an end token each, the last one of a row cut.

    Every row starts with a document, as every text does when the models are used.
    """
    rows: list[list[int]] = []
    row: list[int] = []
    for index in order:
        row += [*documents[index], end_id]
        if len(row) > WINDOW:
            rows.append(row[: WINDOW + 1])
            row = []
    return torch.tensor(rows, dtype=torch.long)


def train_model(
    recipe: Recipe,
    model: PreTrainedModel,
    documents: Sequence[list[int]],
    end_id: int,
    steps: int,
    report: Callable[[str], None],
) -> float:
    """AdamW (cosine schedule, 100 warm-up steps, weight decay 0.05) over ``steps`` batches; returns the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    rng = random.Random(recipe.seed)
    rows_BT = torch.empty(0, WINDOW + 1, dtype=torch.long)
    began, smooth = time.monotonic(), float("nan")
    model.train()
    for step in range(steps):
        warm, done = min(1.0, (step + 1) / 100), step / steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + cos(pi * done)))
        if len(rows_BT) < recipe.batch:
            order = list(range(len(documents)))
            rng.shuffle(order)
            rows_BT = torch.cat([rows_BT, pack_rows(documents, order, end_id)])
        batch_BT, rows_BT = rows_BT[: recipe.batch], rows_BT[recipe.batch :]
        logits = model(input_ids=batch_BT[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.97 * smooth + 0.03 * loss.item()
        if step % 50 == 0 or step == steps - 1:
            tokens = (step + 1) * recipe.batch * WINDOW
            report(
                f"{recipe.side}: step {step + 1}/{steps}, loss {smooth:.3f}, {tokens / 1e6:.2f} M tokens, "
                f"{time.monotonic() - began:.0f} s"
            )
    model.eval()
    return smooth
