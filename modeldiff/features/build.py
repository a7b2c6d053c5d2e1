"""What the features stage makes: one pass over the pairs, twins, predictability, examples. The layout is in run.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from modeldiff.catalogue import stored
from modeldiff.catalogue.stored import Arrays, kept
from modeldiff.console import say
from modeldiff.crosscoder import Crosscoder
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.context import gather
from modeldiff.features.correlation import find_twins
from modeldiff.features.evidence import evidence_of, scales_of
from modeldiff.features.examples import Examples
from modeldiff.features.scan import scan
from modeldiff.features.settings import FeaturesSettings
from modeldiff.linear.verdict import baseline_of
from modeldiff.records import to_json
from modeldiff.splits import split
from modeldiff.workspace import Work
from modeldiff.workspace.files import require_free
from modeldiff.workspace.hdf5 import NewFile, open_hdf5
from modeldiff.workspace.ranks import Ranks

_CONTEXTS = "contexts"


def build(
    settings: FeaturesSettings, encoder: Encoder, refs: dict[str, str], work: Work, ours: Ranks
) -> dict[str, Any]:
    """Every process takes its share of the pass and of the examples' contexts; the first one does what is between, and
    the rest."""
    crosscoder, store = encoder.crosscoder, encoder.store
    result = scan(encoder, settings, work.resume, ours)
    if result is None:
        if (examples := ours.broadcast()) is not None:
            gather(encoder, examples, settings.context, work.resume / _CONTEXTS, ours)
        return {}
    statistics = result.statistics
    if not statistics.pairs:
        raise InputError("no pair is left to measure on: raise --outlier-factor, or use 0 to keep all pairs")
    shown = store.info.has_texts and not work.has(stored.EXAMPLES_NAME)
    ours.broadcast(result.examples if shown else None)
    if not work.has(stored.TWINS_NAME):
        partition_F = np.repeat(np.arange(len(crosscoder.sizes)), list(crosscoder.sizes.values()))
        work.write_bytes(stored.TWINS_NAME, save(find_twins(result.sample.codes_NF, partition_F)))
    if not work.has(stored.HISTOGRAM_NAME):
        work.write_bytes(stored.HISTOGRAM_NAME, save({"firings": statistics.histogram()}))
    evidence: Arrays = {}
    if settings.predictability:
        evidence = kept(
            work.resume / "evidence.safetensors",
            lambda: evidence_of(crosscoder, store, result.sample, split(store, result.sampled), encoder.device),
        )
    if not work.has(stored.EXAMPLES_NAME):
        _write_examples(encoder, result.examples, settings.context, work, ours)
    if not work.has(stored.STATISTICS_NAME):
        relative_F = crosscoder.relative_norm().detach().cpu().numpy()
        more = {"relative_norm": relative_F, "tokens_differ": _tokens_differ(result.examples, work)}
        work.write_bytes(stored.STATISTICS_NAME, save({**statistics.results(result.max_F), **more, **evidence}))
    count_F = statistics.count_F
    dead = {name: int((count_F[part] == 0).sum()) for name, part in crosscoder.slices.items()}
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


def _write_examples(encoder: Encoder, examples: Examples, n_context: int, work: Work, ours: Ranks) -> None:
    arrays: Arrays = {"offsets": examples.offsets, "row": examples.row, "activation": examples.activation}
    if encoder.store.info.has_texts:
        arrays |= gather(encoder, examples, n_context, work.resume / _CONTEXTS, ours)
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
