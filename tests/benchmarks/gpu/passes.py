"""How fast pairs go through: the features stage, evidence, evaluation, harvest, and from a store to the device.

Legend: B pairs, D width of one model.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import modeldiff
from modeldiff.console import unheard
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.fast.inference import ActiveEntries
from modeldiff.crosscoder.training.data import PairStream
from modeldiff.crosscoder.training.evaluation import evaluate
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.demo.texts import probing_documents
from modeldiff.demo.truth import MODEL_B
from modeldiff.splits import hold_out_blocks
from modeldiff.workspace.activations import ActivationStore
from tests.benchmarks.gpu.harness import Bench
from tests.benchmarks.gpu.speed import let_through, started
from tests.features.made_crosscoder import publish, words_of
from tests.made_activations import make_activations

# What the project wants of a capture of an 8B model.
BUSY = 0.9
_WORDS = 128
# Of the harvest: the first is left out of what is measured, and the last one's files are written while nothing is read.
_SHARDS = 12


def codes(bench: Bench) -> None:
    """The active entries of pairs at the paper's size, which the features pass begins with, against training."""
    size = bench.sizes.paper
    crosscoder, _, batches = started(bench, size, "float32")
    let_through(crosscoder, batches[0], size.k)
    finder = ActiveEntries(crosscoder)
    rate = 1000 * size.batch / bench.milliseconds(lambda: finder.of(*batches[0]))
    bench.speed("pairs whose active entries are found", rate, "/s", "as shipped", note=str(size))
    if "pairs/s" in bench.found:
        bench.speed("... against those that are trained on", rate / bench.found["pairs/s"], "x", least=1)


def features(bench: Bench) -> None:
    """The features stage, an epoch of training and the evaluation on one store: from files to the device, and back."""
    size, device = bench.sizes.middle, str(bench.device)
    count = bench.sizes.middle_pairs // size.batch
    crosscoder, recipe, batches = started(bench, size, count=count)
    let_through(crosscoder, batches[0], size.k)
    x_a, x_b = (torch.cat(parts).cpu() for parts in zip(*batches, strict=True))
    del batches
    workspace = modeldiff.Workspace(bench.folder / "middle")
    texts = words_of(len(x_a), _WORDS)
    activations = make_activations(workspace, x_a, x_b, len(x_a) // 2, texts, encoding="bfloat16")
    publish(workspace, crosscoder, activations)
    store = ActivationStore(activations)
    stream = PairStream(
        store, store.blocks(2048), batch=size.batch, seed=0, buffer_bytes=256 << 20, device=bench.device
    )
    gigabytes = size.batch * store.pair_bytes / 1e9
    with bench.guarded("from the store to the device"), closing(stream.batches()) as read:
        took = _seconds(bench, lambda: next(read), count)
        bench.speed("from the store to the device", gigabytes * count / took, "GB/s", note="shuffled, 256 MiB")
    with bench.guarded("training"), closing(stream.batches()) as read:
        trainer = Trainer(crosscoder, recipe, warn=False)
        trained = size.batch * count / _seconds(bench, lambda: trainer.update(*next(read)), count)
        bench.speed("training, one epoch from the store", trained, "pairs/s", "bfloat16", note=str(size))
    with bench.guarded("features"), unheard() as parts:
        settings = modeldiff.FeaturesSettings(device=device, sample_pairs=len(x_a) // 2)
        made = modeldiff.run_features(settings, workspace)
        scanned = len(x_a) / _spent(parts, "features: pass")
        bench.speed("the features pass", scanned, "pairs/s", "as shipped")
        bench.speed("... against an epoch of training", scanned / trained, "x", least=1)
        bench.speed("evidence", _spent(parts, "features: read", "features: predictability"), "s", note="half the pairs")
        bench.speed("the whole features stage", made.manifest.seconds, "s", note=f"{len(x_a)} pairs with texts")
    with bench.guarded("evaluation"):
        _, held_out = hold_out_blocks(store, 0.25)
        pairs = sum(map(len, held_out))
        took = _seconds(bench, lambda: evaluate(crosscoder, store, held_out, 2.0), 1)
        bench.speed("evaluation at the end of training", pairs / took, "pairs/s", "bfloat16")


def harvest(bench: Bench) -> None:
    """A harvest of a Llama of random weights: how long the device works while one side is captured."""
    folder, size = bench.folder / "llama", bench.sizes
    tokenizer = AutoTokenizer.from_pretrained(MODEL_B)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size.width, intermediate_size=7 * size.width // 2,
        num_hidden_layers=size.layers, num_attention_heads=max(1, size.width // 128),
        num_key_value_heads=max(1, size.width // 512), max_position_embeddings=2048, dtype=torch.bfloat16,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with bench.device:
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    billions = sum(one.numel() for one in model.parameters()) / 1e9
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    bench.free()
    settings = modeldiff.HarvestSettings(
        model_a=str(folder), model_b=str(MODEL_B), texts=(str(_long_texts(bench.folder)),), pairs=size.harvest_pairs,
        shard_pairs=1 + size.harvest_pairs // _SHARDS, layer_a=size.layers - 2, dtype="bfloat16", device=str(bench.device),
    )  # fmt: skip
    with unheard() as parts, _blocks_timed(size.width, bench.device) as spans:
        made = modeldiff.run_harvest(settings, modeldiff.Workspace(bench.folder / "harvested"))
        bench.wait()
    # In the first shard libraries load and kernels compile.
    log = [json.loads(line) for line in (made.folder / "logs" / "capture.jsonl").read_text().splitlines()]
    later = [line for line in log if line["side"] == "a"][1:]
    note = f"{size.layers - 1} of {size.layers} blocks of width {size.width}, {billions:.1f} B parameters"
    for what in ("pairs", "tokens"):
        rate = sum(line[what] for line in later) / sum(line["seconds"] for line in later)
        bench.speed(f"capture, {what} after the first shard", rate, "/s", "bfloat16", note=note)
    end = max(end for _, end, what in parts if what == "capture A")
    later_spans = spans[len(spans) // _SHARDS :]
    busy = sum(_elapsed(first, last) for _, first, last in later_spans) / (end - later_spans[0][0])
    bench.speed("share of the capture in which the device works", busy, "", "bfloat16", least=BUSY)
    bench.speed("the whole harvest", made.manifest.seconds, "s", "bfloat16", note=f"{size.harvest_pairs} pairs, 2 sides")


@contextmanager
def _blocks_timed(width: int, device: torch.device) -> Iterator[list[tuple[float, Any, Any]]]:
    """Gives, of each pass through a block of a Llama of this width inside, when it was asked for, and marks of when it
    began and ended by the device's own clock (`_elapsed`)."""
    spans: list[tuple[float, Any, Any]] = []

    def mark() -> Any:
        if device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def before(module: torch.nn.Module, _args: Any) -> None:
        if isinstance(module, LlamaDecoderLayer) and module.hidden_size == width:
            module.asked_for = (time.monotonic(), mark())

    # The hooks of all modules come before one block's own, of which the last ends the pass.
    def after(module: torch.nn.Module, _args: Any, _output: Any) -> None:
        if isinstance(module, LlamaDecoderLayer) and module.hidden_size == width:
            spans.append((*module.asked_for, mark()))

    with register_module_forward_pre_hook(before), register_module_forward_hook(after):
        yield spans


def _elapsed(first: Any, last: Any) -> float:
    """Seconds between two marks."""
    return float(last - first if isinstance(first, float) else first.elapsed_time(last) / 1000)


def _long_texts(folder: Path) -> Path:
    """The probing texts, five in a document: about as long as the texts that are harvested elsewhere."""
    texts = [one["text"] for one in probing_documents()]
    joined = [{"text": "\n".join(texts[i : i + 5])} for i in range(0, len(texts), 5)]
    path = folder / "long.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in joined), encoding="utf-8")
    return path


def _seconds(bench: Bench, run: Callable[[], object], count: int) -> float:
    """Of so many runs, after one that does not count."""
    run()
    bench.wait()
    start = time.perf_counter()
    for _ in range(count):
        run()
    bench.wait()
    return time.perf_counter() - start


def _spent(parts: list[tuple[float, float, str]], *names: str) -> float:
    """Seconds during which work of these names was reported as under way, some of it at the same time."""
    spans = sorted((start, end) for start, end, what in parts if what.startswith(names))
    covered, total = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return max(1e-9, total)
