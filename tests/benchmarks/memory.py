"""Peak memory of `modeldiff train` against the sum of what it cannot do without, and of `modeldiff harvest` beyond the
larger model; each in a process of its own, less what the process held after the imports.

Two harvests: one whose weights weigh the most, and one with wide rows and large shards, whose rows do.

Legend: N pairs, D width of one model, C concepts.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import transformers

from modeldiff.workspace import Workspace
from tests.benchmarks.rows import Options, Row, mib
from tests.tiny_models import tiny_tokenizer

_GIB = 1 << 30
_WIDTH, _FEATURES, _K, _BATCH, _STEPS, _BUFFER_MIB = 512, 8192, 64, 2048, 24, 64
# Three times what fits the buffer (bfloat16 on both sides): the next rows are read while a step runs.
_PAIRS = 3 * (_BUFFER_MIB << 20) // (2 * 2 * _WIDTH)
_FLOAT32 = 4

# Imports modules and computes a little, runs a command; prints the most memory that it held before and at the end, and
# all modules that were loaded, in order.
_CHILD = """
import importlib, json, sys
import torch
from modeldiff.cli.main import run
from modeldiff.workspace.stage import peak_memory_bytes
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except Exception:
        pass  # made by a program itself, not a module that can be imported
torch.ones(8, 8) @ torch.ones(8, 8)
imports = peak_memory_bytes()
try:
    run(sys.argv[1:])
except SystemExit as end:
    if end.code:
        raise
print(json.dumps([imports, peak_memory_bytes(), list(sys.modules)]))
"""


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


def rows(options: Options) -> Iterator[Row]:
    yield _training(options.folder)
    for number, size in enumerate(SIZES):
        yield _harvest(options.folder / str(number), size)


def peaks(modules: list[str], *args: str) -> tuple[int, int, list[str]]:
    """(bytes that a process holds after importing `modules`, at most until `modeldiff ARGS` is done, modules loaded).

    Raises:
        RuntimeError: the command failed; with the end of what it wrote to stderr.
    """
    command = [sys.executable, "-c", _CHILD, *args]
    child = subprocess.run(command, input=json.dumps(modules), capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"modeldiff {' '.join(args)}: {child.stderr[-2000:]}")
    imports, peak, loaded = json.loads(child.stdout.splitlines()[-1])
    return imports, peak, loaded


def _training(folder: Path) -> Row:
    """24 steps; some are logged, checkpoints are written during the run and at its end."""
    workspace = ("--workspace", str(folder / "ws"))
    peaks([], *workspace, "harvest", *_activations(folder))
    sizes = {"features": _FEATURES, "k": _K, "batch": _BATCH, "steps": _STEPS, "buffer-mib": _BUFFER_MIB}
    given = [f"--{name}={value}" for name, value in (sizes | {"checkpoint-seconds": 1}).items()]
    _, peak, modules = peaks([], *workspace, "train", *given)
    imports, _, _ = peaks(modules, "--version")
    parameters = Workspace(folder / "ws").find("crosscoder").metrics["parameters"]
    needed = {
        "parameters, gradients, Adam's moments": 4 * _FLOAT32 * parameters,
        "pre-activations": _FLOAT32 * _BATCH * _FEATURES,
        "buffer": _BUFFER_MIB << 20,
    }
    total = sum(needed.values())
    parts = ", ".join(f"{name} {mib(size)}" for name, size in needed.items())
    return Row(
        f"modeldiff train, peak memory: d {_WIDTH}+{_WIDTH}, {_FEATURES} features, k {_K}, batch {_BATCH}",
        (peak - imports) / total, 1.15, unit="", at_least=False,
        note=f"{mib(peak)} - {mib(imports)} MiB of imports, against {mib(total)} ({parts})",
    )  # fmt: skip


def _activations(folder: Path) -> list[str]:
    """Options that import activations: each pair is a few of many concepts, which both sides have, and noise."""
    noise = np.random.default_rng(0)
    concepts, active = 4096, 16
    options = []
    for side in "ab":
        options += [f"--import-{side}", str(folder / f"{side}.npy")]
        directions_CD = noise.standard_normal((concepts, _WIDTH), dtype=np.float32)
        drawn = np.random.default_rng(1)  # the same concepts on both sides
        x_ND = np.lib.format.open_memmap(folder / f"{side}.npy", "w+", np.float16, (_PAIRS, _WIDTH))
        for start in range(0, _PAIRS, _BATCH):
            n = min(_BATCH, _PAIRS - start)
            which = drawn.integers(concepts, size=(n, active))
            strength = drawn.exponential(size=(n, active, 1)).astype(np.float32)
            x_ND[start : start + n] = (directions_CD[which] * strength).sum(axis=1) + noise.standard_normal((n, _WIDTH))
        x_ND.flush()
    return options


def _harvest(folder: Path, size: Size) -> Row:
    model_bytes = _save_model(folder / "model", size)
    (folder / "texts.txt").write_text(_made_texts(size.pairs))
    imports, peak, _ = peaks(
        ["modeldiff.harvest.run"],
        "--workspace", str(folder / "ws"), "harvest", "--model-a", str(folder / "model"),
        "--model-b", str(folder / "model"), "--texts", str(folder / "texts.txt"), "--pairs", str(size.pairs),
        "--shard-pairs", str(size.shard_pairs), "--storage", size.storage, "--device", "cpu", "--pair-at", "tokens",
    )  # fmt: skip
    return Row(
        f"harvest: peak memory beyond the model, {size.what}", (peak - imports - model_bytes) / _GIB, 1.0,
        unit="GiB", at_least=False,
        note=f"{size.width} wide, {size.layers} layers, {size.pairs:,} pairs, shards of {size.shard_pairs:,}, "
        f"{size.storage}; model {model_bytes / _GIB:.2f} GiB, imports {imports / _GIB:.2f}, peak {peak / _GIB:.2f}",
    )  # fmt: skip


def _save_model(folder: Path, size: Size) -> int:
    """Write a random Llama-like model; bytes of its weights in float32."""
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, num_hidden_layers=size.layers,
        num_attention_heads=size.width // 64, num_key_value_heads=4, intermediate_size=size.width // 4,
        max_position_embeddings=512,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return sum(one.numel() * _FLOAT32 for one in model.parameters())


def _made_texts(pairs: int) -> str:
    """Texts that give at least so many pairs: a word is at least one token of both tokenizers."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 3))) for _ in range(200)]
    return "\n\n".join(" ".join(draw.choices(words, k=300)) for _ in range(pairs // 300 + 1))
