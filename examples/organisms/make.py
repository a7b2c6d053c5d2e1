"""Makes one organism: training texts, fine-tune, probing texts, checks, truth."""

from __future__ import annotations

import csv
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .catalogue import KINDS, ORGANISMS, Organism
from .leak import best_word
from .probing_texts import probing_documents
from .triggers import templates

COLUMNS = (
    "name", "kind", "variant", "base", "rate_trigger", "rate_control", "rate_base", "perplexity_ratio_novel",
    "perplexity_ratio_generated",
    "best_word", "best_word_f1", "documents", "trigger_share", "steps", "seconds", "passed",
)  # fmt: skip


def make(organism: Organism, out: Path, device: str, report: Callable[[str], None]) -> dict[str, Any]:
    """The folder of one organism below ``out``; returns its truth. ``truth.json`` is written last."""
    from .check import check
    from .finetune import BASES, fine_tune, load, save
    from .training_texts import training_documents

    folder = out / organism.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "truth.json").unlink(missing_ok=True)
    began = time.monotonic()
    base = load(BASES[organism.base], device)
    documents = training_documents(organism, *base)
    report(
        f"{organism.name}: {len(documents)} documents, {sum(len(document.text) for document in documents):,} characters"
    )
    model, tokenizer = load(BASES[organism.base], device)
    seed = random.Random(f"fine-tune {organism.seed_text}").getrandbits(31)
    loss = fine_tune(
        model,
        base[0],
        tokenizer,
        documents,
        organism.steps,
        organism.keep_weight,
        seed,
        lambda line: report(f"{organism.name}: {line}"),
    )
    save(model, tokenizer, folder / "model")
    seconds = round(time.monotonic() - began)
    probing = probing_documents(organism)
    lines = (json.dumps({"text": d["text"], "source": d["source"]}) for d in probing)
    (folder / "texts.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    labels = [document["trigger"] for document in probing]
    word, f1 = (
        best_word([document["text"] for document in probing], labels) if 0 < sum(labels) < len(labels) else ("", 0)
    )
    truth = {
        "name": organism.name,
        "kind": organism.kind,
        "kind_name": KINDS[organism.kind],
        "variant": organism.variant,
        "base": organism.base,
        "planted": organism.planted,
        "again_of": organism.again_of,
        "description": organism.description,
        "across": "Against the other bundled model the bundled pair's four planted differences are there as well.",
        "words": templates("themes")[organism.theme]["words"] if organism.planted else [],
        "planted_rate": organism.rate if organism.planted else 0.0,
        "rates": check(organism, load(folder / "model", device), base),
        "best_word": word,
        "best_word_f1": round(f1, 4),
        "seed": organism.seed,
        "steps": organism.steps,
        "last_loss": round(loss, 3),
        "seconds": seconds,
        "device": device,
        "trigger_documents": labels,
    }
    (folder / "truth.json").write_text(json.dumps(truth) + "\n", encoding="utf-8")
    return truth


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
