"""Settings of `modeldiff train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from modeldiff.errors import InputError
from modeldiff.settings import OnDevice, setting, settings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact

PAPER_OUTLIER_FACTOR = 2.0
"""Paper B.1.4."""
Selection = Literal["activation", "l2", "sum", "mean"]
Combine = Literal["mean", "sum"]


@settings
class TrainSettings(OnDevice):
    """How a crosscoder is trained. What is left out is derived from the activations (see recipe.py)."""

    activations: str | None = setting(default=None, result=False)
    """Activations to train on: a version, a name, or the latest if left out."""
    architecture: Literal["dfc", "standard", "dsf-vectors", "dsf-norms"] = setting(default="dfc")
    """dfc: parts of the dictionary belong to one model alone; standard: every feature is shared; dsf-vectors and
    dsf-norms: likewise, and the designated ones have the same decoder vector, or norm, in both models."""
    features: int | None = setting(default=None, least=1)
    """Size of the dictionary; 8 times the mean of the two widths if left out (the paper: 131072 for width 4096)."""
    exclusive: float = setting(default=0.05, least=0, below=0.5)
    """Share of the features that only A has, and likewise B (dfc). 0.01 to 0.05 in the paper; below 0.5. From 4096
    features on the number is rounded down to a multiple of 64."""
    designated: float = setting(default=0.1, above=0, below=1)
    """Share of the features that are designated as shared (dsf-vectors, dsf-norms)."""
    designated_k: float = setting(default=2.0, above=0)
    """How many times more active entries designated features get than their share of the dictionary (dsf-vectors,
    dsf-norms); the others get fewer, so that k stays k."""
    k: int | None = setting(default=None, least=1)
    """Active features per pair, on average; 1/20 of the mean width but at least 16 if left out (the paper: 200)."""
    k_start: int | None = setting(default=None, least=1)
    """Active features per pair at the first step; falls to k during --anneal-steps; 5 times k if left out."""
    anneal_steps: int | None = setting(default=None, least=0)
    """Steps over which k falls from its start; 5 % of all steps if left out."""
    steps: int | None = setting(default=None, least=1)
    """Steps of training; if neither this nor --tokens is given, two passes over the pairs but at least 2000 steps."""
    tokens: int | None = setting(default=None, least=1)
    """Pairs of tokens to train on, counting repeats: another way to give the steps."""
    batch: int = setting(default=2048, least=1)
    """Pairs of one step."""
    lr: float | None = setting(default=None, above=0)
    """Learning rate of Adam; 2e-4 / sqrt(features / 16384) if left out, which is about the paper's 1e-4 at its size."""
    warmup: int | None = setting(default=None, least=0)
    """Steps during which the learning rate rises from 0; 5 % of all steps, at most 1000, if left out."""
    decay: Literal["none", "linear", "cosine"] = setting(default="linear")
    """How the learning rate falls to 0 during the last fifth of the steps."""
    clip: float = setting(default=1.0, above=0)
    """Largest norm of the gradient; a longer one is shortened to it."""
    selection: Selection = setting(default="activation")
    """What the selection of active features ranks by: the activation, or the activation times the norm of both decoders
    together (l2), the sum of their norms (sum, which starves exclusive features), or their mean (mean)."""
    combine: Combine = setting(default="sum")
    """How a shared feature combines the two encoders: sum as in the paper's public code, or mean as in its text. With
    the mean, exclusive features, which average nothing, outdo shared ones at equal weights and take their slots."""
    loss: Literal["squared", "norm"] = setting(default="squared")
    """Reconstruction error: squared as in the paper, or its norm, and a normalised auxiliary loss, as in its public
    code."""
    auxk_alpha: float = setting(default=0.03, least=0)
    """Weight of the auxiliary loss that revives dead features; 0 turns it off."""
    auxk: int | None = setting(default=None, least=1)
    """Dead features used per pair by the auxiliary loss; half the mean width if left out."""
    dead_tokens: int = setting(default=10_000_000, least=0)
    """A feature is dead when it was not active for this many pairs, or for --dead-share of the run if that is less."""
    dead_share: float = setting(default=0.1, above=0, most=1)
    """See --dead-tokens; short runs would otherwise have no dead feature."""
    audits: int = setting(default=0, least=0)
    """Times from 15 % to 80 % of the run, and at its end, at which exclusive features are judged (dfc). Those that the
    other model's activations predict become shared, and what they do not predict is planted in their place;
    --exclusive is then the most that a partition can hold. 0: the paper's DFC. Try 8; fewer where the run is too short
    for --audit-pairs before each."""
    audit_pairs: int | None = setting(default=None, least=1)
    """Pairs, the last ones before it, that an audit looks at; 16384, or 16 times the larger width if that is more, if
    left out."""
    outlier_factor: float = setting(default=PAPER_OUTLIER_FACTOR, least=0)
    """Leave out pairs whose norm, on either side, exceeds this many times the batch's median (paper B.1.4: 2); 0 keeps
    all. GPT-2-like models have many such tokens: the command says how many were left out."""
    seed: int = setting(default=0, least=0)
    """Of the initial weights and of the order of the pairs."""
    holdout: float = setting(default=0.02, above=0, below=1)
    """Share of the pairs kept from training for the final evaluation."""
    buffer_mib: int = setting(default=256, least=1)
    """Memory for shuffling, in MiB, of all processes together: where the pairs fit they are held whole; otherwise
    blocks in random order fill one half, from which pairs are drawn, while the next ones are read into the other."""
    precision: Literal["auto", "float32", "bfloat16"] = setting(default="auto", result=False)
    """What matrices are multiplied in (weights stay float32); auto is bfloat16 on CUDA, float32 elsewhere."""
    checkpoint_seconds: float = setting(default=60.0, result=False, least=0)
    """Seconds between two checkpoints; longer where writing one takes more than a twentieth of that."""
    log: Literal["tensorboard", "wandb", "trackio"] | None = setting(default=None, result=False)
    """Follow the run there, too; training.jsonl is always written. tensorboard: `tensorboard --logdir WORKSPACE`;
    wandb and trackio: project `modeldiff`, or WANDB_PROJECT, TRACKIO_PROJECT. A run that goes on after an interruption
    is the same run there."""

    def check(self) -> None:
        """What concerns several values."""
        if self.steps is not None and self.tokens is not None:
            raise InputError("--steps and --tokens say the same thing: give one of them")
        if self.features is not None and self.k is not None and self.k > self.features:
            raise InputError(f"--k must be at most the number of features ({self.features}), found {self.k}")
        if self.k is not None and self.k_start is not None and self.k_start < self.k:
            raise InputError(f"--k-start must be at least k ({self.k}), found {self.k_start}")


def outlier_factor_of(crosscoder: Artifact, asked: float | None = None) -> float:
    """As asked for, else as in training; the paper's for a crosscoder that was not trained here."""
    return float(crosscoder.settings.get("outlier_factor", PAPER_OUTLIER_FACTOR)) if asked is None else asked
