"""What it is worth that forbidden weights do not exist: a DFC's step against full storage with masked gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from modeldiff.crosscoder.training.trainer import Trainer
from tests.benchmarks.rows import Options, Row, against, interleaved
from tests.benchmarks.start import Sizes, Start, Step, make_start
from tests.benchmarks.step import ours_step

_SIZES = Sizes(width=512, features=8192, k=64, batch=2048)


def rows(options: Options) -> Iterator[Row]:
    yield _row(options, exclusive=0.3, target=1.25)
    yield _row(options, exclusive=0.05, target=0.95)


def _row(options: Options, exclusive: float, target: float) -> Row:
    sizes = replace(_SIZES, exclusive=exclusive)
    start = make_start(sizes, log_every=10**6)
    batches, steps = start.batches(), {"ours": ours_step(start), "masked": _masked_step(start)}
    # The only logged step of each is its first, in the round that warms up.
    timed = {name: lambda step=step: step(next(batches)) for name, step in steps.items()}
    return against("partitioned step against masks", interleaved(timed, options.rounds), "masked", target, str(sizes))


class _Masked(Trainer):
    """Clears the gradients of some rows before each step."""

    forbidden: dict[str, slice]

    def _gradient_norm(self) -> torch.Tensor:
        for name, rows in self.forbidden.items():
            gradient = self.crosscoder.get_parameter(name).grad
            assert gradient is not None
            gradient[rows] = 0
        return super()._gradient_norm()


def _masked_step(start: Start) -> Step:
    """A crosscoder that has all weights on both sides; those that the partition forbids are 0, and so are their
    gradients: Adam leaves them there."""
    n, width = start.n_exclusive, start.sizes.width
    crosscoder, recipe = make_start(replace(start.sizes, exclusive=0.0), log_every=10**6).crosscoder()
    forbidden = {"w_enc_a": slice(-n, None), "w_dec_a": slice(-n, None), "w_enc_b": slice(n), "w_dec_b": slice(n)}
    with torch.no_grad():
        crosscoder.b_enc.copy_(start.enc_bias_F)
        for side, columns in (("a", slice(width)), ("b", slice(width, None))):
            crosscoder.get_parameter(f"w_enc_{side}").copy_(start.enc_FD[:, columns])
            crosscoder.get_parameter(f"w_dec_{side}").copy_(start.dec_FD[:, columns])
    trainer = _Masked(crosscoder, recipe)
    trainer.forbidden = forbidden

    def step(x_B2d: torch.Tensor) -> None:
        trainer.update(x_B2d[:, 0], x_B2d[:, 1])

    step(next(start.batches()))
    for name, rows in forbidden.items():
        assert not crosscoder.get_parameter(name)[rows].any(), "a forbidden weight moved"
    return step
