"""The features stage: a crosscoder and activations in, a `features` artifact out.

Layout (normative; F features, S text sources, E examples of all features together):
    features.json            format, refs of the inputs, both sides' models and layers, sizes of the partitions, counts
    statistics.safetensors   (F,): density, firing_count, mean_activation, max_activation, sum_activation, sum_squares,
                             relative_norm, decoder_norm_a, decoder_norm_b; tokens_differ: share of its examples at
                             which the two models' tokens begin or end at other characters, NaN when it has none or
                             there are no texts; unless predictability is off also
                             r2_a, r2_b, null_a, null_b (F,), alone_X_Y and random_X_Y (R,) for the models X (a, b) and
                             Y (own, other, null): evidence.py;
                             (S, F): firing_count_by_source, activation_by_source; (S,): pairs_by_source
    twins.safetensors        feature, correlation (F, 3): see twins.py
    figures/predictability.png   the same as a picture, unless predictability is off
    examples.h5              offsets (F + 1,), row, activation (E,); with texts also the arrays of context.py
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file

from modeldiff.console import say
from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import InputError
from modeldiff.features.alone import SEED
from modeldiff.features.codes import Encoder
from modeldiff.features.context import gather
from modeldiff.features.evidence import Evidence, evidence_of
from modeldiff.features.examples import Examples
from modeldiff.features.figure import predictability_figure
from modeldiff.features.inputs import open_measured, outlier_factor_of
from modeldiff.features.scan import ScanResult, scan
from modeldiff.features.settings import FeaturesSettings
from modeldiff.features.statistics import Arrays, FeatureStatistics
from modeldiff.features.twins import find_twins
from modeldiff.lm.device import resolve_device
from modeldiff.splits import split
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.files import replace_into, temporary_path

SCHEMA = 5
FORMAT = 4
FEATURES_NAME = "features.json"
STATISTICS_NAME = "statistics.safetensors"
TWINS_NAME = "twins.safetensors"
EXAMPLES_NAME = "examples.h5"
FIGURE_NAME = "figures/predictability.png"


def run(settings: FeaturesSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Measure every feature of a crosscoder.

    Raises:
        InputError: there is no such crosscoder, its activations are gone, or the widths do not fit.
        DamagedError: a file of the inputs is damaged.
    """
    measured = open_measured(workspace, settings.crosscoder, settings.activations, what="features")
    crosscoder, store, inputs = measured.crosscoder, measured.store, measured.inputs
    device = resolve_device(settings.device)
    outlier_factor = outlier_factor_of(measured.source, settings.outlier_factor)
    refs = {label: one.label for label, one in inputs.items()}

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype="float32")
        return _build(settings, crosscoder, store, device, outlier_factor, refs, work)

    order = Order("features", settings, inputs, SCHEMA, {"outlier_factor": outlier_factor})
    return produce(workspace, order, build, name=name, force=force)


def _build(
    settings: FeaturesSettings,
    crosscoder: Crosscoder,
    store: ActivationStore,
    device: torch.device,
    outlier_factor: float,
    refs: dict[str, str],
    work: Work,
) -> dict[str, Any]:
    encoder = Encoder(crosscoder, store, device, outlier_factor)
    result = scan(
        encoder,
        pairs=settings.pairs,
        sample_pairs=settings.sample_pairs,
        examples=settings.examples,
        resume=work.resume,
    )
    if not result.statistics.pairs:
        raise InputError("no pair is left to measure on: raise --outlier-factor, or use 0 to keep all pairs")
    if not work.has(TWINS_NAME):
        twins = find_twins(result.sample.codes_NF, partition_numbers(crosscoder))
        work.write_bytes(TWINS_NAME, save({"feature": twins.feature, "correlation": twins.correlation}))
    evidence = _evidence(settings, crosscoder, store, result, device, work)
    with ThreadPoolExecutor(1, "figure") as beside:
        picture = None
        if evidence and not work.has(FIGURE_NAME):
            title = (
                f"features of {refs['crosscoder']} on {refs['activations']}: {len(result.sample.rows_N):,} pairs, "
                f"a fifth held out; directions of seed {SEED}"
            )
            picture = beside.submit(predictability_figure, evidence, crosscoder, title)
        if not work.has(EXAMPLES_NAME):
            _write_examples(encoder, result.examples, settings.context, work)
        if not work.has(STATISTICS_NAME):
            differ_F = _tokens_differ(result.examples, work)
            work.write_bytes(STATISTICS_NAME, save(_statistics(crosscoder, result.statistics, differ_F, evidence)))
        if picture:
            work.write_bytes(FIGURE_NAME, picture.result())
    dead = dead_by_partition(crosscoder, result.statistics)
    work.write_json(FEATURES_NAME, _description(crosscoder, store, result, refs, dead, evidence))
    _tell(store, result.statistics, dead)
    return {
        "features": crosscoder.n_features,
        "dead": sum(dead.values()),
        "pairs": result.statistics.pairs,
        "outliers": result.statistics.outliers,
        "examples": len(result.examples),
    }


def partition_numbers(crosscoder: Crosscoder) -> NDArray[np.int64]:
    """(F,): 0, 1, 2 for A, shared, B."""
    sizes = [part.stop - part.start for part in crosscoder.slices.values()]
    return np.repeat(np.arange(len(sizes)), sizes)


def dead_by_partition(crosscoder: Crosscoder, statistics: FeatureStatistics) -> dict[str, int]:
    """How many features of each partition never fired."""
    return {name: int((statistics.count_F[part] == 0).sum()) for name, part in crosscoder.slices.items()}


def _evidence(
    settings: FeaturesSettings,
    crosscoder: Crosscoder,
    store: ActivationStore,
    result: ScanResult,
    device: torch.device,
    work: Work,
) -> Evidence | None:
    """Kept for a resumed run; nothing when predictability is off."""
    if not settings.predictability:
        return None
    path = work.resume / "evidence.safetensors"
    if not path.exists():
        temporary = temporary_path(path)
        stretches = split(store, result.sampled)
        save_file(evidence_of(crosscoder, store, result.sample, stretches, device).arrays(), temporary)
        replace_into(temporary, path)
    return Evidence.from_arrays(load_file(path))


def _statistics(
    crosscoder: Crosscoder, statistics: FeatureStatistics, differ_F: NDArray[np.float32], evidence: Evidence | None
) -> Arrays:
    norms = {f"decoder_norm_{side}": norm_F.cpu().numpy() for side, norm_F in crosscoder.decoder_norms().items()}
    relative = crosscoder.relative_norm().detach().cpu().numpy()
    more = {**norms, "relative_norm": relative, "tokens_differ": differ_F}
    return {**statistics.results(), **more, **(evidence.arrays() if evidence else {})}


def _write_examples(encoder: Encoder, examples: Examples, n_context: int, work: Work) -> None:
    arrays: Arrays = {"offsets": examples.offsets, "row": examples.row, "activation": examples.activation}
    if encoder.store.info.has_texts:
        arrays |= gather(encoder, examples, n_context, work.resume / "contexts").arrays()
    temporary = work.temporary(EXAMPLES_NAME)
    with h5py.File(temporary, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    work.commit(temporary, EXAMPLES_NAME)


def _tokens_differ(examples: Examples, work: Work) -> NDArray[np.float32]:
    """(F,) share of each feature's examples, as they were written, at which the two models' tokens differ; NaN without
    examples or texts."""
    count_F = np.diff(examples.offsets)
    with h5py.File(work.folder / EXAMPLES_NAME, "r") as file:
        if "tokens_differ" not in file:
            return np.full(len(count_F), np.nan, np.float32)
        differ_F = np.bincount(examples.feature, file["tokens_differ"][()], len(count_F))
    return np.where(count_F > 0, differ_F / np.maximum(1, count_F), np.nan).astype(np.float32)


def _description(
    crosscoder: Crosscoder,
    store: ActivationStore,
    result: ScanResult,
    refs: dict[str, str],
    dead: dict[str, int],
    evidence: Evidence | None,
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        **refs,
        "sides": {side: dataclasses.asdict(info) for side, info in store.info.sides.items()},
        "partitions": {name: [part.start, part.stop] for name, part in crosscoder.slices.items()},
        "sources": store.info.sources,
        "has_texts": store.info.has_texts,
        "predictability": evidence is not None,
        "scales": {side: scale.to_json() for side, scale in evidence.scales(crosscoder).items()} if evidence else {},
        "random_directions": {side: one.to_json() for side, one in evidence.controls(crosscoder).items()}
        if evidence
        else {},
        "pairs": result.statistics.pairs,
        "outliers": result.statistics.outliers,
        "sample_pairs": len(result.sample.rows_N),
        "dead": dead,
    }


def _tell(store: ActivationStore, statistics: FeatureStatistics, dead: dict[str, int]) -> None:
    if statistics.outliers:
        say(f"{statistics.outliers:,} pairs with an outlying norm were left out ({statistics.pairs:,} measured)")
    if any(dead.values()):
        say("features that never fired: " + ", ".join(f"{count:,} {name}" for name, count in dead.items()))
    if not store.info.has_texts:
        say("the activations have no texts: examples are row numbers only, and there are no text sources")
