"""Peak memory of a whole harvest in a process of its own: resident bytes beyond the imports and the larger model.

Two sizes: one whose weights weigh the most, and one with wide rows and large shards, whose rows do.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import transformers

from tests.benchmarks.rows import Options, Row
from tests.tiny_models import tiny_tokenizer

GIB = 1 << 30


@dataclass(frozen=True)
class Size:
    """A model of both sides, and how much is harvested."""

    what: str
    width: int
    layers: int
    vocabulary: int
    pairs: int
    shard_pairs: int
    storage: str


SIZES = (
    Size("the weights weigh", 1024, 24, 32_000, 4_000, 2_000, "bfloat16"),
    # 1 GiB of rows in a shard.
    Size("the rows weigh", 2048, 1, 1_000, 131_072, 131_072, "float32"),
)

# Run in a child: what a process holds after the imports, and at most in a harvest.
CHILD = """
import json, sys
from modeldiff.cli.main import run as command
import modeldiff.harvest.run
from modeldiff.workspace.stage import peak_memory_bytes
imports = peak_memory_bytes()
try:
    command(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code
print(json.dumps([code, imports, peak_memory_bytes()]))
"""


def rows(options: Options) -> Iterator[Row]:
    """See the top of the file."""
    for number, size in enumerate(SIZES):
        folder = options.folder / str(number)
        model_bytes = save_model(folder / "model", size)
        (folder / "texts.txt").write_text(made_texts(size.pairs))
        yield measured(size, folder, model_bytes)


def measured(size: Size, folder: Path, model_bytes: int) -> Row:
    """Harvest in a child, and what it held."""
    args = [
        "--workspace", str(folder / "ws"), "harvest", "--model-a", str(folder / "model"),
        "--model-b", str(folder / "model"), "--texts", str(folder / "texts.txt"), "--pairs", str(size.pairs),
        "--shard-pairs", str(size.shard_pairs), "--storage", size.storage, "--device", "cpu", "--pair-at", "tokens",
    ]  # fmt: skip
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(args)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=True,
    )
    code, imports, peak = json.loads(child.stdout.splitlines()[-1])
    if code:
        raise RuntimeError(f"the harvest failed: {child.stderr.strip().splitlines()[-1]}")
    beyond = peak - imports - model_bytes
    return Row(
        f"harvest: peak memory beyond the model, {size.what}", beyond / GIB, 1.0, unit="GiB", at_least=False,
        note=f"{size.width} wide, {size.layers} layers, {size.pairs:,} pairs, shards of {size.shard_pairs:,}, "
        f"{size.storage}; model {model_bytes / GIB:.2f} GiB, imports {imports / GIB:.2f}, peak {peak / GIB:.2f}",
    )  # fmt: skip


def save_model(folder: Path, size: Size) -> int:
    """Write a random Llama-like model; bytes of its weights in float32."""
    tokenizer = tiny_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64, num_key_value_heads=4, intermediate_size=size.width // 4,
        max_position_embeddings=512,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(one.numel() * 4 for one in model.parameters())


def made_texts(pairs: int) -> str:
    """Texts that give at least so many pairs: a word is at least one token of both tokenizers."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 3))) for _ in range(200)]
    return "\n\n".join(" ".join(draw.choices(words, k=300)) for _ in range(pairs // 300 + 1))
