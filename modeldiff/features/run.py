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

from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from modeldiff.catalogue import stored
from modeldiff.catalogue.stored import Arrays, kept
from modeldiff.console import say
from modeldiff.crosscoder import Crosscoder
from modeldiff.crosscoder.settings import outlier_factor_of
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.context import gather
from modeldiff.features.correlation import find_twins
from modeldiff.features.evidence import evidence_of, scales_of
from modeldiff.features.examples import Examples
from modeldiff.features.inputs import open_measured
from modeldiff.features.scan import scan
from modeldiff.features.settings import FeaturesSettings
from modeldiff.linear.verdict import baseline_of
from modeldiff.lm.device import resolve_device
from modeldiff.records import to_json
from modeldiff.splits import split
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.files import require_free
from modeldiff.workspace.hdf5 import NewFile, open_hdf5

SCHEMA = 6


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
    result = scan(encoder, settings, work.resume)
    statistics = result.statistics
    if not statistics.pairs:
        raise InputError("no pair is left to measure on: raise --outlier-factor, or use 0 to keep all pairs")
    if not work.has(stored.TWINS_NAME):
        partition_F = np.repeat(np.arange(len(crosscoder.sizes)), list(crosscoder.sizes.values()))
        work.write_bytes(stored.TWINS_NAME, save(find_twins(result.sample.codes_NF, partition_F)))
    if not work.has(stored.HISTOGRAM_NAME):
        work.write_bytes(stored.HISTOGRAM_NAME, save({"firings": statistics.histogram_FGH}))
    evidence: Arrays = {}
    if settings.predictability:
        evidence = kept(
            work.resume / "evidence.safetensors",
            lambda: evidence_of(crosscoder, store, result.sample, split(store, result.sampled), encoder.device),
        )
    if not work.has(stored.EXAMPLES_NAME):
        _write_examples(encoder, result.examples, settings.context, work)
    if not work.has(stored.STATISTICS_NAME):
        relative_F = crosscoder.relative_norm().detach().cpu().numpy()
        more = {"relative_norm": relative_F, "tokens_differ": _tokens_differ(result.examples, work)}
        work.write_bytes(stored.STATISTICS_NAME, save({**statistics.results(), **more, **evidence}))
    dead = {name: int((statistics.count_F[part] == 0).sum()) for name, part in crosscoder.slices.items()}
    description = {
        "format": stored.FORMAT,
        **refs,
        "sides": to_json(store.info.sides),
        "partitions": {name: [part.start, part.stop] for name, part in crosscoder.slices.items()},
        "sources": store.info.sources,
        "has_texts": store.info.has_texts,
        "predictability": settings.predictability,
        **_scales(evidence, crosscoder),
        "pairs": statistics.pairs,
        "outliers": statistics.outliers,
        "sample_pairs": len(result.sample.rows_N),
        "dead": dead,
    }
    work.write_json(stored.FEATURES_NAME, description)
    _say_what_is_missing(description)
    return {
        "features": crosscoder.n_features,
        "dead": sum(dead.values()),
        "pairs": statistics.pairs,
        "outliers": statistics.outliers,
        "examples": len(result.examples),
    }


def _scales(evidence: Arrays, crosscoder: Crosscoder) -> dict[str, Any]:
    """What the verdicts are held against, and what differences of activations show; nothing without evidence."""
    scales = scales_of(evidence, crosscoder) if evidence else {}
    differences = {
        side: baseline_of(*(evidence[f"difference_{side}_{what}"] for what in ("own", "other", "null")), scale=scale)
        for side, scale in scales.items()
    }
    return {"scales": to_json(scales), "differences": to_json(differences)}


def _say_what_is_missing(description: dict[str, Any]) -> None:
    if description["outliers"]:
        say(
            f"{description['outliers']:,} pairs with an outlying norm were left out ({description['pairs']:,} measured)"
        )
    if any(description["dead"].values()):
        say("features that never fired: " + ", ".join(f"{n:,} {name}" for name, n in description["dead"].items()))
    if not description["has_texts"]:
        say("the activations have no texts: examples are row numbers only, and there are no text sources")


def _write_examples(encoder: Encoder, examples: Examples, n_context: int, work: Work) -> None:
    arrays: Arrays = {"offsets": examples.offsets, "row": examples.row, "activation": examples.activation}
    if encoder.store.info.has_texts:
        arrays |= gather(encoder, examples, n_context, work.resume / "contexts")
    require_free(work.folder, sum(array.nbytes for array in arrays.values()), f"{len(examples):,} examples")
    temporary = work.temporary(stored.EXAMPLES_NAME)
    with NewFile(temporary) as file:
        for name, array in arrays.items():
            file[name] = array
    work.commit(temporary, stored.EXAMPLES_NAME)


def _tokens_differ(examples: Examples, work: Work) -> NDArray[np.float32]:
    """(F,) share of each feature's examples, as they were written, at which the two models' tokens differ; NaN without
    examples or texts."""
    count_F = np.diff(examples.offsets)
    with open_hdf5(work.folder / stored.EXAMPLES_NAME) as file:
        if "tokens_differ" not in file:
            return np.full(len(count_F), np.nan, np.float32)
        differ_F = np.bincount(examples.feature, file["tokens_differ"][()], len(count_F))
    return np.where(count_F > 0, differ_F / np.maximum(1, count_F), np.nan).astype(np.float32)
