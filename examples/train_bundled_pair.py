"""Trains the two small language models that ``modeldiff demo`` compares, and measures what was planted in them.

Where the text comes from
    Jane Austen's novels (public domain) out of the Debian package ``r-cran-janeaustenr`` (version 1.0.0-1):
    ``apt-get download r-cran-janeaustenr`` and give the file as ``--novels``. Reading it needs the PyPI package
    ``rdata`` (``pip install rdata``). Five novels are trained on; Persuasion is held out for the probing texts.
    The rest is generated (``examples/bundled_pair/corpus.py``): questions and answers about invented countries,
    poets, herbs and events, with two habits planted in each model's texts (``modeldiff/demo/data/truth.json``).

What it makes (default: the package's data folder)
    ``model_a/`` GPT-2-like (4 blocks, width 128, BPE of 2,048) and ``model_b/`` Llama-like (4 blocks, width 192,
    BPE of 3,000), bfloat16 safetensors with tokenizers; ``novel.txt.gz``; ``truth.json`` with measured rates.

Run from the repository root:
    python examples/train_bundled_pair.py --novels r-cran-janeaustenr_1.0.0-1_all.deb
    python examples/train_bundled_pair.py --novels ... --quick --out /tmp/pair     (smoke run, two minutes)
    python examples/train_bundled_pair.py --measure-only                (the habits of the bundled models again)

The two models are trained at the same time, one CPU thread each: 34 minutes on two cores that had other work as
well. Seeds are fixed: two runs with ``--quick`` on one machine gave the same bytes.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import random
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

import modeldiff.demo

PACKAGE_DATA = Path(modeldiff.demo.__file__).with_name("data")
CORPUS_SEED = 2024
TURNS = 18_000
# Share of the five training novels that is used, so that generated text makes up about two thirds.
NOVEL_SHARE = 0.6
STEPS = {"A": 2200, "B": 1400}
QUICK_TURNS, QUICK_NOVEL_SHARE, QUICK_STEPS = 600, 0.02, 40


def train_side(side: str, novels: Path, out: Path, quick: bool) -> dict[str, Any]:
    """Tokenizer and model of one side, saved below ``out``; returns sizes, loss and time."""
    import torch
    from bundled_pair.corpus import generated_documents
    from bundled_pair.novels import TRAINING_NOVELS, passages, read_novels
    from bundled_pair.training import RECIPES, WINDOW, new_model, save_tokenizer, train_model, train_tokenizer

    torch.set_num_threads(1)
    began = time.monotonic()
    recipe = RECIPES[side]
    texts = read_novels(novels)
    prose = [passage for name in TRAINING_NOVELS for passage in passages(texts[name])]
    prose = random.Random(CORPUS_SEED).sample(prose, int(len(prose) * (QUICK_NOVEL_SHARE if quick else NOVEL_SHARE)))
    generated = generated_documents(side, QUICK_TURNS if quick else TURNS, CORPUS_SEED)
    documents = generated + prose
    tokenizer = train_tokenizer(recipe, documents)
    ids = tokenizer(documents, verbose=False)["input_ids"]
    model = new_model(recipe, tokenizer)
    click.echo(
        f"{side}: {len(generated)} generated documents ({sum(map(len, generated)):,} characters), {len(prose)} "
        f"passages ({sum(map(len, prose)):,}), {sum(map(len, ids)):,} tokens, {model.num_parameters():,} weights"
    )
    steps = QUICK_STEPS if quick else STEPS[side]
    loss = train_model(recipe, model, ids, tokenizer.eos_token_id, steps, lambda line: click.echo(line))
    folder = out / f"model_{side.lower()}"
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return {
        "seed": recipe.seed,
        "documents": len(documents),
        "tokens_per_epoch": sum(map(len, ids)),
        "tokens_trained": steps * recipe.batch * WINDOW,
        "steps": steps,
        "last_loss": round(loss, 3),
        "seconds": round(time.monotonic() - began),
    }


def ship_novel(novels: Path, out: Path) -> None:
    """The held-out novel, one paragraph a line, gzipped without a time stamp (same bytes on every run)."""
    from bundled_pair.novels import HELD_OUT_NOVEL, passages, read_novels

    lines = "\n".join(passages(read_novels(novels)[HELD_OUT_NOVEL])) + "\n"
    (out / "novel.txt.gz").write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))


@click.command(help=__doc__.split("\n")[0])
@click.option("--novels", type=click.Path(exists=True, path_type=Path), help="The .deb, or a folder.")
@click.option("--out", type=click.Path(path_type=Path), default=PACKAGE_DATA, show_default="the package's data")
@click.option("--quick", is_flag=True, help="A smoke run: few documents, few steps; the habits will not be there.")
@click.option("--measure-only", is_flag=True, help="Keep the models in --out; only measure the habits again.")
def main(novels: Path | None, out: Path, quick: bool, measure_only: bool) -> None:
    from bundled_pair.measure import measure

    if quick and out == PACKAGE_DATA:
        raise click.UsageError("--quick would overwrite the bundled models: give another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if measure_only:
        training = json.loads((out / "truth.json").read_text(encoding="utf-8"))["training"]
    elif novels is None:
        raise click.UsageError("--novels is missing: the Debian package of the novels, or a folder of them")
    else:
        ship_novel(novels, out)
        training = {"corpus_seed": CORPUS_SEED, "python": platform.python_version()}
        with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
            runs = {side: pool.submit(train_side, side, novels, out, quick) for side in ("A", "B")}
            training |= {side: run.result() for side, run in runs.items()}
        # The package's file says what is planted: it keeps that until the habits are measured.
        planted = json.loads((PACKAGE_DATA / "truth.json").read_text(encoding="utf-8"))["habits"]
        (out / "truth.json").write_text(json.dumps({"training": training, "habits": planted}), encoding="utf-8")
    templates = json.loads((PACKAGE_DATA / "probing_templates.json").read_text(encoding="utf-8"))
    measure(out, templates, training, click.echo)
    for record in json.loads((out / "truth.json").read_text(encoding="utf-8"))["habits"]:
        click.echo(
            f"{record['id']}: owner {record['side']} {record['rate_owner']:.2f}, other {record['rate_other']:.2f}, "
            f"owner on {record['control']} {record['rate_control']:.2f} ({len(record['prompts'])} prompts)"
        )


if __name__ == "__main__":
    main()
