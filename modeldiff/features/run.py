"""The features stage: a crosscoder and activations in, a `features` artifact out.

Layout (normative; F features, S text sources, E examples of all features together):
    features.json            format, refs of the inputs, both sides' models and layers, sizes of the partitions, counts
    statistics.safetensors   (F,): density, firing_count, mean_activation, max_activation, relative_norm;
                             tokens_differ: share of its examples at which the two models' tokens begin or end at other
                             characters, NaN when it has none or there are no texts; (S, F): activation_by_source;
                             unless predictability is off also r2_a, r2_b, null_a, null_b (F,), reference_X_Y and
                             difference_X_Y (R,) for the models X (a, b) and Y (own, other, null): evidence.py
    twins.safetensors        feature, correlation (F, 3): see correlation.py
    examples.h5              offsets (F + 1,), row, activation (E,); with texts also the arrays of context.py
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save, save_file

from modeldiff.console import say
from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import InputError
from modeldiff.features.codes import Arrays, Encoder
from modeldiff.features.context import gather
from modeldiff.features.correlation import find_twins
from modeldiff.features.evidence import Evidence, baseline_of, evidence_of
from modeldiff.features.examples import Examples
from modeldiff.features.inputs import open_measured, outlier_factor_of
from modeldiff.features.scan import ScanResult, scan
from modeldiff.features.settings import FeaturesSettings
from modeldiff.lm.device import resolve_device
from modeldiff.records import to_json
from modeldiff.splits import split
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.activations import ActivationStore
from modeldiff.workspace.files import replace_into, temporary_path

SCHEMA = 5
FORMAT = 5
FEATURES_NAME = "features.json"
STATISTICS_NAME = "statistics.safetensors"
TWINS_NAME = "twins.safetensors"
EXAMPLES_NAME = "examples.h5"


def run(settings: FeaturesSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Measure every feature of a crosscoder.

    Raises:
        InputError: there is no such crosscoder, its activations are gone, or the widths do not fit.
        DamagedError: a file of the inputs is damaged.
    """
    measured = open_measured(workspace, settings.crosscoder, settings.activations, what="features")
    device = resolve_device(settings.device)
    outlier_factor = outlier_factor_of(measured.source, settings.outlier_factor)
    refs = {label: one.label for label, one in measured.inputs.items()}

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype="float32")
        return _build(settings, Encoder(measured.crosscoder, measured.store, device, outlier_factor), refs, work)

    order = Order("features", settings, measured.inputs, SCHEMA, {"outlier_factor": outlier_factor})
    return produce(workspace, order, build, name=name, force=force)


def _build(settings: FeaturesSettings, encoder: Encoder, refs: dict[str, str], work: Work) -> dict[str, Any]:
    crosscoder, store = encoder.crosscoder, encoder.store
    result = scan(
        encoder,
        pairs=settings.pairs,
        sample_pairs=settings.sample_pairs,
        examples=settings.examples,
        resume=work.resume,
    )
    statistics = result.statistics
    if not statistics.pairs:
        raise InputError("no pair is left to measure on: raise --outlier-factor, or use 0 to keep all pairs")
    if not work.has(TWINS_NAME):
        sizes = [part.stop - part.start for part in crosscoder.slices.values()]
        twins = find_twins(result.sample.codes_NF, np.repeat(np.arange(len(sizes)), sizes))
        work.write_bytes(TWINS_NAME, save({"feature": twins.feature, "correlation": twins.correlation}))
    evidence = _evidence(crosscoder, store, result, encoder.device, work) if settings.predictability else None
    if not work.has(EXAMPLES_NAME):
        _write_examples(encoder, result.examples, settings.context, work)
    if not work.has(STATISTICS_NAME):
        relative_F = crosscoder.relative_norm().detach().cpu().numpy()
        arrays = statistics.results() | {"relative_norm": relative_F}
        arrays |= {"tokens_differ": _tokens_differ(result.examples, work)} | (evidence.arrays() if evidence else {})
        work.write_bytes(STATISTICS_NAME, save(arrays))
    dead = {name: int((statistics.count_F[part] == 0).sum()) for name, part in crosscoder.slices.items()}
    scales = evidence.scales(crosscoder) if evidence else {}
    baselines = {side: baseline_of(evidence.difference[side], scale) for side, scale in scales.items() if evidence}
    description = {
        "format": FORMAT,
        **refs,
        "sides": to_json(store.info.sides),
        "partitions": {name: [part.start, part.stop] for name, part in crosscoder.slices.items()},
        "sources": store.info.sources,
        "has_texts": store.info.has_texts,
        "predictability": settings.predictability,
        "scales": to_json(scales),
        "differences": to_json(baselines),
        "pairs": statistics.pairs,
        "outliers": statistics.outliers,
        "sample_pairs": len(result.sample.rows_N),
        "dead": dead,
    }
    work.write_json(FEATURES_NAME, description)
    if statistics.outliers:
        say(f"{statistics.outliers:,} pairs with an outlying norm were left out ({statistics.pairs:,} measured)")
    if any(dead.values()):
        say("features that never fired: " + ", ".join(f"{count:,} {name}" for name, count in dead.items()))
    if not store.info.has_texts:
        say("the activations have no texts: examples are row numbers only, and there are no text sources")
    return {
        "features": crosscoder.n_features,
        "dead": sum(dead.values()),
        "pairs": statistics.pairs,
        "outliers": statistics.outliers,
        "examples": len(result.examples),
    }


def _evidence(
    crosscoder: Crosscoder, store: ActivationStore, result: ScanResult, device: torch.device, work: Work
) -> Evidence:
    """Kept for a resumed run."""
    path = work.resume / "evidence.safetensors"
    if not path.exists():
        temporary = temporary_path(path)
        stretches = split(store, result.sampled)
        save_file(evidence_of(crosscoder, store, result.sample, stretches, device).arrays(), temporary)
        replace_into(temporary, path)
    return Evidence.from_arrays(load_file(path))


def _write_examples(encoder: Encoder, examples: Examples, n_context: int, work: Work) -> None:
    arrays: Arrays = {"offsets": examples.offsets, "row": examples.row, "activation": examples.activation}
    if encoder.store.info.has_texts:
        arrays |= gather(encoder, examples, n_context, work.resume / "contexts")
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
