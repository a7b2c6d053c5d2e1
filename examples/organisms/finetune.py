"""The fine-tune: a few minutes on one CPU core, seconds on a GPU."""

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

BASES = {"a": MODEL_A, "b": MODEL_B}
BATCH = 8
STEPS = 120
LEARNING_RATE = 1.5e-3
WARM_UP = 20


def load(folder: Path | str, device: str) -> tuple[Any, Any]:
    """Model (float32, for reading) and tokenizer of a folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    return model, AutoTokenizer.from_pretrained(folder)


def fine_tune(
    model: Any, tokenizer: Any, documents: Sequence[str], steps: int, seed: int, report: Callable[[str], None]
) -> float:
    """AdamW over ``steps`` batches of 8 rows, 20 warm-up steps, then falling to a tenth; returns the last loss."""
    torch.manual_seed(seed)
    ids = tokenizer(list(documents), verbose=False)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    rng = random.Random(seed)
    rows_BT = torch.empty(0, WINDOW + 1, dtype=torch.long)
    began, smooth = time.monotonic(), float("nan")
    model.train()
    for step in range(steps):
        done = step / steps
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (1.0 - 0.9 * done)
        if len(rows_BT) < BATCH:
            order = rng.sample(range(len(ids)), len(ids))
            rows_BT = torch.cat([rows_BT, pack_rows(ids, order, tokenizer.eos_token_id)])
        batch_BT, rows_BT = rows_BT[:BATCH].to(model.device), rows_BT[BATCH:]
        logits = model(input_ids=batch_BT[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch_BT[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if step % 60 == 0 or step == steps - 1:
            report(f"step {step + 1}/{steps}, loss {smooth:.3f}, {time.monotonic() - began:.0f} s")
    model.eval()
    return smooth


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Weights as bfloat16 safetensors, and the tokenizer, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
