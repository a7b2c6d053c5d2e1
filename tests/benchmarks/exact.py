"""Is the fast path the same function? Its gradients and losses against the dense formula with autograd.

Legend: B pairs, d width of one model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.data import PairStream, split
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Recipe, Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.demo.texts import write_probing_corpus
from modeldiff.demo.truth import MODEL_A, MODEL_B
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.benchmarks.rows import Options, Row
from tests.benchmarks.start import Sizes, make_start
from tests.crosscoder.dense import DenseStep

_SIZES = Sizes(width=512, features=8192, k=64, batch=2048)
_STEPS, _PAIRS = 200, 20_000


def rows(options: Options) -> Iterator[Row]:
    """All rows."""
    yield Row(
        "gradients against autograd on the dense path", _gradients(), 1e-5, "", at_least=False,
        note=f"largest relative distance of a parameter's gradient; {_SIZES}",
    )  # fmt: skip
    yield Row(
        f"losses against the dense path over {_STEPS} steps", _losses(_bundled_pair(options)), 1e-3, "", at_least=False,
        note="largest relative distance; the demo's recipe on the bundled pair",
    )  # fmt: skip


def _gradients() -> float:
    start = make_start(_SIZES, log_every=1)
    sparse, dense = (_trainer(*start.crosscoder(), dense=dense) for dense in (False, True))
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


def _losses(store: ActivationStore) -> float:
    """Largest relative distance of losses."""
    settings = TrainSettings(features=1024, k=16, steps=_STEPS, device="cpu")
    blocks, _ = split(store, settings.holdout)
    recipe = make_recipe(settings, widths=store.widths, pairs=sum(len(block) for block in blocks))
    recipe, measured = replace(recipe, log_every=1), Measured.in_store(store)
    config = initial_config(settings, recipe, measured)
    sparse, dense = (
        _trainer(Crosscoder.initialised(config, measured, seed=0), recipe, dense=dense) for dense in (False, True)
    )
    stream = PairStream(store, blocks, batch=recipe.batch, seed=0, buffer_bytes=1 << 28)
    worst = 0.0
    for _, (x_a, x_b) in zip(range(_STEPS), stream.batches(), strict=False):
        found, expected = sparse.update(x_a, x_b), dense.update(x_a, x_b)
        assert found is not None
        assert expected is not None
        worst = max(worst, abs(found["loss"] / expected["loss"] - 1))
    return worst


def _trainer(crosscoder: Crosscoder, recipe: Recipe, *, dense: bool) -> Trainer:
    return Trainer(crosscoder, recipe, warn=False, sparse=DenseStep(crosscoder) if dense else None)
