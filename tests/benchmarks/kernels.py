"""Sums and products over bags of rows: on the CPU against the dense products of the same role, on a GPU Triton's
against torch's own, and against what the GPU's memory allows (the reckoning is in triton_bags.py).

Legend: K entries, B pairs, F features, D width.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from unittest.mock import patch

import torch

from modeldiff.crosscoder.fast.sparse import Bags, bag_dot, bag_sum
from tests.benchmarks.rows import Options, Row, interleaved, milliseconds, ratio

ROLES = ("decode", "weights' gradient", "codes' gradient")
TARGETS = dict(zip(ROLES, (10.0, 5.0, 5.0), strict=True))
# Seconds that an H100 needs at least, at the large size.
FLOORS = dict(zip(ROLES, (2.4e-3, 3.2e-3, 3.2e-3), strict=True))
LARGE = "131,072 features, 2048 pairs, width 8192, 409,600 entries"


@dataclass(frozen=True)
class Work:
    """Entries of a batch, both ways round, and the matrices that they point into."""

    pair_K: torch.Tensor
    feature_K: torch.Tensor
    code_K: torch.Tensor
    by_pair: Bags
    by_feature: Bags
    code_by_feature_K: torch.Tensor
    weight_FD: torch.Tensor
    pairs_BD: torch.Tensor

    def run(self, role: str) -> torch.Tensor:
        """One call of the kernels."""
        if role == "decode":
            return bag_sum(self.weight_FD, self.by_pair, self.code_K)
        if role == "weights' gradient":
            return bag_sum(self.pairs_BD, self.by_feature, self.code_by_feature_K)
        return bag_dot(self.weight_FD, self.pairs_BD, self.by_feature)


def rows(options: Options) -> Iterator[Row]:
    """The CPU's, then the GPU's."""
    yield from _against_dense(options)
    if not torch.cuda.is_available():
        yield from _skipped("no GPU")
    elif find_spec("triton") is None:
        yield from _skipped("triton is not installed")
    else:
        yield from _on_gpu(options)


def _against_dense(options: Options) -> Iterator[Row]:
    work = _work(features=8192, pairs=2048, width=512, k=64, device="cpu", uneven=False)
    code_BF = torch.zeros(2048, 8192).index_put_((work.pair_K, work.feature_K), work.code_K, accumulate=True)
    dense: dict[str, Callable[[], torch.Tensor]] = {
        "decode": lambda: code_BF @ work.weight_FD,
        "weights' gradient": lambda: code_BF.T @ work.pairs_BD,
        "codes' gradient": lambda: work.weight_FD @ work.pairs_BD.T,
    }
    for role in ROLES:
        seconds = interleaved({"dense": dense[role], "bags": lambda role=role: work.run(role)}, options.rounds)
        yield Row(
            f"CPU, {role}: x the dense product",
            ratio(seconds, "dense", "bags"),
            TARGETS[role],
            note=f"2048 x 8192 x 512, 131,072 entries: {milliseconds(seconds['bags'])}, "
            f"dense {milliseconds(seconds['dense'])}",
        )


def _skipped(why: str) -> Iterator[Row]:
    for role in ROLES:
        yield Row(f"GPU, {role}: Triton x torch's own", None, 1.0, note=why)
        yield Row(f"GPU, {role}: share of an H100's limit", None, 0.5, unit="", note=why)
    yield Row("GPU, entries ordered by feature", None, 1e-3, unit="s", at_least=False, note=why)


def _on_gpu(options: Options) -> Iterator[Row]:
    work = _work(features=131_072, pairs=2048, width=8192, k=200, device="cuda", uneven=True)
    for role in ROLES:
        triton, own = _gpu_run(work, role, "triton"), _gpu_run(work, role, "torch")
        apart = float((triton() - own()).abs().max())
        seconds = interleaved({"triton": triton, "torch": own}, options.rounds)
        took = statistics.median(seconds["triton"])
        note = f"{LARGE}: {milliseconds(seconds['triton'])}, torch {milliseconds(seconds['torch'])}"
        yield Row(
            f"GPU, {role}: Triton x torch's own",
            ratio(seconds, "torch", "triton"),
            1.0,
            note=f"{note}; apart by at most {apart:.1e}",
        )
        yield Row(f"GPU, {role}: share of an H100's limit", FLOORS[role] / took, 0.5, unit="", note=note)

    def order() -> None:
        _bags(work.feature_K, work.pair_K, 131_072)
        torch.cuda.synchronize()

    took = statistics.median(interleaved({"order": order}, options.rounds)["order"])
    yield Row("GPU, entries ordered by feature", took, 1e-3, unit="s", at_least=False, note=LARGE)


def _gpu_run(work: Work, role: str, kernels: str) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        with patch.dict(os.environ, MODELDIFF_KERNELS=kernels):
            out = work.run(role)
        torch.cuda.synchronize()
        return out

    return run


def _work(*, features: int, pairs: int, width: int, k: int, device: str, uneven: bool) -> Work:
    """Uneven: features fire by a power law, and eight of them on every pair."""
    random = torch.Generator(device).manual_seed(0)
    place_BK = torch.rand(pairs, k, generator=random, device=device)
    rank_BK = (features * (place_BK**2 if uneven else place_BK)).long().clamp_max(features - 1)
    if uneven:
        rank_BK[:, :8] = torch.arange(8, device=device)
    feature_K = torch.randperm(features, generator=random, device=device)[rank_BK].flatten()
    pair_K = torch.arange(pairs, device=device).repeat_interleave(k)
    code_K = torch.rand(pairs * k, generator=random, device=device)
    by_pair, _ = _bags(pair_K, feature_K, pairs)
    by_feature, order_K = _bags(feature_K, pair_K, features)
    return Work(
        pair_K,
        feature_K,
        code_K,
        by_pair,
        by_feature,
        code_K[order_K],
        torch.randn(features, width, generator=random, device=device),
        torch.randn(pairs, width, generator=random, device=device),
    )


def _bags(group_K: torch.Tensor, index_K: torch.Tensor, groups: int) -> tuple[Bags, torch.Tensor]:
    """Bags by group, and the order of the entries in them."""
    bag_K, order_K = torch.sort(group_K.int(), stable=True)
    # Not bincount: on a GPU that waits for the largest number.
    start_G1 = torch.searchsorted(bag_K, torch.arange(groups + 1, dtype=torch.int32, device=group_K.device))
    return Bags(index_K[order_K], bag_K.long(), start_G1), order_K
