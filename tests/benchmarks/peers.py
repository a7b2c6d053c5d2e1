"""One training step of each peer, from checkouts: `step(x)` does what its trainer does with one batch.

Every peer starts from the same weights and batches (start.py), late enough in its schedules that nothing is warming up:
k is constant, no feature is dead, thresholds are averaged. Each function answers with a step, or with the reason why
there is none.

Legend: B pairs, F features, D = 2 d the two models' widths together.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import torch

from tests.benchmarks.checkouts import load
from tests.benchmarks.start import Start, Step

FORK = "science-of-finetuning-dictionary_learning"
DFC = "superkaiba-dfc_learning"
SPARSIFY = "EleutherAI-sparsify"

# Both forks start to average their threshold after step 1000, and set the decoder's bias in step 0.
_FIRST_STEP = 2000


def fork_step(peers: Path | None, start: Start) -> Step | str:
    """`BatchTopKCrossCoderTrainer.update` of science-of-finetuning/dictionary_learning; every feature is shared."""
    return _forks_step(peers, FORK, "BatchTopKCrossCoder", {}, start, torch.arange(start.sizes.features))


def dfc_step(peers: Path | None, start: Start) -> Step | str:
    """The step of superkaiba/dfc_learning, with its crosscoder of exclusive partitions (A-only | B-only | shared)."""
    features, exclusive = start.sizes.features, start.n_exclusive
    a_only_F, shared_F, b_only_F = torch.arange(features).split([exclusive, features - 2 * exclusive, exclusive])
    order_F = torch.cat([a_only_F, b_only_F, shared_F])
    share = exclusive / features
    partition = {"model_a_exclusive_pct": share, "model_b_exclusive_pct": share}
    return _forks_step(peers, DFC, "DedicatedFeatureBatchTopKCrossCoder", partition, start, order_F)


def _forks_step(
    peers: Path | None, fork: str, kind: str, partition: dict[str, float], start: Start, order_F: torch.Tensor
) -> Step | str:
    """The forks' trainer over a crosscoder of some kind; its feature i is number `order_F[i]` of the start."""
    loaded = load(peers, fork, "dictionary_learning.trainers.crosscoder", "dictionary_learning.dictionary")
    if isinstance(loaded, str):
        return loaded
    trainers, dictionaries = loaded
    sizes = start.sizes
    trainer = trainers.BatchTopKCrossCoderTrainer(
        steps=1_000_000, activation_dim=sizes.width, dict_size=sizes.features, k=sizes.k, layer=0, lm_name="",
        dict_class=getattr(dictionaries, kind), dict_class_kwargs=partition, lr=start.lr, warmup_steps=0, device="cpu",
    )  # fmt: skip
    with torch.no_grad():
        # In place: the decoder's rows are not contiguous in the forks, and stay so.
        trainer.ae.encoder.weight.copy_(start.enc_FD[order_F].view(-1, 2, sizes.width).permute(1, 2, 0))
        trainer.ae.decoder.weight.copy_(start.dec_FD[order_F].view(-1, 2, sizes.width).permute(1, 0, 2))
        trainer.ae.encoder.bias.copy_(start.enc_bias_F)
    numbers = count(_FIRST_STEP)
    return lambda x_B2d: float(trainer.update(next(numbers), x_B2d))


def sparsify_step(peers: Path | None, start: Start) -> Step | str:
    """One TopK autoencoder on the two models' activations beside each other, with sparsify's fused encoder.

    The module and its methods are sparsify's; the loop around them is ours, in the order of `Trainer.fit`: unit
    decoder rows, forward, backward, gradients without their part along the rows, Adam and its schedule, counters. Its
    Adam is torch's, as there without bitsandbytes; logging is left out.
    """
    loaded = load(peers, SPARSIFY, "sparsify.sparse_coder", "sparsify.config")
    if isinstance(loaded, str):
        return loaded
    coders, configs = loaded
    sizes = start.sizes
    config = configs.SparseCoderConfig(num_latents=sizes.features, k=sizes.k)
    coder = coders.SparseCoder(2 * sizes.width, config, dtype=torch.float32)
    with torch.no_grad():
        coder.encoder.weight.copy_(start.enc_FD)
        coder.encoder.bias.copy_(start.enc_bias_F)
        coder.W_dec.copy_(start.dec_FD)
    optimizer = torch.optim.Adam(coder.parameters(), lr=start.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    since_fired_F = torch.zeros(sizes.features, dtype=torch.long)
    fired_F = torch.zeros(sizes.features, dtype=torch.bool)

    def step(x_B2d: torch.Tensor) -> float:
        x_BD = x_B2d.flatten(1)
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x=x_BD, y=x_BD)
        fired_F[out.latent_indices.flatten()] = True
        fvu = float(out.fvu.detach())
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        since_fired_F.add_(len(x_BD))
        since_fired_F[fired_F] = 0
        fired_F.zero_()
        return fvu

    return step
