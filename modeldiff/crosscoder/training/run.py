"""The stage `train`: activations -> crosscoder.

Layout (normative; of the other files: crosscoder/saving.py):
    training.jsonl                          a line for every logged step; deterministic
        step                                from 0 on
        pairs, left_out                     read so far, this step's included; of them left out for their norm
        k, lr                               at this step
        loss                                reconstruction, plus auxk as the recipe weighs it
        reconstruction                      mean error of a pair, normalised units (`--loss`)
        auxk                                squared error of the dead features' guess at that error; null: none are dead
        threshold                           for inference, as it is after this step
        features, dead                      by partition (A, shared, B): number; of them without activity for long
        l0, slots                           by partition: active features of a pair of this batch; share of them all
        fve, fve_shared, gain_exclusive     by side (a, b): share of this batch's variance that is explained; by shared
                                            features alone; the difference
        audit                               what an audit at this step's end did, or null: none was due
            dropped, fresh                  shared features that made room; empty slots that begin anew
            A, B                            by fate, number of features judged for this part; `reference`: the bar's
                                            scale (`Evidence`, audits/judging.py)
    figures/training.png                    the same as a picture
    logs/throughput.jsonl                   of the steps up to each but the first logged one
        step, pairs_per_second
        waiting_for_data                    share of the time

With --log tensorboard, logs/ holds its event files, too.
"""

from __future__ import annotations

import json
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from modeldiff.console import say
from modeldiff.crosscoder.audits.auditor import Auditor, audit_metrics
from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.plan import Job, disk, forecast
from modeldiff.crosscoder.saving import CONFIG_NAME, WEIGHTS_NAME
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.data import PairStream
from modeldiff.crosscoder.training.evaluation import evaluate
from modeldiff.crosscoder.training.figure import training_figure
from modeldiff.crosscoder.training.loggers import Followed, Follower, Log
from modeldiff.crosscoder.training.loop import train
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.crosscoder.units import Measured
from modeldiff.errors import InputError, MachineError
from modeldiff.figures import write_figure
from modeldiff.lm.device import resolve_device
from modeldiff.sides import SIDES
from modeldiff.splits import hold_out_blocks
from modeldiff.workspace import Artifact, Order, Work, Workspace
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.files import require_free
from modeldiff.workspace.ranks import Ranks, launched, produce_together, ranks
from modeldiff.workspace.stage import Build

# Counted up when the same settings and activations would train to something else than before.
SCHEMA = 6
_LOG_NAME = "training.jsonl"
# Warn above this share of outliers.
_NOTEWORTHY_LEFT_OUT = 0.01


def run(settings: TrainSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Train a crosscoder on an activations artifact, or answer with the one that these settings gave before.

    Under torchrun every rank calls this, holds a share of the features, and gets the artifact.

    Raises:
        InputError: settings that do not fit the activations; training diverged.
        DamagedError: activations that cannot be read or are not finite.
        MachineError: not enough memory or disk; no such device; another process of the run was lost.
    """
    ours = ranks()
    return produce_together(ours, workspace, partial(prepare, settings, workspace, ours), name=name, force=force)


def plan(settings: TrainSettings, workspace: Workspace, *, processes: int | None = None) -> dict[str, Any]:
    """For `--plan`: what the run is, and what `plan.forecast` says that it would take. Nothing large is allocated.

    Args:
        processes: that share the features, each on a device of its own or, on the CPU, a machine of its own; those that
            torchrun started, where they are, if left out.
    """
    source = workspace.find("activations", settings.activations)
    started, local = launched()
    world = processes or started.world
    training = _Training(settings, ActivationStore(source), Ranks(0, world, started.local_rank))
    if world != started.world:
        local = min(world, torch.cuda.device_count()) if training.device.type == "cuda" else 1
    config, recipe = training.config, training.recipe
    job = Job(
        config=config,
        recipe=recipe,
        precision=training.precision,
        device=training.device,
        pairs=training.pairs,
        pair_bytes=training.store.pair_bytes,
        block_rows=max(len(block) for block in training.held_out),
        buffer_bytes=settings.buffer_mib << 20,
        processes=world,
        local=local,
    )
    return {
        "activations": source.ref,
        "features": {"A": config.n_a_only, "shared": config.n_shared, "B": config.n_b_only},
        "parameters": config.parameters,
        "k": recipe.k,
        "batch": recipe.batch,
        "steps": recipe.steps,
        "pairs": recipe.steps * recipe.batch,
        "device": str(training.device),
        "precision": training.precision,
        "processes": world,
        "processes_per_machine": local,
        **forecast(job, workspace.folder),
    }


def precision_of(settings: TrainSettings, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Of the encoder's product."""
    fastest: Literal["float32", "bfloat16"] = "bfloat16" if device.type == "cuda" else "float32"
    return fastest if settings.precision == "auto" else settings.precision


def prepare(settings: TrainSettings, workspace: Workspace, ours: Ranks) -> tuple[Order, Build]:
    """What is to be made, and how. Raises as `run`, for what is wrong before the work begins."""
    source = workspace.find("activations", settings.activations)
    if settings.activations is None:
        say(f"train on {source.ref} (the latest)")
    training = _Training(settings, ActivationStore(source), ours)
    order = Order(
        kind="crosscoder",
        settings=settings,
        inputs={"activations": source.as_input()},
        schema=SCHEMA,
        resolved={"precision": training.precision},
    )
    return order, training.build


class _Training:
    """What is fixed before the work begins, and the work."""

    def __init__(self, settings: TrainSettings, store: ActivationStore, ours: Ranks) -> None:
        self.settings, self.store = settings, store
        self.device = resolve_device(settings.device, ours.local_rank)
        started, here = launched()
        shared = here > torch.cuda.device_count() or ":" in settings.device
        if started.world > 1 and self.device.type == "cuda" and shared:
            raise InputError(
                f"each of the {here} processes on this machine needs a GPU of its own, and it has "
                f"{torch.cuda.device_count()}: start as many with torchrun, and leave --device out"
            )
        if settings.audits and self.device.type == "mps":
            raise InputError("--audits needs numbers of 64 bits, which mps lacks: use --device cpu, or --audits 0")
        self.precision = precision_of(settings, self.device)
        self.blocks, self.held_out = hold_out_blocks(store, settings.holdout)
        self.pairs = sum(len(block) for block in self.blocks)
        self.recipe = make_recipe(settings, widths=store.widths, pairs=self.pairs)
        self.measured, (a, b) = Measured.in_store(store), (store.info.sides[side] for side in SIDES)
        names = {"model_a": a.model, "layer_a": a.layer, "model_b": b.model, "layer_b": b.layer}
        self.config = initial_config(settings, self.recipe, self.measured, **names)
        if ours.world > 1 and (self.recipe.audit_steps or self.config.n_designated):
            raise InputError("several processes train dfc and standard, without --audits: start one process for this")
        self.shards = Shards(ours, self.config) if ours.world > 1 else None

    def build(self, work: Work) -> dict[str, Any]:
        work.environment.update(device=str(self.device), dtype=self.precision)
        if self.shards:
            work.environment["processes"] = self.shards.world
        name = f"{self.settings.architecture}-{self.config.n_features}-k{self.recipe.k}-seed{self.recipe.seed}"
        run = Followed(
            f"{name}-{work.folder.name[:8]}", work.folder.name, work.folder / "logs", self.settings.to_json()
        )
        try:
            with closing(Follower(self.settings.log if work.rank == 0 else None, run)) as follower:
                return self._build(work, follower)
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
                raise
            raise MachineError(
                f"not enough memory for {self.config.n_features} features with batches of {self.recipe.batch}: "
                "use fewer --features or a smaller --batch; the run continues from its last checkpoint otherwise"
            ) from None

    def _build(self, work: Work, follower: Follower) -> dict[str, Any]:
        checkpoint = work.resume / "checkpoint.json"
        written = sum(one.stat().st_size for one in work.resume.glob("*.safetensors"))
        size = f"a training of {self.config.n_features:,} features"
        require_free(work.folder, disk(self.config)["needed"] - written, size)
        crosscoder, log, figures = self._trained(checkpoint, work.folder / "logs/throughput.jsonl", follower.log)
        if crosscoder is None:
            return {}
        recipe = self.recipe
        if recipe.audit_steps:
            say(f"after {len(recipe.audit_steps)} audits: {_sizes(crosscoder.config)}")
        left_out = figures["left_out"] / (recipe.steps * recipe.batch)
        if left_out > _NOTEWORTHY_LEFT_OUT:
            say(
                f"{left_out:.0%} of the pairs were left out: a norm above {recipe.outlier_factor:g} times the median; "
                "--outlier-factor keeps more"
            )
        # Only now: what training needs is freed. In float32, as whoever loads it computes.
        crosscoder = crosscoder.to(self.device)
        crosscoder.matmul_dtype = torch.float32
        say(f"evaluate on {sum(len(block) for block in self.held_out):,} held-out pairs")
        evaluation = evaluate(crosscoder, self.store, self.held_out, self.settings.outlier_factor)
        follower.log(recipe.steps, {"held_out": evaluation})
        work.write_bytes(_LOG_NAME, log.encode())
        lines = [json.loads(line) for line in log.splitlines()]
        title = f"{_sizes(crosscoder.config)}, k {recipe.k}, on {self.store.artifact.ref}"
        write_figure(work, "figures/training.png", lambda: training_figure(lines, title))
        work.write_json(CONFIG_NAME, crosscoder.config.to_json())
        weights = work.temporary(WEIGHTS_NAME)
        crosscoder.write_weights(weights)
        work.commit(weights, WEIGHTS_NAME)
        return {
            "features": crosscoder.sizes,
            "parameters": crosscoder.config.parameters,
            "k": recipe.k,
            "steps": recipe.steps,
            "pairs": recipe.steps * recipe.batch,
            "passes": recipe.steps * recipe.batch / self.pairs,
            "lr": recipe.lr,
            **figures,
            "audit": audit_metrics(lines),
            "held_out": evaluation,
        }

    def _trained(self, checkpoint: Path, timings: Path, log: Log) -> tuple[Crosscoder | None, str, dict[str, Any]]:
        """The whole crosscoder, in the first process, and log and figures of the run. What only training needs is
        freed."""
        config, recipe = self.config, self.recipe
        make = self.shards.initialised if self.shards else partial(Crosscoder.initialised, config)
        crosscoder = make(self.measured, seed=recipe.seed).to(self.device)
        crosscoder.matmul_dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        auditor = Auditor() if recipe.audit_steps else None
        trainer = Trainer(crosscoder, recipe, processes=self.shards, callback=auditor)
        over = f" over {self.shards.world} processes" if self.shards else ""
        say(f"{_sizes(config)}{over}, k {recipe.k}, {config.parameters / 1e6:.2f} M parameters")
        say(f"{recipe.steps:,} steps of {recipe.batch} pairs, lr {recipe.lr:.2g}, {self.precision} on {self.device}")
        buffer_bytes = self.settings.buffer_mib << 20
        stream = PairStream(
            self.store, self.blocks, batch=recipe.batch, seed=recipe.seed, buffer_bytes=buffer_bytes,
            device=self.device, processes=self.shards,
        )  # fmt: skip
        written = train(trainer, stream, checkpoint, timings, self.settings.checkpoint_seconds, log)
        dead = trainer.by_partition(trainer.dead())
        figures = {
            "left_out": trainer.left_out,
            "auxk_nan": trainer.auxk_nan,
            "threshold": trainer.threshold.value,
            "dead": {name: int(count) for name, count in dead.items()},
        }
        whole = self.shards.whole(crosscoder) if self.shards else crosscoder
        if whole is not None:
            whole.zero_grad()
            whole.set_threshold(trainer.threshold.value, trainer.threshold_designated.value)
        return whole, written, figures


def _sizes(config: CrosscoderConfig) -> str:
    sizes = {"A": str(config.n_a_only), "shared": str(config.n_shared), "B": str(config.n_b_only)}
    if config.n_designated:
        sizes["shared"] += f" of which designated {config.n_designated}"
    return f"{config.n_features:,} features ({', '.join(f'{name} {size}' for name, size in sizes.items())})"
