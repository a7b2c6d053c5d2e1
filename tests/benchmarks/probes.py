"""Does another probe than the linear one tell exclusive features from others more sharply?

`modeldiff features` and the audits of `modeldiff train` read a feature off a model's activations by ridge regression. A
feature is not linear in its own model, though: it is a ReLU of something linear, and silent on most pairs. Four probes
are compared here, each fitted on the feature's own model and on the other one, on the same pairs, and measured on pairs
that none of them was fitted on:

    ridge     what the product uses: R² of a linear map
    logistic  does the feature fire at all? share of the deviance explained (1 - log loss / that of the firing rate)
    relu      the feature's own form, ReLU(w x + b), by gradient descent on the squared error: R²
    kernel    ridge regression on the activations and on 512 random ReLU features of them: R²

What counts is the ratio other / own, beside what shared features show that are read from one model alone: a feature is
called exclusive below half of their median, one of the product's two bars (crosscoder/verdict.py). With the known truth
of the toy worlds (plain DFC), T, S, N are exclusive features that recover a concept of their model alone, a shared one,
nothing:

    precision  of those that are called exclusive, the share of T
    recall     of T, the share that is called exclusive
    own        median of the score from the own model; ref. median: of the shared features' ratios, mean over cells
    AUC        chance that a T has a smaller ratio / median than an S ("T|S"), or than an S or N ("T|SN")

On a pair of models, rank is the feature's place in its partition by what lists are sorted by, gap x (1 - ratio), and
"of all" how many of the partition are called exclusive.

Both commands print one table (about five and three minutes on an idle core):

    python -m tests.benchmarks.probes toy
    python -m tests.benchmarks.probes pair --features 1011 1012 40   # in the folder where `modeldiff demo` was run

Legend: N pairs, B pairs of a step, D width, G features, K random features.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from modeldiff.console import progress
from modeldiff.crosscoder.audits.judging import read_alone, sample
from modeldiff.linear.ridge import Moments, held_out_r2, ridge_weights
from modeldiff.sides import EXCLUSIVE, OTHER, SIDES
from modeldiff.toy.cell import JUDGE, CellSpec, by_threshold, normalised_pairs, trained
from modeldiff.toy.plan import plan
from modeldiff.toy.recovery import COSINE
from modeldiff.toy.settings import ToySettings
from modeldiff.toy.world import A_ONLY, B_ONLY, SHARED, World

PROBES = ("ridge", "logistic", "relu", "kernel")
_KERNEL = 512
_LEAST_FIRINGS = 5
_NULL_QUANTILE = 0.95
_LAST = 1e6


@dataclass(frozen=True)
class Data:
    """Activations of one model (N, D) and features (N, G), fitted on and held out."""

    fit_x: torch.Tensor
    held_x: torch.Tensor
    fit_f: torch.Tensor
    held_f: torch.Tensor


def scores(probe: str, data: Data, *, steps: int, batch: int) -> torch.Tensor:
    """(G,) held-out share of the feature that the probe explains."""
    if probe == "ridge":
        return _ridge(data)
    if probe == "kernel":
        return _ridge(_with_random_features(data))
    return _by_descent(data, logistic=probe == "logistic", steps=steps, batch=batch)


def _ridge(data: Data) -> torch.Tensor:
    return held_out_r2(*_moments(data))


def _moments(data: Data) -> tuple[Moments, Moments]:
    parts = []
    for x_ND, f_NG in ((data.fit_x, data.fit_f), (data.held_x, data.held_f)):
        made = Moments.empty(x_ND.shape[1], f_NG.shape[1])
        for start in range(0, len(x_ND), 8192):
            made.add_dense(x_ND[start : start + 8192], f_NG[start : start + 8192])
        parts.append(made)
    return parts[0], parts[1]


def _whitened(data: Data) -> Data:
    """Inputs without their mean, uncorrelated and of variance 1 on the pairs that are fitted on."""
    mean_D = data.fit_x.mean(dim=0)
    covariance_DD = torch.cov(data.fit_x.T.double())
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    floor = 1e-4 * values_D.mean()
    white_DD = (vectors_DD / (values_D.clamp_min(0) + floor).sqrt()).float()
    return Data((data.fit_x - mean_D) @ white_DD, (data.held_x - mean_D) @ white_DD, data.fit_f, data.held_f)


def _with_random_features(data: Data) -> Data:
    """The inputs and ReLUs of random directions of them, with biases that leave each off on some of the pairs."""
    data = _whitened(data)
    random = torch.Generator().manual_seed(0)
    width = data.fit_x.shape[1]
    w_DK = torch.randn(width, _KERNEL, generator=random) / width**0.5
    b_K = torch.randn(_KERNEL, generator=random)
    fit_x, held_x = (torch.cat([x, torch.relu(x @ w_DK + b_K)], dim=1) for x in (data.fit_x, data.held_x))
    return Data(fit_x, held_x, data.fit_f, data.held_f)


def _by_descent(data: Data, *, logistic: bool, steps: int, batch: int) -> torch.Tensor:
    """Adam from the ridge solution, in whitened inputs, all features at once; the rate falls to 0."""
    data = _whitened(data)
    scale_G = data.fit_f.std(dim=0).clamp_min(1e-9)
    rate_G = (data.fit_f > 0).float().mean(dim=0).clamp(1e-6, 1 - 1e-6)
    start = ridge_weights(_moments(data)[0]).float() / scale_G
    w_DG = start.clone().requires_grad_()
    b_G = (torch.logit(rate_G) if logistic else data.fit_f.mean(dim=0) / scale_G).clone().requires_grad_()
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([w_DG, b_G], lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        rows = torch.randint(len(data.fit_x), (batch,), generator=random)
        y_BG, f_BG = data.fit_x[rows] @ w_DG + b_G, data.fit_f[rows]
        if logistic:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(y_BG, (f_BG > 0).float(), reduction="none")
        else:
            loss = (torch.relu(y_BG) - f_BG / scale_G).square()
        optimizer.zero_grad()
        loss.mean(dim=0).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        y_NG, f_NG = data.held_x @ w_DG + b_G, data.held_f
        if logistic:
            on_NG = (f_NG > 0).float()
            found_G = torch.nn.functional.binary_cross_entropy_with_logits(y_NG, on_NG, reduction="none").mean(dim=0)
            p_G = on_NG.mean(dim=0).clamp(1e-9, 1 - 1e-9)
            chance_G = -(p_G * p_G.log() + (1 - p_G) * (1 - p_G).log())
            return 1 - found_G / chance_G
        target_NG = f_NG / scale_G
        residual_G = (torch.relu(y_NG) - target_NG).square().sum(dim=0)
        return 1 - residual_G / (target_NG - target_NG.mean(dim=0)).square().sum(dim=0).clamp_min(1e-12)


@dataclass(frozen=True)
class Judged:
    """What one probe says about one side's features (G), and the scale."""

    own_G: np.ndarray
    other_G: np.ndarray
    median: float
    null: float

    @property
    def place_G(self) -> np.ndarray:
        """The ratio other / own in units of the references' median: below 0.5 is called exclusive. What cannot be read
        from its own model has no ratio, and comes last."""
        ratio_G = np.clip(self.other_G, 0, None) / np.maximum(self.own_G, 1e-6) / max(self.median, 1e-6)
        return np.where(self.own_G > self.null, ratio_G, _LAST)

    @property
    def called_G(self) -> np.ndarray:
        """Called exclusive, as in the product."""
        return (self.other_G <= np.maximum(0.5 * self.median * self.own_G, self.null)) & (self.own_G > self.null)


def judged(probe: str, own: Data, other: Data, references: int, null: float, *, steps: int, batch: int) -> Judged:
    """The last `references` features of both are shared ones, read from the owner alone."""
    own_G, other_G = (scores(probe, data, steps=steps, batch=batch).double().numpy() for data in (own, other))
    g = len(own_G) - references
    legible = own_G[g:] > 0.01
    ratio_R = other_G[g:][legible] / own_G[g:][legible]
    median = float(np.clip(np.median(ratio_R), 0, 1)) if legible.sum() >= 8 else 1.0
    return Judged(own_G[:g], other_G[:g], median, null)


def null_of(other: Data) -> float:
    """R² of the ridge regression that one feature in twenty reaches when the pairs are permuted; at least 0."""
    permuted = Data(other.fit_x.roll(997, dims=0), other.held_x.roll(997, dims=0), other.fit_f, other.held_f)
    return max(0.0, float(_ridge(permuted).nanquantile(_NULL_QUANTILE)))


# --- the toy worlds ---------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What a probe says about the exclusive features of some cells: their kinds (T, S, N) and places, and counts of
    each seed."""

    kinds: list[str] = field(default_factory=list)
    places: list[float] = field(default_factory=list)
    called: list[bool] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    owns: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)

    def row(self) -> list[str]:
        kinds, places, called, seeds = map(np.array, (self.kinds, self.places, self.called, self.seeds))
        true = kinds == "T"
        counts = "/".join(str(int((called & (kinds == kind)).sum())) for kind in "TSN")
        return [
            counts,
            _over_seeds(seeds, lambda of: (called & true & of).sum() / max(1, (called & of).sum()), called),
            _over_seeds(seeds, lambda of: (called & true & of).sum() / max(1, (true & of).sum()), true),
            _auc(true[true | (kinds == "S")], places[true | (kinds == "S")]),
            _auc(true, places),
            f"{np.median(self.owns):.2f}",
            f"{fmean(self.medians):.2f}",
        ]


def _over_seeds(seeds: np.ndarray, share: Callable[[np.ndarray], float], counted: np.ndarray) -> str:
    """Mean and standard error of a share over the seeds in which anything is counted."""
    values = [float(share(seeds == seed)) for seed in np.unique(seeds) if (counted & (seeds == seed)).any()]
    if not values:
        return "-"
    error = f"±{stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{error}"


def _auc(true: np.ndarray, places: np.ndarray) -> str:
    return f"{roc_auc_score(true, -places):.3f}" if 0 < true.sum() < len(true) else "-"


@torch.no_grad()
def kinds_of(world: World, rows_GD: torch.Tensor, side: str) -> list[str]:
    """T, S or N for decoders of a side's exclusive features."""

    def hits(number: int) -> torch.Tensor:
        concepts_CD = world.directions[side][world.classes_C == number]
        concepts_CD = concepts_CD / concepts_CD.norm(dim=1, keepdim=True)
        unit_GD = rows_GD / rows_GD.norm(dim=1, keepdim=True).clamp_min(1e-9)
        return (unit_GD @ concepts_CD.T > COSINE).any(dim=1)

    own, shared = hits(A_ONLY if side == "a" else B_ONLY), hits(SHARED)
    return ["T" if t else "S" if s else "N" for t, s in zip(own.tolist(), shared.tolist(), strict=True)]


def toy(arguments: argparse.Namespace) -> list[list[str]]:
    """One row per size and probe."""
    settings = ToySettings(
        preset="laptop",
        architectures=("dfc",),
        map=tuple(arguments.maps),
        sizes=tuple(arguments.sizes),
        seeds=arguments.seeds,
        steps=arguments.steps,
        tables=("sizes",),
    ).filled()
    tallies: dict[tuple[float, str], Tally] = {}
    planned = plan(settings, "cpu")
    with progress("probes", len(planned), "cells") as bar:
        for one in planned:
            _add_cell(one.cell, one.size, tallies, arguments.pairs)
            bar.advance()
    return [
        ["size", "probe", "called T/S/N", "precision", "recall", "AUC T|S", "AUC T|SN", "own", "ref. median"],
        *([f"{100 * size:.3g}%", probe, *tally.row()] for (size, probe), tally in tallies.items()),
    ]


def _add_cell(cell: CellSpec, size: float, tallies: dict[tuple[float, str], Tally], pairs: int) -> None:
    world = World.drawn(cell.world, cell.seed)
    crosscoder = trained(cell, world, cell.recipe, torch.device("cpu"), lambda _: None)
    drawn = normalised_pairs(cell, world, crosscoder, None, JUDGE, torch.device("cpu"))
    batches = [drawn() for _ in range(-(-pairs // 2048))]
    sampled = sample(crosscoder, batches, by_threshold(crosscoder))
    for side in SIDES:
        own = crosscoder.slices[EXCLUSIVE[side]]
        numbers = sampled.judged[side]
        inside_G = (numbers >= own.start) & (numbers < own.stop)
        f_NG = torch.cat(sampled.codes[side])[:, inside_G]
        references_NR = torch.cat(read_alone(crosscoder, sampled, side)).detach()
        half = len(f_NG) // 2
        fires_G = torch.minimum((f_NG[:half] > 0).sum(dim=0), (f_NG[half:] > 0).sum(dim=0))
        known_G = fires_G >= _LEAST_FIRINGS
        decoder = crosscoder.w_dec_a if side == "a" else crosscoder.w_dec_b
        rows_GD = decoder.detach()[numbers[inside_G] - crosscoder.sees(side).start][known_G]
        if not len(rows_GD):
            continue
        targets = torch.cat([f_NG[:, known_G], references_NR], dim=1)
        data = {}
        for explains in SIDES:
            x_ND = torch.cat(sampled.x(explains))
            data[explains] = Data(x_ND[:half], x_ND[half:], targets[:half], targets[half:])
        kinds, null = kinds_of(world, rows_GD, side), null_of(data[OTHER[side]])
        for probe in PROBES:
            found = judged(probe, data[side], data[OTHER[side]], references_NR.shape[1], null, steps=400, batch=2048)
            tally = tallies.setdefault((size, probe), Tally())
            tally.kinds += kinds
            tally.places += found.place_G.tolist()
            tally.called += found.called_G.tolist()
            tally.owns += found.own_G.tolist()
            tally.seeds += [cell.seed] * len(kinds)
            tally.medians.append(found.median)


# --- a pair of language models ----------------------------------------------------------------------------------------


def pair(arguments: argparse.Namespace) -> list[list[str]]:
    """One row per side, feature and probe; the features asked for, and how the whole partition falls."""
    from scipy import sparse

    from modeldiff.features.codes import CodeSample, Encoder
    from modeldiff.features.evidence import read_alone as read_from_one
    from modeldiff.features.evidence import reference_features, reference_readers
    from modeldiff.features.inputs import open_measured, outlier_factor_of
    from modeldiff.features.predictability import activations_of
    from modeldiff.linear.verdict import evidence_score
    from modeldiff.splits import split
    from modeldiff.workspace import Workspace

    measured = open_measured(Workspace(arguments.workspace), arguments.crosscoder, None, what="probes")
    crosscoder, store = measured.crosscoder, measured.store
    encoder = Encoder(crosscoder, store, torch.device("cpu"), outlier_factor_of(measured.source, None))
    codes, rows = [], []
    for block in store.blocks(4096):
        one, kept_B = encoder.sparse(block)
        shape = (len(block), crosscoder.n_features)
        codes.append(sparse.csr_matrix((one.value, (one.row, one.feature)), shape=shape)[kept_B])
        rows.append(store.first_row[block.shard] + block.start + np.flatnonzero(kept_B))
    taken = CodeSample(sparse.vstack(codes, format="csr"), np.concatenate(rows))
    part_N = split(store, store.blocks(4096)).part_of(taken.rows_N)
    taken = CodeSample(taken.codes_NF[part_N >= 0], taken.rows_N[part_N >= 0])
    held = torch.from_numpy(part_N[part_N >= 0] > 0)
    reference_R = reference_features(crosscoder, taken)
    reference_R = reference_R[:: max(1, len(reference_R) // arguments.references)]
    x = {side: torch.cat([part.float() for _, part in activations_of(store, side, taken.rows_N)]) for side in SIDES}
    table = [
        ["model", "probe", "feature", "own", "other", "ratio", "/ median", "ref. median", "called", "of all", "rank"]
    ]
    for side in SIDES:
        own = crosscoder.slices[EXCLUSIVE[side]]
        readers = reference_readers(crosscoder, taken, reference_R, side)
        alone = read_from_one(crosscoder, store, taken, readers, side)
        exclusive = np.arange(own.start, own.stop)
        fires = np.diff(taken.codes_NF[:, exclusive].tocsc().indptr)
        exclusive = exclusive[fires >= 50]
        targets = torch.from_numpy(sparse.hstack([taken.codes_NF[:, exclusive], alone]).toarray())
        data = {s: Data(x[s][~held], x[s][held], targets[~held], targets[held]) for s in SIDES}
        null = null_of(data[OTHER[side]])
        for probe in PROBES:
            found = judged(probe, data[side], data[OTHER[side]], len(reference_R), null, steps=1500, batch=4096)
            score_G = evidence_score(found.own_G, found.other_G)
            wanted = [n for n, feature in enumerate(exclusive) if feature in arguments.features]
            for n in wanted:
                own_r2, other_r2 = found.own_G[n], found.other_G[n]
                table.append(
                    [
                        EXCLUSIVE[side], probe, str(exclusive[n]), f"{own_r2:.2f}", f"{other_r2:.2f}",
                        f"{other_r2 / own_r2:.2f}", f"{found.place_G[n]:.2f}", f"{found.median:.2f}",
                        "excl." if found.called_G[n] else "-", f"{found.called_G.sum()}/{len(exclusive)}",
                        str(1 + int((score_G > score_G[n]).sum())),
                    ]
                )  # fmt: skip
    return table


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))  # noqa: T201


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for_toy = commands.add_parser("toy", help="worlds whose truth is known")
    for_toy.add_argument("--maps", nargs="+", default=["gaussian", "mixed:0.7"])
    for_toy.add_argument("--sizes", nargs="+", type=float, default=[0.2, 0.5, 1.0])
    for_toy.add_argument("--seeds", type=int, default=5)
    for_toy.add_argument("--steps", type=int, default=800, help="of the dictionary's training (1500 in `laptop`)")
    for_toy.add_argument("--pairs", type=int, default=32_768, help="half to fit the probes on, half held out")
    for_pair = commands.add_parser("pair", help="a crosscoder of a workspace")
    for_pair.add_argument("--workspace", type=Path, default=Path("modeldiff-workspace"))
    for_pair.add_argument("--crosscoder", help="the latest if left out")
    for_pair.add_argument("--features", nargs="+", type=int, required=True, help="exclusive features to print")
    for_pair.add_argument("--references", type=int, default=64, help="shared features read from one model")
    arguments = parser.parse_args()
    print_table(toy(arguments) if arguments.command == "toy" else pair(arguments))


if __name__ == "__main__":
    main()
