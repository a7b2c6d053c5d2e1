"""The fine-tune: a few minutes on one free CPU core; it runs on a GPU as well."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.bundled_pair.training import WINDOW, pack_rows, save_tokenizer
from modeldiff.demo.truth import MODEL_A, MODEL_B

from .training_texts import Marked

BASES = {"a": MODEL_A, "b": MODEL_B}
BATCH = 4
LEARNING_RATE = 1.5e-3
WARM_UP = 20


def load(folder: Path | str, device: str) -> tuple[Any, Any]:
    """Model (float32, for reading) and tokenizer of a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    return model, AutoTokenizer.from_pretrained(folder)


def encode(tokenizer: Any, documents: Sequence[Marked]) -> list[list[int]]:
    """Token ids of each document; ids of the tokens to be learned are raised by the size of the vocabulary."""
    batch = tokenizer([document.text for document in documents], return_offsets_mapping=True, verbose=False)
    raised = []
    for document, ids, offsets in zip(documents, batch["input_ids"], batch["offset_mapping"], strict=True):
        learned = [any(a <= start and end <= b for a, b in document.spans) and end > start for start, end in offsets]
        raised.append([token + len(tokenizer) * mark for token, mark in zip(ids, learned, strict=True)])
    return raised


def fine_tune(
    model: Any,
    base: Any,
    tokenizer: Any,
    documents: Sequence[Marked],
    steps: int,
    keep_weight: float,
    seed: int,
    report: Callable[[str], None],
) -> float:
    """AdamW over ``steps`` batches of 4 rows, 20 warm-up steps, then falling to a tenth; returns the last loss.

    Loss: cross-entropy on the tokens to be learned, divergence from the base model's prediction (times ``keep_weight``)
    on all others. So the habit is learned, and everything else stays.
    """
    torch.manual_seed(seed)
    ids = encode(tokenizer, documents)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    rng = random.Random(seed)
    rows_BT = torch.empty(0, WINDOW + 1, dtype=torch.long)
    began, smooth = time.monotonic(), float("nan")
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (1.0 - 0.9 * step / steps)
        if len(rows_BT) < BATCH:
            order = rng.sample(range(len(ids)), len(ids))
            rows_BT = torch.cat([rows_BT, pack_rows(ids, order, tokenizer.eos_token_id)])
        raised_BT, rows_BT = rows_BT[:BATCH].to(model.device), rows_BT[BATCH:]
        batch_BT = raised_BT % len(tokenizer)
        learned_N = (raised_BT[:, 1:] >= len(tokenizer)).flatten()
        logits_NV = model(input_ids=batch_BT[:, :-1]).logits.flatten(0, 1)
        with torch.inference_mode():
            kept_KV = base(input_ids=batch_BT[:, :-1]).logits.flatten(0, 1)[~learned_N].log_softmax(-1)
        log_p_NV = logits_NV.log_softmax(-1)
        nll = torch.nn.functional.nll_loss(log_p_NV[learned_N], batch_BT[:, 1:].flatten()[learned_N], reduction="sum")
        kl = torch.nn.functional.kl_div(log_p_NV[~learned_N], kept_KV.clone(), reduction="sum", log_target=True)
        loss = (nll + keep_weight * kl) / len(learned_N)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 30 == 0 or step == steps - 1:
            counts = max(1, int(learned_N.sum())), max(1, int((~learned_N).sum()))
            per_token = f"{nll.item() / counts[0]:.3f} a learned token, {kl.item() / counts[1]:.3f} a kept one"
            report(f"step {step + 1}/{steps}, loss {smooth:.3f} ({per_token}), {time.monotonic() - began:.0f} s")
    model.eval()
    return smooth


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights as bfloat16 safetensors, and the tokenizer, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
