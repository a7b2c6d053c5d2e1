"""Memory and disk of a training run, from its numbers alone: nothing is allocated.

Four moments decide: the start, when the whole initial dictionary is made on the CPU; a training step; a checkpoint,
which rank 0 gathers on the CPU; the evaluation at the end. What is counted is what the code keeps at that moment, by
forward.py, trainer.py, checkpoint.py and evaluate.py; what the interpreter, torch and CUDA themselves take is not.

Legend: B pairs, F features, D = Da + Db widths, K kept entries, P parameters, N pairs of a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.distributed import Shards
from modeldiff.crosscoder.training.recipe import Recipe
from modeldiff.workspace.bits import bytes_per_value
from modeldiff.workspace.ranks import Ranks

# Parts of a run's life; memory must suffice for each of them.
START, STEP, CHECKPOINT, EVALUATION = "start", "step", "checkpoint", "evaluation"
# Of the dictionary, for which the auxiliary loss is given room. How many will be dead nobody knows beforehand.
DEAD_SHARE = 0.1

_FLOAT, _HALF, _LONG, _DOUBLE = 4, 2, 8, 8
# Float32 matrices (B, D) at once, or halves of them: activations while encoding, and a copy in bfloat16; later what the
# auxiliary loss reconstructs. Reconstructions and their gradients take the place of the pre-activations where these are
# large enough (forward.py). A dense code is decoded and measured with several.
_ENCODING_COPIES, _LATER_COPIES, _INSIDE_COPIES, _EVALUATION_COPIES = 1.5, 2.5, 2, 6
# Bytes of a kept entry: its row and column, the order by feature and its inverse, values; and of the candidates.
_ENTRY = 60
# Rows of scores that the selection looks at, and copies of them.
_SAMPLED = 32 * 3
# Columns that the screen adds to each weight (see coarse.py).
_SCREEN_COLUMNS = 8
# (N, F) matrices of the evaluation: the code, the same without the exclusive features, masks.
_CODE_COPIES = 2.5


@dataclass(frozen=True, kw_only=True)
class Job:
    """What decides a run's memory and disk.

    Attributes:
        config: of the whole crosscoder.
        processes: that share the features.
        local: of them, on one machine.
        device: "cpu", "cuda" or "mps".
        encodings: of the stored activations of A and B.
        pairs: stored pairs to train on.
        block_rows: pairs that are read and evaluated at once.
    """

    config: CrosscoderConfig
    recipe: Recipe
    precision: str
    device: str
    encodings: tuple[str, str]
    pairs: int
    block_rows: int
    buffer_bytes: int
    processes: int = 1
    local: int = 1

    @property
    def part(self) -> CrosscoderConfig:
        """The crosscoder of one process: the last one's, which has the most features."""
        return Shards(Ranks(self.processes - 1, self.processes), self.config).config(self.processes - 1)

    @property
    def on_cpu(self) -> bool:
        """The crosscoder is in the machine's own memory."""
        return self.device == "cpu"

    def with_features(self, features: int) -> Job:
        """The same with another number of features, split in the same way."""
        return dataclasses.replace(self, config=scaled(self.config, features))


def scaled(config: CrosscoderConfig, features: int) -> CrosscoderConfig:
    """A config with another number of features in the same partitions."""
    share = features / config.n_features
    a, b = round(share * config.n_a_only), round(share * config.n_b_only)
    shared = features - a - b
    return dataclasses.replace(
        config,
        n_a_only=a,
        n_shared=shared,
        n_b_only=b,
        n_designated=max(1, round(share * config.n_designated)) if config.n_designated else 0,
        k=min(config.k, features),
    )


@dataclass(frozen=True)
class Need:
    """Bytes of one process at one moment; rank 0 needs some more.

    Attributes:
        device, device_first: on the device; 0 when that is the CPU.
        host, host_first: in the machine's memory.
    """

    device: int = 0
    device_first: int = 0
    host: int = 0
    host_first: int = 0


@dataclass(frozen=True)
class Memory:
    """What a run needs.

    Attributes:
        parts: of a step, by name, in bytes, for one process; on the device, or on the CPU if that is the device.
        moments: the four.
    """

    parts: dict[str, int]
    moments: dict[str, Need]
    local: int

    def device(self, moment: str) -> int:
        """Of the device that needs most."""
        need = self.moments[moment]
        return need.device + need.device_first

    def host(self, moment: str) -> int:
        """Of the machine with rank 0: all its processes together."""
        need = self.moments[moment]
        return self.local * need.host + need.host_first

    @property
    def most_device(self) -> int:
        """Over all moments."""
        return max(map(self.device, self.moments))

    @property
    def most_host(self) -> int:
        """Over all moments."""
        return max(map(self.host, self.moments))


def memory(job: Job) -> Memory:
    """Bytes at each moment."""
    parts = step_parts(job)
    buffer = parts["buffer"] if job.on_cpu else _buffer(job)
    moments = {moment: need(job, parts, buffer) for moment, need in _MOMENTS.items()}
    return Memory(parts, moments, job.local)


def step_parts(job: Job) -> dict[str, int]:
    """Bytes of a training step by what they are for; the buffer of pairs is on the CPU, so on other devices it is not
    among them."""
    part, recipe = job.part, job.recipe
    F, B, D = part.n_features, recipe.batch, part.width_a + part.width_b
    weights = _FLOAT * part.parameters
    parts = {"weights": weights, "gradients": weights, "moments": 2 * weights}
    parts["pre_activations"] = B * F * (_FLOAT if job.precision == "float32" else _HALF)
    # A step holds most while it encodes, with copies in bfloat16, or towards its end.
    matrix = _FLOAT * B * D
    parts["batch"] = round(max(_ENCODING_COPIES * matrix + _copies(job), _LATER_COPIES * matrix))
    if _INSIDE_COPIES * matrix > parts["pre_activations"]:
        parts["batch"] += _INSIDE_COPIES * matrix
    parts["batch"] += _ENTRY * _entries(job) + _SAMPLED * _FLOAT * F
    stored = B * sum(map(_bytes_of_a_row, (part.width_a, part.width_b), job.encodings))
    parts["batch"] += stored
    if not job.on_cpu:
        # The next batch, and masks of the selection, which the CPU makes piece by piece.
        parts["batch"] += stored + B * F
    if recipe.auxk_alpha:
        parts["dead_features"] = _dead(job)
    if recipe.audits:
        parts["audits"] = _audit(job)
    if job.on_cpu:
        parts["buffer"] = _buffer(job)
    return parts


def _entries(job: Job) -> int:
    """Kept entries of a batch that a process deals with, when k is largest; it may have more than its even share."""
    kept = max(job.recipe.k, job.recipe.k_at(0)) * job.recipe.batch
    return round(kept if job.processes == 1 else min(kept, 1.5 * kept / job.processes) + kept)


def _copies(job: Job) -> int:
    """What products in bfloat16 need beside the pre-activations: weights, and the products in float32."""
    part, B = job.part, job.recipe.batch
    encoder = part.n_a * part.width_a + part.n_b * part.width_b
    if job.precision == "bfloat16":
        return _HALF * encoder + _FLOAT * B * part.n_features
    if job.precision == "screened":
        return _HALF * (encoder + _SCREEN_COLUMNS * (part.n_a + part.n_b))
    return 0


def _dead(job: Job) -> int:
    """Of the auxiliary loss: dead features' rows, some of their gradients, and matrices of dead features alone."""
    part, B = job.part, job.recipe.batch
    return round(DEAD_SHARE * _FLOAT * (1.5 * part.parameters + 4 * B * part.n_features))


def _audit(job: Job) -> int:
    """Of audits: pairs and errors, codes of the exclusive features, correlations of all, a dense code."""
    config, recipe = job.part, job.recipe
    D = config.width_a + config.width_b
    pairs = recipe.audit_batches * recipe.batch
    numbers = 2 * pairs * D + pairs * (config.n_a_only + config.n_b_only)
    return _FLOAT * (numbers + config.n_features * (D + 2 * recipe.batch))


def _buffer(job: Job) -> int:
    """Pairs that are read ahead: all of them where they fit; on the way to another device, batches as well."""
    row = sum(map(_bytes_of_a_row, (job.config.width_a, job.config.width_b), job.encodings))
    return min(job.buffer_bytes, job.pairs * row) + (0 if job.on_cpu else 4 * job.recipe.batch * row)


def _bytes_of_a_row(width: int, encoding: str) -> int:
    return width * bytes_per_value(encoding)


def _start(job: Job, parts: dict[str, int], buffer: int) -> Need:  # noqa: ARG001
    """The whole dictionary on the CPU, while both sides' directions are drawn; then this rank's part of it."""
    config = job.config
    whole = _FLOAT * config.parameters
    drawn = _FLOAT * (config.n_a * config.width_a + config.n_b * config.width_b)
    host = whole + max(drawn, 0 if job.processes == 1 else parts["weights"])
    return Need(host=host) if job.on_cpu else Need(device=parts["weights"], host=host)


def _step(job: Job, parts: dict[str, int], buffer: int) -> Need:
    step = sum(parts.values())
    return Need(host=step) if job.on_cpu else Need(device=step, host=buffer)


def _checkpoint(job: Job, parts: dict[str, int], buffer: int) -> Need:
    """Weights and moments on rank 0's CPU: gathered from all ranks, or copied from the device."""
    gathered = disk(job.config)["checkpoint"]
    kept = sum(parts[name] for name in ("weights", "gradients", "moments", "pre_activations"))
    piece = 0 if job.processes == 1 else _FLOAT * job.part.n_a * job.part.width_a
    if job.on_cpu:
        return Need(host=kept + buffer + piece, host_first=0 if job.processes == 1 else gathered)
    return Need(device=kept, host=buffer + piece, host_first=gathered)


def _evaluation(job: Job, parts: dict[str, int], buffer: int) -> Need:  # noqa: ARG001
    """Gradients and moments are gone. Rank 0 puts the whole crosscoder on its device, beside its part, and encodes
    block by block without sparsity."""
    config = job.config
    kept, rows = parts["weights"], job.block_rows
    values = _FLOAT if job.precision != "bfloat16" else _FLOAT + _HALF
    block = round(_CODE_COPIES * values * rows * config.n_features)
    block += _EVALUATION_COPIES * _FLOAT * rows * (config.width_a + config.width_b)
    if job.precision == "bfloat16":
        block += _HALF * (config.n_a * config.width_a + config.n_b * config.width_b)
    whole = 0 if job.processes == 1 else _FLOAT * config.parameters
    if job.on_cpu:
        return Need(host=kept, host_first=whole + block)
    return Need(device=kept, device_first=whole + block, host_first=_FLOAT * config.parameters)


_MOMENTS: dict[str, Callable[[Job, dict[str, int], int], Need]] = {
    START: _start,
    STEP: _step,
    CHECKPOINT: _checkpoint,
    EVALUATION: _evaluation,
}


def disk(config: CrosscoderConfig) -> dict[str, int]:
    """Bytes of a checkpoint (weights, moments, a counter for each feature) and of the artifact (weights), and at most:
    a new checkpoint is written before the old one goes."""
    weights = _FLOAT * config.parameters
    checkpoint = 3 * weights + _LONG * config.n_features
    return {"checkpoint": checkpoint, "artifact": weights, "needed": 2 * checkpoint}
