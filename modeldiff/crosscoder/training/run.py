"""The stage `train`: activations -> crosscoder.

config.json, model.safetensors   the crosscoder
training.jsonl                   metrics of every logged step, deterministic
figures/training.png             the same as a picture
logs/throughput.jsonl            timings
"""

from __future__ import annotations

import json
import os
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from modeldiff.console import Progress, progress, say
from modeldiff.crosscoder.audits.auditor import Auditor
from modeldiff.crosscoder.audits.report import audit_metrics, audit_note
from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.model import Crosscoder
from modeldiff.crosscoder.plan import Job, disk, forecast
from modeldiff.crosscoder.saving import CONFIG_NAME, WEIGHTS_NAME, write_weights
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.checkpoint import read_checkpoint, write_checkpoint
from modeldiff.crosscoder.training.data import PairStream, split
from modeldiff.crosscoder.training.evaluate import evaluate
from modeldiff.crosscoder.training.figure import training_figure
from modeldiff.crosscoder.training.recipe import Recipe, initial_config, make_recipe
from modeldiff.crosscoder.training.throughput import CheckpointClock, ThroughputLog
from modeldiff.crosscoder.training.trainer import Trainer
from modeldiff.errors import InputError, MachineError
from modeldiff.lm.device import resolve_device
from modeldiff.workspace import Artifact, Order, Work, Workspace
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.files import require_free
from modeldiff.workspace.ranks import Ranks, launched, produce_together, ranks
from modeldiff.workspace.stage import Build

# Counted up when the same settings and activations would train to something else than before.
SCHEMA = 4
LOG_NAME = "training.jsonl"
FIGURE_NAME = "figures/training.png"
THROUGHPUT_NAME = "logs/throughput.jsonl"
_CHECKPOINT_NAME = "checkpoint.safetensors"
# A larger share of outliers than this is said.
_NOTEWORTHY_LEFT_OUT = 0.01


def run(settings: TrainSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Train a crosscoder on an activations artifact, or answer with the one that these settings gave before.

    Under torchrun every rank calls this, holds a share of the features, and gets the artifact.

    Args:
        name: a name for the artifact.
        force: train even if it exists.

    Raises:
        InputError: settings that do not fit the activations; training diverged.
        DamagedError: activations that cannot be read or are not finite.
        MachineError: not enough memory or disk; no such device; another process of the run was lost.
    """
    ours = ranks()
    return produce_together(ours, workspace, partial(_prepare, settings, workspace, ours), name=name, force=force)


def plan(settings: TrainSettings, workspace: Workspace, *, processes: int | None = None) -> dict[str, Any]:
    """What a training would take, without allocating anything of its size: for `--plan`.

    Args:
        processes: that share the features, each on a device of its own or, on the CPU, a machine of its own; those that
            torchrun started, where they are, if left out.

    Returns:
        What `plan.forecast` gives, and what the run is: activations, features by partition, parameters, k, batch,
        steps, pairs (counting repeats), device, precision, processes, processes_per_machine.

    Raises:
        InputError, DamagedError: as `run`.
    """
    source = workspace.find("activations", settings.activations)
    started, local = launched()
    world = processes or started.world
    training = _Training(settings, ActivationStore(source), Ranks(0, world, started.local_rank))
    if world != started.world:
        local = min(world, torch.cuda.device_count()) if training.device.type == "cuda" else 1
    config, recipe, info = training.config, training.recipe, training.store.info
    job = Job(
        config=config,
        recipe=recipe,
        precision=training.precision,
        device=training.device,
        encodings=(info.sides["a"].encoding, info.sides["b"].encoding),
        pairs=sum(len(block) for block in training.blocks),
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


def _prepare(settings: TrainSettings, workspace: Workspace, ours: Ranks) -> tuple[Order, Build]:
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
        self.settings = settings
        self.store = store
        self.device = resolve_device(settings.device, ours.local_rank)
        if settings.audits and self.device.type == "mps":
            raise InputError("--audits needs numbers of 64 bits, which mps lacks: use --device cpu, or --audits 0")
        self.precision = _precision(settings.precision, self.device)
        self.blocks, self.held_out = split(store, settings.holdout)
        self.recipe = make_recipe(settings, widths=store.widths, pairs=sum(len(block) for block in self.blocks))
        self.config = make_config(settings, self.recipe, store)
        if ours.world > 1 and (self.recipe.audits or self.config.n_designated):
            raise InputError("several processes train dfc and standard, without --audits: start one process for this")
        self.shards = Shards(ours, self.config)

    def build(self, work: Work) -> dict[str, Any]:
        """Train, evaluate and write the files; returns the metrics."""
        work.environment.update(device=str(self.device), dtype=self.precision)
        if not self.shards.alone:
            work.environment["processes"] = self.shards.ranks.world
        try:
            return self._build(work)
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
                raise
            raise MachineError(
                f"not enough memory for {self.config.n_features} features with batches of {self.recipe.batch}: "
                "use fewer --features or a smaller --batch; the run continues from its last checkpoint otherwise"
            ) from None

    def _build(self, work: Work) -> dict[str, Any]:
        config, recipe = self.config, self.recipe
        checkpoint = work.resume / _CHECKPOINT_NAME
        written = checkpoint.stat().st_size if checkpoint.exists() else 0
        require_free(work.folder, disk(config)["needed"] - written, f"a training of {config.n_features:,} features")
        trainer = self._trainer()
        over = "" if self.shards.alone else f" over {self.shards.ranks.world} processes"
        say(f"{_sizes(config)}{over}, k {recipe.k}, {config.parameters / 1e6:.2f} M parameters")
        say(f"{recipe.steps:,} steps of {recipe.batch} pairs, lr {recipe.lr:.2g}, {self.precision} on {self.device}")
        self._train(trainer, work)
        dead = trainer.by_partition(trainer.dead())
        crosscoder = self.shards.whole(trainer.crosscoder)
        if crosscoder is None:
            return {}
        crosscoder.to(self.device)
        if recipe.audits:
            say(f"after {recipe.audits} audits: {_sizes(crosscoder.config)}")
        crosscoder.set_threshold(trainer.threshold.value, trainer.threshold_designated.value)
        left_out = trainer.left_out / (recipe.steps * recipe.batch)
        if left_out > _NOTEWORTHY_LEFT_OUT:
            say(
                f"{left_out:.0%} of the pairs were left out: a norm above {recipe.outlier_factor:g} times the median; "
                "--outlier-factor keeps more"
            )
        say(f"evaluate on {sum(len(block) for block in self.held_out):,} held-out pairs")
        evaluation = evaluate(crosscoder, self.store, self.held_out, self.recipe.outlier_factor)
        log = (work.resume / LOG_NAME).read_bytes()
        work.write_bytes(LOG_NAME, log)
        lines = [json.loads(line) for line in log.splitlines()]
        title = f"{_sizes(crosscoder.config)}, k {recipe.k}, on {self.store.artifact.ref}"
        work.write_bytes(FIGURE_NAME, training_figure(lines, title))
        work.write_json(CONFIG_NAME, crosscoder.config.to_json())
        weights = work.temporary(WEIGHTS_NAME)
        write_weights(crosscoder, weights)
        work.commit(weights, WEIGHTS_NAME)
        pairs = sum(len(block) for block in self.blocks)
        return _metrics(trainer, crosscoder, dead, pairs) | {"audit": audit_metrics(lines), "held_out": evaluation}

    def _trainer(self) -> Trainer:
        mean = self.store.mean
        crosscoder = Crosscoder.initialised(
            self.config, mean["a"], mean["b"], seed=self.recipe.seed, decoder_norm=self.settings.decoder_norm
        )
        crosscoder = self.shards.part(crosscoder).to(self.device)
        crosscoder.matmul_dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        self.auditor = Auditor() if self.recipe.audits else None
        return Trainer(crosscoder, self.recipe, shards=self.shards, callback=self.auditor)

    def _train(self, trainer: Trainer, work: Work) -> None:
        """The training loop, from the last checkpoint if there is one."""
        recipe = self.recipe
        checkpoint = work.resume / _CHECKPOINT_NAME
        log_bytes = read_checkpoint(checkpoint, trainer) if checkpoint.exists() else 0
        stream = PairStream(
            self.store,
            self.blocks,
            batch=recipe.batch,
            seed=recipe.seed,
            buffer_bytes=self.settings.buffer_mib << 20,
            device=self.device,
        )
        due = CheckpointClock(self.settings.checkpoint_seconds)
        shards, nowhere = self.shards, Path(os.devnull)
        with (
            _open_at(work.resume / LOG_NAME if shards.ranks.first else nowhere, log_bytes) as log,
            ThroughputLog(work.folder / THROUGHPUT_NAME if shards.ranks.first else nowhere, recipe.batch) as throughput,
            progress("train", recipe.steps, "steps", done=trainer.step) as bar,
            closing(stream.batches(trainer.step)) as batches,
        ):
            while trainer.step < recipe.steps:
                with throughput.waiting():
                    x_a, x_b = next(batches)
                line = trainer.update(x_a, x_b)
                if line:
                    log.write((json.dumps(line) + "\n").encode())
                    throughput.write(trainer.step)
                    _note(bar, line)
                    if line["audit"]:
                        say(audit_note(line))
                bar.advance()
                # The pairs that an audit is collecting are in no checkpoint: one that is due waits for the audit.
                is_due = shards.number(due.now() and shards.ranks.first) > 0
                collecting = self.auditor is not None and self.auditor.collecting
                if (is_due and not collecting) or trainer.step == recipe.steps:
                    log.flush()
                    if shards.ranks.first:
                        os.fsync(log.fileno())
                    with due.writing():
                        write_checkpoint(checkpoint, trainer, log.tell())


def make_config(settings: TrainSettings, recipe: Recipe, store: ActivationStore) -> CrosscoderConfig:
    """The config before training."""
    a, b = store.info.sides["a"], store.info.sides["b"]
    return initial_config(
        settings,
        recipe,
        widths=(a.width, b.width),
        median_norms=(a.median_norm, b.median_norm),
        model_a=a.model,
        layer_a=a.layer,
        model_b=b.model,
        layer_b=b.layer,
    )


def _precision(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" else "float32"


def _sizes(config: CrosscoderConfig) -> str:
    """ "40 features (A 2, shared 36, B 2)"."""
    sizes = {"A": str(config.n_a_only), "shared": str(config.n_shared), "B": str(config.n_b_only)}
    if config.n_designated:
        sizes["shared"] += f" of which designated {config.n_designated}"
    return f"{config.n_features:,} features ({', '.join(f'{name} {size}' for name, size in sizes.items())})"


def _metrics(trainer: Trainer, crosscoder: Crosscoder, dead: dict[str, float], pairs: int) -> dict[str, Any]:
    recipe = trainer.recipe
    return {
        "features": crosscoder.sizes,
        "parameters": crosscoder.config.parameters,
        "k": recipe.k,
        "steps": recipe.steps,
        "pairs": recipe.steps * recipe.batch,
        "passes": recipe.steps * recipe.batch / pairs,
        "lr": recipe.lr,
        "left_out": trainer.left_out,
        "auxk_nan": trainer.auxk_nan,
        "threshold": trainer.threshold.value,
        "dead": {name: int(count) for name, count in dead.items()},
    }


def _note(bar: Progress, line: dict[str, Any]) -> None:
    fve, slots = line["fve"], line["slots"]
    exclusive = 100 * (slots["A"] + slots["B"])
    bar.note(f"loss {line['loss']:.3g} FVE {fve['a']:.2f} {fve['b']:.2f} excl {exclusive:.0f}%")


def _open_at(path: Path, length: int) -> BinaryIO:
    """The log, cut to what it held at the checkpoint."""
    file = path.open("ab+")
    if path.is_file():
        file.truncate(length)
    file.seek(0, 2)
    return file
