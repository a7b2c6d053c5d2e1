"""Harvest: reading a middle layer, and batches by length.

Random weights, fp32, on the processor. Every variant must give the same activations as ours before it is timed.

Legend: B sequences, T tokens, D width, N pairs, R rows of a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from modeldiff.harvest import capture
from modeldiff.lm.batches import padded
from modeldiff.lm.model import LanguageModel, hidden_of
from modeldiff.lm.ref import ModelRef
from modeldiff.lm.residual import residual_after
from modeldiff.workspace.plan import Document, PairTable, ShardPlan, Tokens
from tests.benchmarks.rows import Options, Row, against, interleaved
from tests.tiny_models import tiny_tokenizer

# After six of twelve blocks. What can be gained follows from the sizes: a whole pass has 2.9 times (Llama) and 3.4
# times (GPT-2) the multiplications of six blocks.
WIDTH, LAYERS, LAYER = 512, 12, 5
TEXTS, TOKENS = 8, 128
# Arrival order: what a plain loop over a data set does.
BATCH_TEXTS, MANY_TEXTS = 16, 96
CLOSE = 1e-5
# A round of the whole of MANY_TEXTS takes half a minute.
LONG_ROUNDS = 5


def rows(options: Options) -> Iterator[Row]:
    for arch in CONFIGS:
        yield from _one_layer(arch, options)
    yield from _batching("Llama", options)


def _one_layer(arch: str, options: Options) -> Iterator[Row]:
    lm = language_model(arch)
    plan = made_plan([TOKENS] * TEXTS, lm.vocabulary)
    ids_BT, mask_BT = batch_of(plan.documents)
    short = cut_at(lm, LAYER)

    @torch.inference_mode()
    def all_states() -> Tensor:
        output = lm.model(input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True)
        states: Tensor = output.hidden_states[LAYER + 1]
        return states.flatten(0, 1)

    variants: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: captured(lm, plan)[0],
        "all states": all_states,
        "cut": lambda: last_block(short, ids_BT, mask_BT),
    }
    same({name: run() for name, run in variants.items()})
    seconds = interleaved(variants, options.rounds)
    what = f"harvest: after {LAYER + 1} of {LAYERS} blocks, {arch}-like {WIDTH} wide, V {lm.vocabulary}"
    sizes = f"{TEXTS} x {TOKENS} tokens"
    yield against(f"{what}: against output_hidden_states=True", seconds, "all states", 2.8, sizes)
    yield against(f"{what}: against the model cut there", seconds, "cut", 0.95, sizes)


def _batching(arch: str, options: Options) -> Iterator[Row]:
    lm = language_model(arch)
    lengths = lognormal_lengths(MANY_TEXTS)
    plan = made_plan(lengths, lm.vocabulary)
    variants = {"ours": lambda: captured(lm, plan), "arrival": lambda: in_arrival_order(lm, plan)}
    found = {name: run() for name, run in variants.items()}
    same({name: x_ND for name, (x_ND, _) in found.items()})
    seconds = interleaved(variants, min(options.rounds, LONG_ROUNDS))
    what = f"harvest: batches by length, {arch}-like"
    sizes = f"{MANY_TEXTS} texts of {min(lengths)}..{max(lengths)} tokens, lognormal"
    yield against(f"{what}, against arrival order, {BATCH_TEXTS} texts a batch", seconds, "arrival", 2.2, sizes)
    ours, arrival = (1 - sum(lengths) / read for _, read in found.values())
    yield Row(f"{what}, share of padding", ours, 0.25, unit="", at_least=False, note=f"in arrival order {arrival:.2f}")


def captured(lm: LanguageModel, plan: ShardPlan) -> tuple[Tensor, int]:
    """(x (N, D), tokens read, padding included): what the harvest does."""
    parts = list(capture.captured(lm, capture.Capture("a", LAYER, "float32", None, ["made"]), [plan]))
    return torch.cat([rows.x_ND for rows, _ in parts]), sum(read for _, read in parts)


def in_arrival_order(lm: LanguageModel, plan: ShardPlan) -> tuple[Tensor, int]:
    """The same, text after text, each batch padded to its longest one; every token of the plan must be a pair."""
    found, read = [], 0
    for start in range(0, len(plan.documents), BATCH_TEXTS):
        ids_BT, mask_BT = batch_of(plan.documents[start : start + BATCH_TEXTS])
        found.append(residual_after(lm, LAYER, ids_BT, mask_BT)[mask_BT.bool()])
        read += ids_BT.numel()
    return torch.cat(found), read


def batch_of(documents: Sequence[Document]) -> tuple[Tensor, Tensor]:
    """(ids (B, T), mask (B, T)) of side "a"."""
    return padded([torch.from_numpy(one.tokens["a"].ids).long() for one in documents])


def cut_at(lm: LanguageModel, layer: int) -> LanguageModel:
    """A copy of the model without the blocks after `layer`."""
    model = copy.deepcopy(lm.model)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == lm.n_layers:
            model.set_submodule(name, nn.ModuleList(list(module)[: layer + 1]))
            break
    model.config.num_hidden_layers = layer + 1
    return LanguageModel(model, lm.tokenizer, lm.ref)


@torch.inference_mode()
def last_block(lm: LanguageModel, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B * T, D): what the last block gives, in a pass of the body to its end."""
    seen: list[Tensor] = []
    handle = lm.blocks[-1].register_forward_hook(lambda _module, _args, output: seen.append(hidden_of(output)))
    try:
        lm.body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    finally:
        handle.remove()
    return seen[0].flatten(0, 1)


def same(found: dict[str, Tensor]) -> None:
    """Raise unless all variants gave the same rows, within CLOSE of the largest value."""
    ours = found["ours"]
    for name, x_ND in found.items():
        gap = ((x_ND - ours).abs().max() / ours.abs().max()).item()
        if not gap <= CLOSE:
            raise RuntimeError(f"'{name}' gives other activations than ours: they differ by {gap:.1e} of the largest")


def lognormal_lengths(count: int, *, seed: int = 0) -> list[int]:
    """Lengths of texts between 8 and 512 tokens."""
    drawn = np.random.default_rng(seed).lognormal(mean=4.4, sigma=1.0, size=count)
    return np.clip(drawn, 8, 512).astype(int).tolist()


def made_plan(lengths: list[int], vocabulary: int) -> ShardPlan:
    """Texts of random tokens for side "a"; every token is a pair."""
    rng = np.random.default_rng(1)
    documents = []
    for index, length in enumerate(lengths):
        place = np.arange(length, dtype=np.int32)
        ids = rng.integers(3, vocabulary, length).astype(np.int32)
        documents.append(Document("", 0, index, {"a": Tokens(ids, place, place + 1)}))
    place_N = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    document_N = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return ShardPlan(documents, PairTable(document_N, {"a": place_N}, place_N + 1, {"a": np.ones_like(place_N)}))


CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "Llama": transformers.LlamaConfig(
        vocab_size=32000, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8, num_key_value_heads=8,
        intermediate_size=1376, max_position_embeddings=1024,
    ),
    "GPT-2": transformers.GPT2Config(vocab_size=50257, n_embd=WIDTH, n_layer=LAYERS, n_head=8, n_positions=1024),
}  # fmt: skip


def language_model(arch: str) -> LanguageModel:
    """A model of one of CONFIGS with random weights; its tokenizer is not used."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[arch], dtype=torch.float32)
    return LanguageModel(model, tiny_tokenizer(), ModelRef(f"{arch}-like"))
