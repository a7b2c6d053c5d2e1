"""Is the fast path the same function? Its gradients and losses against the dense formula with autograd.

Legend: B pairs, d width of one model.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.fast.coarse import CoarseScores
from modeldiff.crosscoder.fast.forward import DenseForward, Forward, Pass, Select, SparseForward
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.data import PairStream, split
from modeldiff.crosscoder.training.recipe import Recipe, initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.ranks import Ranks
from tests.benchmarks.rows import Options, Row
from tests.benchmarks.start import Sizes, make_start

_SIZES = Sizes(width=512, features=8192, k=64, batch=2048)
_STEPS, _PAIRS = 200, 20_000


def rows(options: Options) -> Iterator[Row]:
    """All rows."""
    for coarse in (False, True):
        which = ", screened" if coarse else ""
        yield Row(
            f"gradients against autograd on the dense path{which}", _gradients(coarse), 1e-5, "", at_least=False,
            note=f"largest relative distance of a parameter's gradient; {_SIZES}",
        )  # fmt: skip
    store = _bundled_pair(options)
    worst, swapped, kept = _losses(store)
    yield Row(
        f"losses against the dense path over {_STEPS} steps", worst, 1e-3, "", at_least=False,
        note="largest relative distance; the demo's recipe on the bundled pair",
    )  # fmt: skip
    yield Row(
        "entries that the bf16 screen keeps and float32 does not", swapped, 0, "", at_least=False,
        note=f"of {kept:,}, in the same {_STEPS} steps; equal to the last bit but one do not count",
    )  # fmt: skip


def _gradients(coarse: bool) -> float:
    start = make_start(_SIZES, log_every=1)
    sparse, dense = (Trainer(*start.crosscoder(), forward=forward) for forward in (None, DenseForward()))
    sparse.crosscoder.coarse = coarse
    x_B2d = next(start.batches())
    for trainer in (sparse, dense):
        trainer.update(x_B2d[:, 0], x_B2d[:, 1])
    apart = []
    for found, expected in zip(sparse.crosscoder.parameters(), dense.crosscoder.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        apart.append(float((found.grad - expected.grad).norm() / expected.grad.norm()))
    return max(apart)


def _bundled_pair(options: Options) -> ActivationStore:
    texts = options.folder / "texts.jsonl"
    write_probing_corpus(texts)
    settings = HarvestSettings(model_a=str(MODEL_A), model_b=str(MODEL_B), texts=(str(texts),), pairs=_PAIRS)
    return ActivationStore(run_harvest(settings, Workspace(options.folder / "w")))


def _losses(store: ActivationStore) -> tuple[float, int, int]:
    """(Largest relative distance of losses, entries that the screen keeps instead of others, kept entries in all)."""
    settings = TrainSettings(features=1024, k=16, steps=_STEPS, log_every=1, device="cpu")
    blocks, _ = split(store, settings.holdout)
    recipe = make_recipe(settings, widths=store.widths, pairs=sum(len(block) for block in blocks))
    sides = store.info.sides
    norms = (sides["a"].median_norm, sides["b"].median_norm)
    config = initial_config(settings, recipe, widths=store.widths, median_norms=norms)
    screen = _Screen()
    sparse, dense = (_trainer(store, config, recipe, one) for one in (screen, DenseForward()))
    stream = PairStream(store, blocks, batch=recipe.batch, seed=0, buffer_bytes=1 << 28)
    worst = 0.0
    for _, (x_a, x_b) in zip(range(_STEPS), stream.batches(), strict=False):
        found, expected = sparse.update(x_a, x_b), dense.update(x_a, x_b)
        assert found is not None
        assert expected is not None
        worst = max(worst, abs(found["loss"] / expected["loss"] - 1))
    return worst, screen.swapped, screen.kept


class _Screen(SparseForward):
    """The sparse path; beside each selection in float32, the screened one from the same weights."""

    def __init__(self) -> None:
        super().__init__(
            Shards(Ranks(), CrosscoderConfig(width_a=1, width_b=1, n_a_only=0, n_shared=1, n_b_only=0, k=1))
        )
        self.swapped = self.kept = 0

    def __call__(self, crosscoder: Crosscoder, x_a: torch.Tensor, x_b: torch.Tensor, select: Select) -> Pass:
        done = super().__call__(crosscoder, x_a, x_b, select)
        room_BF = torch.empty(len(x_a), crosscoder.n_features, dtype=torch.bfloat16)
        with torch.no_grad():
            screened_K, _ = select(CoarseScores(crosscoder, x_a, x_b, room_BF))
            mask_BF = done.kept.dense(torch.ones(len(done.f_K))).view(-1)
            other_K = screened_K[mask_BF[screened_K] == 0]
            pre_K = crosscoder.pre_activations(x_a, x_b).view(-1)[other_K]
        threshold = done.smallest[0] or 0.0
        self.kept += len(screened_K)
        self.swapped += int(((pre_K - threshold).abs() > 2**-22 * threshold).sum())
        return done


def _trainer(store: ActivationStore, config: CrosscoderConfig, recipe: Recipe, forward: Forward) -> Trainer:
    crosscoder = Crosscoder.initialised(config, store.mean["a"], store.mean["b"], seed=0)
    assert torch.isfinite(crosscoder.b_enc).all()
    return Trainer(crosscoder, recipe, warn=False, forward=forward)
