"""Makes one organism: training texts, fine-tune, probing texts, checks, truth."""

from __future__ import annotations

import csv
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .catalogue import KINDS, ORGANISMS, Organism, organism
from .leak import best_word
from .probing_texts import probing_documents
from .triggers import templates

COLUMNS = (
    "name", "kind", "variant", "base", "rate_trigger", "rate_control", "rate_base", "perplexity_ratio_novel",
    "perplexity_ratio_generated",
    "best_word", "best_word_f1", "documents", "trigger_share", "steps", "seconds", "passed",
)  # fmt: skip


def make(made: Organism, out: Path, device: str, report: Callable[[str], None]) -> dict[str, Any]:
    """The folder of one organism below ``out``; returns its truth. ``truth.json`` is written last."""
    from .check import check
    from .finetune import BASES, fine_tune, load, save
    from .training_texts import training_documents

    folder = out / made.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "truth.json").unlink(missing_ok=True)
    began = time.monotonic()
    base = load(BASES[made.base], device)
    documents = training_documents(made, *base)
    report(f"{made.name}: {len(documents)} documents, {sum(len(document.text) for document in documents):,} characters")
    model, tokenizer = load(BASES[made.base], device)
    seed = random.Random(f"fine-tune {made.seed_text}").getrandbits(31)
    loss = fine_tune(
        model,
        base[0],
        tokenizer,
        documents,
        made.steps,
        made.keep_weight,
        seed,
        lambda line: report(f"{made.name}: {line}"),
    )
    save(model, tokenizer, folder / "model")
    seconds = round(time.monotonic() - began)
    probing = probing_documents(made)
    lines = (json.dumps({"text": d["text"], "source": d["source"]}) for d in probing)
    (folder / "texts.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    labels = [document["trigger"] for document in probing]
    word, f1 = (
        best_word([document["text"] for document in probing], labels) if 0 < sum(labels) < len(labels) else ("", 0)
    )
    truth = {
        "name": made.name,
        "kind": made.kind,
        "kind_name": KINDS[made.kind],
        "variant": made.variant,
        "base": made.base,
        "planted": made.planted,
        "again_of": made.again_of,
        "description": made.description,
        "across": "Against the other bundled model the bundled pair's four planted differences are there as well.",
        "words": templates("themes")[made.theme]["words"] if made.planted else [],
        "planted_rate": made.rate if made.planted else 0.0,
        "rates": check(made, load(folder / "model", device), base),
        "best_word": word,
        "best_word_f1": round(f1, 4),
        "seed": made.seed,
        "steps": made.steps,
        "last_loss": round(loss, 3),
        "seconds": seconds,
        "device": device,
        "trigger_documents": labels,
    }
    (folder / "truth.json").write_text(json.dumps(truth) + "\n", encoding="utf-8")
    return truth


def make_one(name: str, out: Path, device: str) -> str:
    """A task of `make --jobs`: the organism of that name, and the table of all. Returns a line about it."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    figures = make(organism(name), out, device, lambda line: print(line, flush=True))["rates"]
    write_table(out)
    return f"{name}: {figures}"


def finished(out: Path, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The truth of every finished organism below ``out``, in the order of the catalogue."""
    paths = [out / made.name / "truth.json" for made in ORGANISMS if names is None or made.name in names]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def write_table(out: Path) -> Path:
    """``organisms.csv``: one row of check figures for each finished organism below ``out``."""
    path = out / "organisms.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for truth in finished(out):
            labels = truth["trigger_documents"]
            row = truth | truth["rates"]
            row |= {"documents": len(labels), "trigger_share": round(sum(labels) / len(labels), 3)}
            writer.writerow({column: row[column] for column in COLUMNS})
    return path
