"""What a diff of large models would take on one H100 and on eight: reckoned, from counts, nothing of it measured.

    python -m tests.benchmarks.scale

Bytes are those that `diff --plan` and `train --plan` give. Times are counts of operations and of bytes over the rates
below; a stage takes as long as the slowest of what it does at once.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import click
import torch

from modeldiff.crosscoder.plan import Job, disk, needed
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.recipe import initial_config, make_recipe
from modeldiff.crosscoder.units import Measured
from modeldiff.diff.plan import CODE_BYTES
from modeldiff.format import duration
from modeldiff.harvest.planner import bytes_needed
from modeldiff.sides import SIDES
from modeldiff.workspace.files import human_bytes

# A second of one H100 and its share of a machine: operations in bfloat16 and float64, bytes of its memory and of its
# cache, as far as programs get them; cores, pairs that one of them plans, bytes to and from a disk.
BFLOAT16, OF_A_MODEL, FLOAT64, MEMORY, CACHE = 7e14, 3.5e14, 5e13, 2.9e12, 4.5e12
CORES, PLANNED, DISK, DEVICE_BYTES = 16, 65_000, 2e9, 80e9
# Pairs of a token; bytes of a pair's plan; documents and tokens that continuations read; of a diff, at most.
KEPT, PLAN_BYTES, PLACES, READ, TOKENS, LISTED = 0.75, 50, 6000, 400, 24, 10
SAMPLED, FEATURES, BATCH = 200_000, 131_072, 2048


@dataclass(frozen=True)
class Model:
    name: str
    parameters: float
    width: int


MODELS = (Model("8B", 8.0e9, 4096), Model("70B", 70.6e9, 8192))


def job_of(model: Model, pairs: int, gpus: int) -> Job:
    settings = TrainSettings(features=FEATURES, batch=BATCH)
    widths = (model.width, model.width)
    recipe = make_recipe(settings, widths=widths, pairs=pairs)
    like = {side: Measured(torch.zeros(model.width), 1.0) for side in SIDES}
    return Job(
        config=initial_config(settings, recipe, like), recipe=recipe, precision="bfloat16", device=torch.device("cuda"),
        pairs=pairs, pair_bytes=4 * model.width, block_rows=256, buffer_bytes=settings.buffer_mib << 20,
        processes=gpus, local=gpus,
    )  # fmt: skip


def seconds_of_a_step(job: Job) -> float:
    """The parts of a step, one after the other, of a process with its share of the features."""
    part, entries = job.part, job.recipe.k * BATCH / job.processes
    widths, encoder = part.width_a + part.width_b, part.n_a * part.width_a + part.n_b * part.width_b
    product = 2 * BATCH * encoder / BFLOAT16
    # Gradients are written, read for their norm and by Adam, which reads and writes weights and two moments; an encoder
    # in bfloat16 is made from one in float32.
    parameters = (36 * part.parameters + 6 * encoder) / MEMORY
    pre_activations = 3 * 4 * BATCH * part.n_features / MEMORY
    rows = 4 * 4 * entries * widths / CACHE  # decoding, its products, two gradients
    exchanged = 0.0 if job.processes == 1 else 4 * 4 * BATCH * widths / 4e11
    return product + parameters + pre_activations + rows + exchanged + 1e-3


def stages(model: Model, pairs: int, gpus: int) -> dict[str, tuple[float, float, float]]:
    """Seconds, bytes of the fullest device and bytes on disk of each stage."""
    job = job_of(model, pairs, gpus)
    config, recipe, side_bytes = job.config, job.recipe, 2 * model.width
    encoder = config.n_a * config.width_a + config.n_b * config.width_b
    weights = 2 * model.parameters
    tokens, stored = pairs / KEPT, bytes_needed(pairs, dict.fromkeys(SIDES, model.width), "bfloat16", PLAN_BYTES)
    # To the middle layer; both models in turn.
    reading = 2 * model.parameters / 2 * tokens * len(SIDES) / OF_A_MODEL / gpus
    capture = pairs / (PLANNED * CORES * gpus) + max(reading, stored / (DISK * gpus)) + len(SIDES) * weights / DISK
    training = recipe.steps * max(seconds_of_a_step(job), BATCH * job.pair_bytes / (DISK * gpus))
    passed = 2 * pairs * encoder / BFLOAT16 + 1.3 * recipe.k * 4 * 2 * model.width * pairs / CACHE
    targets = 2 * (FEATURES + 2 * 512)
    evidence = len(SIDES) * 2 * (targets * model.width**2 + SAMPLED * model.width**2) / FLOAT64
    features = max(passed, pairs * job.pair_bytes / DISK) / gpus + evidence
    maps = 2 * 1_000_000 * (2 * model.width) ** 2 / FLOAT64 + 20 * model.width**3 / FLOAT64
    read = 2 * model.parameters * PLACES * READ / OF_A_MODEL
    said = PLACES / 256 * TOKENS * weights / MEMORY
    continued = len(SIDES) * ((2 * read + said) / gpus + weights / DISK)
    compared = len(SIDES) * (read + weights / DISK) + 60
    pushed = len(SIDES) * weights / DISK + LISTED * 4 * TOKENS * weights / MEMORY
    half = 4 * encoder + 2 * encoder
    spread = weights / gpus if weights > DEVICE_BYTES else weights
    return {
        "harvest": (capture, spread + 8e9, stored),
        "train": (training, max(needed(job, "device").values()), disk(config)["needed"]),
        "features": (features, half + (1 << 30) + 8 * 6 * model.width * 8192, 100 * 20 * FEATURES * 16),
        "stitch": (maps, 4 * 8 * model.width**2, 8 * model.width**2),
        "continuations": (continued, spread + 16e9, 1e7),
        "contrast, steering": (compared + pushed, spread + half, 1e6 + side_bytes),
    }


def main() -> None:
    click.echo(f"{FEATURES:,} features, k 1/20 of the width, batch {BATCH:,}; reckoned, not measured")
    for model, pairs, gpus in itertools.product(MODELS, (100_000_000, 1_000_000_000), (1, 8)):
        click.echo(f"\n{model.name} against {model.name}, {pairs:,} pairs, {gpus} x H100")
        found = stages(model, pairs, gpus)
        for name, (seconds, device, on_disk) in found.items():
            over = "" if device <= DEVICE_BYTES else "  does not fit on one"
            sizes = f"{human_bytes(round(device)):>10} {human_bytes(round(on_disk)):>10}"
            click.echo(f"  {name:20}{duration(seconds):>10} {sizes}{over}")
        click.echo(f"  {'all':20}{duration(sum(seconds for seconds, _, _ in found.values())):>10}")
        job = job_of(model, pairs, gpus)
        host = max(needed(replace(job, local=gpus), "host").values())
        click.echo(
            f"  a step {1e3 * seconds_of_a_step(job):.0f} ms; main memory of training {human_bytes(host)}, of features "
            f"{human_bytes(SAMPLED * job.recipe.k * CODE_BYTES)}"
        )


if __name__ == "__main__":
    main()
