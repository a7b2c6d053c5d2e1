"""A training step beside those of the peers, at equal sizes, weights and batches.

The forks and the dense baseline compute the same function as ours: their losses are compared with it, at the start and
after all steps. sparsify keeps the k largest of each pair instead of the k B largest of the batch, an easier selection.

Legend: B pairs, F features, d width of one model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from modeldiff.crosscoder.training.trainer import Trainer
from tests.benchmarks.dense import dense_step
from tests.benchmarks.peers import dfc_step, fork_step, sparsify_step
from tests.benchmarks.rows import Options, Row, against, interleaved
from tests.benchmarks.start import Sizes, Start, Step, make_start

_PUBLIC = Sizes(width=512, features=8192, k=64, batch=2048)
_PUBLIC_DFC = Sizes(width=512, features=8192, k=64, batch=2048, exclusive=0.05)
_TOY = Sizes(width=32, features=256, k=8, batch=512)
_TOY_REPEATS = 20
_SAME_LOSS = 1e-4


def rows(options: Options) -> Iterator[Row]:
    rounds, checkouts = options.rounds, options.peers
    start = make_start(_PUBLIC, log_every=_steps(rounds))
    peers: dict[str, Step | str] = {
        "fork": fork_step(checkouts, start),
        "dense": dense_step(start),
        "sparsify": sparsify_step(checkouts, start),
    }
    race = _run(start, peers, rounds, others={"encode": _encode_product(start)})
    yield race.row("training step against the fork", "fork", 5)
    yield race.row("training step against clean dense PyTorch", "dense", 4)
    yield race.row("training step against sparsify's TopK", "sparsify", 1.8)
    yield replace(race.row("share of the encoder's product in the training step", "encode", 0.6), unit="")

    start = make_start(_PUBLIC_DFC, log_every=_steps(rounds))
    race = _run(start, {"dfc_learning": dfc_step(checkouts, start)}, rounds)
    yield race.row("training step of a DFC against dfc_learning", "dfc_learning", 5)

    start = make_start(_TOY, log_every=_steps(rounds, _TOY_REPEATS))
    race = _run(start, {"fork": fork_step(checkouts, start)}, rounds, repeats=_TOY_REPEATS)
    yield race.row("training step of toy size against the fork", "fork", 2.5)


def ours_step(start: Start) -> Step:
    """`Trainer.update`."""
    trainer = Trainer(*start.crosscoder())

    def step(x_B2d: torch.Tensor) -> float | None:
        line = trainer.update(x_B2d[:, 0], x_B2d[:, 1])
        assert trainer.left_out == 0, "pairs were left out as outliers: the work is not the same"
        return None if line is None else line["loss"]

    return step


def _encode_product(start: Start) -> Step:
    """The matrix product of the encoder alone, both models in one, into memory that is there."""
    pre_BF = torch.empty(start.sizes.batch, start.sizes.features)

    def product(x_B2d: torch.Tensor) -> None:
        torch.mm(x_B2d.flatten(1), start.enc_FD.T, out=pre_BF)

    return product


@dataclass(frozen=True)
class Race:
    """Wall seconds of one step of every variant, in every round; why others did not run; what their losses say."""

    sizes: Sizes
    seconds: dict[str, list[float]]
    reasons: dict[str, str]
    losses: dict[str, str]

    def row(self, what: str, other: str, target: float) -> Row:
        """One variant against ours."""
        if other in self.reasons:
            return Row(what, None, target, note=self.reasons[other])
        notes = filter(None, (str(self.sizes), self.losses.get(other)))
        return against(what, self.seconds, other, target, *notes)


def _steps(rounds: int, repeats: int = 1) -> int:
    """Steps of each variant before the last one: one, a round to warm up, and the rounds."""
    return 1 + repeats * (1 + rounds)


def _run(
    start: Start, peers: Mapping[str, Step | str], rounds: int, *, repeats: int = 1, others: Mapping[str, Step] = {}
) -> Race:
    """Time the peers' steps and ours, `repeats` at a time, and beside them `others`, which have no loss. Raises
    RuntimeError: the forks or the dense baseline do not compute the same function as ours."""
    reasons = {name: step for name, step in peers.items() if isinstance(step, str)}
    steps = {"ours": ours_step(start), **{name: step for name, step in peers.items() if not isinstance(step, str)}}
    batches = {name: start.batches() for name in (*steps, *others)}
    first = {name: step(next(batches[name])) for name, step in steps.items()}

    def repeated(name: str, step: Step) -> Callable[[], None]:
        def run() -> None:
            for _ in range(repeats):
                step(next(batches[name]))

        return run

    taken = interleaved({name: repeated(name, step) for name, step in {**steps, **others}.items()}, rounds)
    seconds = {name: [value / repeats for value in values] for name, values in taken.items()}
    last = {name: step(next(batches[name])) for name, step in steps.items()}
    losses = {}
    for name in steps.keys() - {"ours", "sparsify"}:
        apart = [abs(loss[name] / loss["ours"] - 1) for loss in (first, last)]
        if apart[0] > _SAME_LOSS:
            raise RuntimeError(f"{name} has another loss than ours: {first}")
        losses[name] = f"losses apart: {apart[0]:.0e} at first, {apart[1]:.0e} after {_steps(rounds, repeats)} steps"
    return Race(start.sizes, seconds, reasons, losses)
