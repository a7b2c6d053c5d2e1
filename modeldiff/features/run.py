"""The features stage: a crosscoder and activations in, a `features` artifact out.

Layout (normative; of examples.h5: catalogue/example.py; F features, S text sources, G = S, but at most 8 and at least
1; what has a ? is absent without predictability; activations of features are in normalised units):
    features.json
        format
        crosscoder, activations             what was measured, on what
        sides.*                             by side, fields of `SideInfo` (workspace/activations.py)
        partitions                          first feature of each (A, shared, B), and the one behind its last
        sources, has_texts                  as in the activations' store.json
        predictability                      whether it was measured
        scales.*                            by side, fields of `Scale` (linear/verdict.py)
        differences.*                       by side, fields of `Baseline` (linear/verdict.py)
        pairs, outliers                     measured; left out for their norm
        sample_pairs                        on which twins and predictability were measured
        dead                                by partition, features that never fired
    statistics.safetensors
        density (F,) float64                share of the pairs on which it fires
        firing_count (F,) int64             number of them
        mean_activation, max_activation (F,) float32    where it fires; 0 where it never does
        activation_by_source (S, F) float64    sum of its activations on the texts of each source
        relative_norm (F,) float32          1: only in A's decoder, 0: only in B's
        tokens_differ (F,) float32          share of its examples at which the two models' tokens differ; NaN: none
        r2_{a,b}? (F,) float32              held-out R² of its activation from either model's; NaN: it fires too rarely
        null_{a,b}? (F,) float32            the same in permuted pairs
        reference_a_{own,other,null}? (Ra,) float32    of shared features read from A alone: R² from A, from B, and from
                                            B in permuted pairs
        reference_b_{own,other,null}? (Rb,) float32    likewise of B
        difference_a_{own,other,null}? (Ca,) float32    of differences of two activations of A
        difference_b_{own,other,null}? (Cb,) float32
    histogram.safetensors
        firings (F, G, 32) uint32           number of firings by source (of more than 8, the last counts the others) and
                                            by activation (`bin_edges`, catalogue/stored.py)
    twins.safetensors                       features of other partitions that fire most alike, most first
        feature (F, 3) int32                -1: there is none
        correlation (F, 3) float32          of the two activations
"""

from __future__ import annotations

from functools import partial
from typing import Any

from modeldiff.crosscoder.settings import outlier_factor_of
from modeldiff.features.inputs import find_measured
from modeldiff.features.settings import FeaturesSettings
from modeldiff.workspace import Artifact, Order, Work, Workspace
from modeldiff.workspace.ranks import Ranks, produce_together, ranks
from modeldiff.workspace.rehearsal import Size, rehearse
from modeldiff.workspace.stage import Build

SCHEMA = 7


# A rehearsal takes seconds on a processor, and on a GPU more than its first batches.
_REHEARSED = 20_000


def plan(settings: FeaturesSettings, workspace: Workspace) -> dict[str, Any]:
    """For `--plan`: see `rehearse`. Raises as `run`."""
    found = find_measured(workspace, settings.crosscoder, settings.activations, what="plan features")
    there = int(found.activations.metrics["pairs"])
    pairs = min(settings.pairs or there, there)
    sampled = ("features: read", "features: predictability", "features: twins")
    sizes = {
        "pairs": Size(pairs, _REHEARSED, ("features: pass",)),
        "sample_pairs": Size(min(settings.sample_pairs, pairs), _REHEARSED, sampled),
    }
    return {"pairs": pairs, "rehearsal": rehearse(run, settings, sizes, workspace)}


def run(settings: FeaturesSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Measure every feature of a crosscoder, or answer with what was measured before. Under torchrun every rank calls
    this, takes its share of the pairs, and gets the artifact.

    Raises:
        InputError: there is no such crosscoder, its activations are gone, or the widths do not fit.
        DamagedError: a file of the inputs is damaged.
        MachineError: no such device, or another process of the run was lost.
    """
    ours = ranks()
    return produce_together(ours, workspace, partial(_prepare, settings, workspace, ours), name=name, force=force)


def _prepare(settings: FeaturesSettings, workspace: Workspace, ours: Ranks) -> tuple[Order, Build]:
    found = find_measured(workspace, settings.crosscoder, settings.activations, what="features")
    outlier_factor = outlier_factor_of(found.source, settings.outlier_factor)

    def make(work: Work) -> dict[str, Any]:
        # Only here: what answers from the cache does not wait for torch.
        from modeldiff.features.build import build
        from modeldiff.features.codes import Encoder
        from modeldiff.lm.device import resolve_device

        device = resolve_device(settings.device, ours.local_rank)
        work.environment.update(device=str(device), dtype="float32")
        if ours.world > 1:
            work.environment["processes"] = ours.world
        measured = found.open()
        refs = {label: one.label for label, one in found.inputs.items()}
        return build(settings, Encoder(measured.crosscoder, measured.store, device, outlier_factor), refs, work, ours)

    return Order("features", settings, found.inputs, SCHEMA, {"outlier_factor": outlier_factor}), make
