"""`torchrun ... -m modeldiff train`: features over several processes train to what one process trains to."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig, load
from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.model import Both
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.data import PairStream
from modeldiff.crosscoder.training.run import run
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.errors import ModeldiffError
from modeldiff.splits import hold_out_blocks
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.ranks import Ranks, ranks
from tests.crosscoder.made import log_of, random_crosscoder
from tests.crosscoder.planted import plant
from tests.made_activations import make_activations
from tests.processes import as_ranks

SHORT: dict[str, Any] = {
    "features": 41, "exclusive": 0.15, "k": 2, "steps": 60, "batch": 64, "device": "cpu",
    "dead_tokens": 200,
}  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "w")
    planted = plant(3000)
    make_activations(workspace, planted.x_a, planted.x_b, 1500)
    return workspace


def in_two(workspace: Workspace, values: dict[str, Any], dies_at: int | None = None) -> list[tuple[int | None, str]]:
    """Train as rank 0 and rank 1; exit code and error line of each. Rank 1 is killed before the step `dies_at`."""
    files = [workspace.folder.parent / f"rank{rank}.txt" for rank in (0, 1)]
    deaths = (None, dies_at)
    codes = as_ranks(_train, [(files[rank], workspace.folder, values, deaths[rank]) for rank in (0, 1)])
    return [(code, file.read_text() if file.exists() else "") for code, file in zip(codes, files, strict=True)]


def _train(file: Path, folder: Path, values: dict[str, Any], dies_at: int | None) -> None:
    update = Trainer.update

    def update_or_die(trainer: Trainer, *batch: torch.Tensor) -> dict[str, Any] | None:
        if trainer.step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(trainer, *batch)

    Trainer.update = update_or_die  # type: ignore[method-assign]
    try:
        run(TrainSettings(**values), Workspace(folder))
        ranks().barrier()
    except ModeldiffError as error:
        file.write_text(str(error))
        os._exit(1)


def assert_same(found: Artifact, expected: Artifact) -> None:
    """Up to the order of sums."""
    for line, other in zip(log_of(found), log_of(expected), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert line["auxk"] == (None if other["auxk"] is None else pytest.approx(other["auxk"], rel=1e-3))
        assert line["dead"] == other["dead"]
        assert line["features"] == other["features"]
        assert line["fve_shared"] == pytest.approx(other["fve_shared"], abs=1e-3)
    weights = load(expected).state_dict()
    for name, value in load(found).state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-2, atol=1e-3)
    assert found.metrics["held_out"]["fve"] == pytest.approx(expected.metrics["held_out"]["fve"], abs=1e-3)


@pytest.mark.parametrize("values", [{}, {"selection": "l2", "auxk": 2}, {"loss": "norm"}])
def test_two_processes_train_to_what_one_does(workspace: Workspace, values: dict[str, Any]) -> None:
    assert in_two(workspace, {**SHORT, **values}) == [(0, ""), (0, "")]
    sharded = workspace.find("crosscoder")
    assert sharded.manifest.environment["processes"] == 2
    alone = run(TrainSettings(**{**SHORT, **values}), workspace, force=True)
    assert any(line["auxk"] for line in log_of(alone))
    assert alone.metrics["left_out"] == sharded.metrics["left_out"]
    assert_same(sharded, alone)


def test_a_lost_process_ends_the_run_and_one_process_goes_on_from_its_checkpoint(workspace: Workspace) -> None:
    values = {**SHORT, "checkpoint_seconds": 0.0}
    (code, error), (killed, _) = in_two(workspace, values, dies_at=31)
    assert (code, killed) == (1, -signal.SIGKILL)
    assert error == "another process of this run ended, or could not be reached: the same command continues"
    resumed = run(TrainSettings(**values), workspace)
    assert [line["step"] for line in log_of(resumed)] == [*range(60)]
    assert_same(resumed, run(TrainSettings(**values), workspace, force=True))


def test_two_processes_go_on_from_what_one_began(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {**SHORT, "checkpoint_seconds": 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", _until(20, Trainer.update))
        with pytest.raises(KeyboardInterrupt):
            run(TrainSettings(**values), workspace)
    assert in_two(workspace, values) == [(0, ""), (0, "")]
    sharded = workspace.find("crosscoder")
    assert [line["step"] for line in log_of(sharded)] == [*range(60)]
    assert_same(sharded, run(TrainSettings(**values), workspace, force=True))


def _until(step: int, update: Any) -> Any:
    def updated(trainer: Trainer, *batch: torch.Tensor) -> Any:
        if trainer.step == step:
            raise KeyboardInterrupt
        return update(trainer, *batch)

    return updated


def _batches(file: Path, folder: Path, buffer_rows: int) -> None:
    """Some batches as one of several processes gets them, and how many rows it read for them."""
    store, ours, read = ActivationStore(Workspace(folder).find("activations")), ranks(), [0]
    read_into = ActivationStore.read_into

    def counted(self: ActivationStore, side: str, blocks: Sequence[Block], x_ND: torch.Tensor) -> None:
        read[0] += len(x_ND)
        read_into(self, side, blocks, x_ND)

    ActivationStore.read_into = counted  # type: ignore[method-assign]
    blocks, _ = hold_out_blocks(store, 0.1)
    processes = Shards(ours, random_crosscoder().config) if ours.world > 1 else None
    stream = PairStream(
        store, blocks, batch=70, seed=1, buffer_bytes=buffer_rows * store.pair_bytes, processes=processes
    )
    x = [torch.cat(one) for one in zip(*map(_copied, itertools.islice(stream.batches(3), 60)), strict=True)]
    save_file({"a": x[0], "b": x[1], "read": torch.tensor(read)}, file)
    ours.barrier()


def _copied(x: Both) -> Both:
    return x[0].clone(), x[1].clone()


@pytest.mark.parametrize("buffer_rows", [10**6, 800])
def test_processes_read_each_pair_once_and_have_the_batches_of_one(workspace: Workspace, buffer_rows: int) -> None:
    files = [workspace.folder.parent / f"{name}.safetensors" for name in ("alone", "0", "1", "2")]
    for some in (files[:1], files[1:]):
        assert as_ranks(_batches, [(file, workspace.folder, buffer_rows) for file in some]) == [0] * len(some)
    alone, *several = map(load_file, files)
    assert len(alone["a"].unique(dim=0)) > 2000
    for one in several:
        assert torch.equal(one["a"], alone["a"])
        assert torch.equal(one["b"], alone["b"])
        assert int(one["read"]) == pytest.approx(int(alone["read"]) / 3, rel=0.2)


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("sizes", [(3, 11, 2), (1050, 2200, 70)])
def test_each_process_makes_its_rows_of_the_first_weights(sizes: tuple[int, int, int], world: int) -> None:
    """The whole, put together from the parts, is what one process makes: to the bit, but for sums of other lengths."""
    a, shared, b = sizes
    config = CrosscoderConfig(width_a=5, width_b=7, n_a_only=a, n_shared=shared, n_b_only=b, k=2)
    generator = torch.Generator().manual_seed(1)
    measured = {side: Measured(torch.randn(n, generator=generator).double(), 2.0) for side, n in (("a", 5), ("b", 7))}
    expected = Crosscoder.initialised(config, measured, seed=3).state_dict()
    found = {name: torch.full_like(value, torch.nan) for name, value in expected.items()}
    for rank in range(world):
        shards = Shards(Ranks(rank, world, rank), config)
        for name, value in shards.initialised(measured, seed=3).state_dict().items():
            for first, at, n in shards.spans(name) or [(0, 0, len(value))]:
                found[name][first : first + n] = value[at : at + n]
    for name, value in expected.items():
        if name == "b_enc":
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(found[name], value), name
