"""How fast pairs go through: the features stage, evidence, evaluation, harvest, and from a store to the device."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import modeldiff
from modeldiff.console import unheard
from modeldiff.crosscoder.fast.inference import ActiveEntries
from modeldiff.crosscoder.training.data import PairStream
from modeldiff.crosscoder.training.evaluation import evaluate
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_B
from modeldiff.workspace.activations import ActivationStore
from tests.benchmarks.gpu.harness import Bench
from tests.benchmarks.gpu.speed import started
from tests.features.made_crosscoder import publish, words_of
from tests.made_activations import make_activations

# Of a capture of an 8B model: what the project wants.
BUSY = 0.9
# Batches of the store that all passes read, its documents, its half.
BATCHES, WORDS, BUFFER = 16, 128, 256 << 20
# Shards of a harvest: the first, in which libraries load, is left out of what is measured.
SHARDS = 12


def codes(bench: Bench) -> None:
    """The active entries of pairs at the paper's size, with which the features pass begins, against training."""
    crosscoder, _, batches = started(bench, bench.sizes.paper, "float32", count=1)
    finder = ActiveEntries(crosscoder)
    took = median(bench.timed(lambda: finder.of(*batches[0]), 7, warm_up=2))
    rate = 1000 * bench.sizes.paper.batch / took
    bench.speed("pairs whose active entries are found", rate, "/s", note=str(bench.sizes.paper))
    if "pairs/s" in bench.found:
        bench.speed("... against those trained on", rate / bench.found["pairs/s"], "x", least=1)


def features(bench: Bench) -> None:
    """The features stage against an epoch of training on the same store, and what either begins or ends with."""
    size, device = bench.sizes.middle, str(bench.device)
    crosscoder, recipe, batches = started(bench, size, count=BATCHES)
    x_a, x_b = (torch.cat(parts).cpu() for parts in zip(*batches, strict=True))
    del batches
    workspace, texts = modeldiff.Workspace(bench.folder / "middle"), words_of(len(x_a), WORDS)
    with unheard():
        activations = make_activations(workspace, x_a, x_b, len(x_a) // 2, texts, encoding="bfloat16")
        publish(workspace, crosscoder, activations)
    store = ActivationStore(activations)
    blocks, options = store.blocks(2048), {"batch": size.batch, "seed": 0, "buffer_bytes": BUFFER}
    trainer, seconds = Trainer(crosscoder, recipe, warn=False), dict[str, float]()
    for title, use in (("from the store to the device", lambda *_: None), ("training", trainer.update)):
        with bench.guarded(title), closing(PairStream(store, blocks, device=device, **options).batches()) as stream:
            use(*next(stream))
            seconds[title] = sum(bench.timed(lambda: use(*next(stream)), BATCHES)) / 1000  # noqa: B023
            rate = len(x_a) / seconds[title]
            bench.speed(title, rate, "pairs/s", "bfloat16", note=f"shuffled; {size}")
            if use is not trainer.update:
                bench.speed("... that is", rate * store.pair_bytes / 1e9, "GB/s")
    with bench.guarded("features"), unheard() as spans:
        settings = modeldiff.FeaturesSettings(device=device, sample_pairs=max(100, len(x_a) // 2))
        made = modeldiff.run_features(settings, workspace)
        took = {
            name: sum(one.end - one.start for one in spans if name in one.what) for name in ("pass", "read", "pred")
        }
        bench.speed("the features pass", len(x_a) / took["pass"], "pairs/s", note="as shipped")
        bench.speed("... against an epoch of training", seconds["training"] / took["pass"], "x", least=1)
        bench.speed("evidence", took["read"] + took["pred"], "s", note=f"of {len(x_a) // 2} pairs")
        bench.speed("the whole features stage", made.manifest.seconds, "s", note=f"{len(x_a)} pairs with texts")
    held_out = list(islice(blocks, 4))
    took_ms = median(bench.timed(lambda: evaluate(crosscoder, store, held_out, 2.0), 3, warm_up=1))
    bench.speed("evaluation after training", 1000 * sum(map(len, held_out)) / took_ms, "pairs/s", "bfloat16")


def harvest(bench: Bench) -> None:
    """A harvest of a Llama of random weights: how fast, and for which share of a capture the device works."""
    folder, size, width = bench.folder / "llama", bench.sizes, bench.sizes.paper.width
    tokenizer = AutoTokenizer.from_pretrained(MODEL_B)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=7 * width // 2, num_hidden_layers=size.layers,
        num_attention_heads=max(1, width // 128), num_key_value_heads=max(1, width // 512),
        max_position_embeddings=2048,
    )  # fmt: skip
    with bench.device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    note = f"{size.layers - 1} blocks of width {width}; {sum(one.numel() for one in model.parameters()) / 1e9:.1f} B"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    bench.free()
    settings = modeldiff.HarvestSettings(
        model_a=str(folder), model_b=str(MODEL_B), texts=(str(write_probing_corpus(bench.folder / "probing.jsonl")),),
        pairs=size.harvest_pairs, shard_pairs=1 + size.harvest_pairs // SHARDS, layer_a=size.layers - 2,
        dtype="bfloat16", device=str(bench.device),
    )  # fmt: skip
    with unheard() as parts, _blocks_timed(width, bench.device) as spans:
        made = modeldiff.run_harvest(settings, modeldiff.Workspace(bench.folder / "harvested"))
        bench.wait()
    log = [json.loads(line) for line in (made.folder / "logs" / "capture.jsonl").read_text().splitlines()]
    later = [line for line in log if line["side"] == "a"][1:]
    for what in ("pairs", "tokens"):
        rate = sum(line[what] for line in later) / sum(line["seconds"] for line in later)
        bench.speed(f"capture, {what}", rate, "/s", "bfloat16", note=note)
    end = max(one.end for one in parts if one.what == "capture A")
    spans = spans[len(spans) // SHARDS :]
    busy = sum(
        last - first if isinstance(first, float) else first.elapsed_time(last) / 1000 for _, first, last in spans
    )
    bench.speed(
        "share of the capture in which the device works", busy / (end - spans[0][0]), "", "bfloat16", least=BUSY
    )
    bench.speed(
        "the whole harvest", made.manifest.seconds, "s", "bfloat16", note=f"{size.harvest_pairs} pairs, 2 sides"
    )


@contextmanager
def _blocks_timed(width: int, device: torch.device) -> Iterator[list[tuple[float, Any, Any]]]:
    """Gives, of each pass inside through a block of a Llama of this width, when it was asked for, and when it began and
    ended by the device's own clock."""
    spans: list[tuple[float, Any, Any]] = []

    def mark() -> Any:
        if device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def before(module: Any, _args: Any) -> None:
        if isinstance(module, LlamaDecoderLayer) and module.hidden_size == width:
            module.asked_for = (time.monotonic(), mark())

    # The hooks of all modules come before one block's own, of which the last ends the pass.
    def after(module: Any, _args: Any, _output: Any) -> None:
        if isinstance(module, LlamaDecoderLayer) and module.hidden_size == width:
            spans.append((*module.asked_for, mark()))

    with register_module_forward_pre_hook(before), register_module_forward_hook(after):
        yield spans
