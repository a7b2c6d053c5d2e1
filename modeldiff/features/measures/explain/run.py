"""Explaining features: a `features` artifact in, an `explain` artifact out. Its layout: stored.py.

One half of the sample's documents makes the descriptions; a judge's detection is tried on the other half, on documents
that do not hold the examples it is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modeldiff.console import progress, say
from modeldiff.crosscoder.part import part_of
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.example import Example
from modeldiff.features.inputs import Measured, open_measured, outlier_factor_of
from modeldiff.features.measures.explain.describe import Describer, Description
from modeldiff.features.measures.explain.excerpts import Chosen, Excerpts
from modeldiff.features.measures.explain.judged import Question, ask_all
from modeldiff.features.measures.explain.sample import Sample, read_texts, take_sample
from modeldiff.features.measures.explain.settings import KIND, ExplainSettings
from modeldiff.features.measures.explain.stored import EXPLANATION_NAME, FORMAT, Explained, HeldOut
from modeldiff.features.table import FeatureTable, Partition
from modeldiff.judge.base import Judge
from modeldiff.judge.opening import open_judge
from modeldiff.judge.questions import WORDING
from modeldiff.lm.device import resolve_device
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce

SCHEMA = 2
SHOWN = 10
"""Top examples that a judge is shown (paper B.4.1)."""


def run(settings: ExplainSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Describe features from the texts, and ask a judge about them if the settings name one.

    Raises:
        InputError: there are no such features, their crosscoder or activations are gone, there are no texts, or the
            judge refuses or would be asked too often.
        DamagedError: a file of the inputs is damaged.
        MachineError: the judge gives no answers; what it answered before is kept.
    """
    table = FeatureTable(workspace.find("features", settings.features))
    ids = chosen_features(table, settings)
    if settings.features is None:
        say(f"explanation of {len(ids)} features of {table.artifact.ref}")
    if not table.info["has_texts"]:
        raise InputError(
            f"{table.artifact.ref} was measured on activations without texts: explaining needs them; import them again "
            "with --import-texts"
        )
    source, activations = (workspace.source_of(table.artifact, kind) for kind in ("crosscoder", "activations"))
    measured = open_measured(workspace, source.ref, activations.ref, what="explanation")
    device = resolve_device(settings.device)
    judge = None if settings.judge == "none" else open_judge(settings, workspace.judge_answers, device)
    resolved = {} if judge is None else {"judge": judge.identity(), "wording": WORDING}

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype="float32")
        return _build(settings, table, measured, ids, device, judge, work)

    inputs = {"features": table.artifact.as_input(), **measured.inputs}
    return produce(workspace, Order(KIND, settings, inputs, SCHEMA, resolved), build, name=name, force=force)


def chosen_features(table: FeatureTable, settings: ExplainSettings) -> list[int]:
    """The features that the settings name, each once.

    Raises:
        InputError: one does not exist, or there is none.
    """
    if settings.feature:
        for feature in settings.feature:
            table.row(feature, examples=0)  # says if there is no such feature
        return list(dict.fromkeys(settings.feature))
    found: list[int] = []
    partition: Partition | None = "shared" if settings.shared else settings.exclusive
    for part in (partition,) if partition else ("A", "B"):
        listed = table.select(exclusive=part, top=settings.top, anywhere=settings.anywhere).ids
        found += [feature for feature in listed if table.statistics["firing_count"][feature] > 0]
    if not found:
        raise InputError(
            f"{table.artifact.ref} has no such feature that ever fires: choose others with --shared or --feature"
        )
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class _Feature:
    """A chosen feature on the way to being explained."""

    id: int
    description: Description
    chosen: Chosen | str
    examples: list[Example]


def _build(
    settings: ExplainSettings,
    table: FeatureTable,
    measured: Measured,
    ids: list[int],
    device: torch.device,
    judge: Judge | None,
    work: Work,
) -> dict[str, Any]:
    store = measured.store
    factor = outlier_factor_of(measured.source, table.artifact.settings.get("outlier_factor"))
    measured_features = sorted(ids)
    encoder = Encoder(part_of(measured.crosscoder, measured_features), store, device, factor)
    sample = take_sample(encoder, pairs=settings.pairs, seed=settings.seed, resume=work.resume / "sample")
    excerpts = Excerpts.of(sample)
    describer = Describer(sample, store.info.sources, settings.seed)
    if not describer.pairs:
        raise InputError("no pair is left to describe features from: raise --pairs")
    column = {feature: i for i, feature in enumerate(measured_features)}
    features = []
    with progress("explain: descriptions", len(ids), "features") as bar:
        for id in ids:
            description = describer.describe(column[id], settings.words)
            examples = table.row(id, examples=SHOWN).examples
            seen = np.array([one.document for one in examples], np.int64)
            # Of its own for each feature: the texts of one do not depend on which others are asked for.
            rng = np.random.default_rng([settings.seed, id])
            features.append(_Feature(id, description, excerpts.choose(column[id], settings.texts, seen, rng), examples))
            bar.advance()
    explained = [
        Explained(
            id=one.id,
            partition=str(table.partition_F[one.id]),
            description=one.description,
            texts=_held_out(measured, excerpts, one.chosen),
            judge=None,
        )
        for one in features
    ]
    if judge is not None:
        explained = _judged(settings, judge, features, explained)
    info = {
        "format": FORMAT,
        "features": table.artifact.ref,
        "crosscoder": measured.source.ref,
        "activations": measured.activations.ref,
        **_counts(sample, describer),
        "judge": None if judge is None else judge.name,
        "explained": [one.to_json() for one in explained],
    }
    work.write_json(EXPLANATION_NAME, info)
    return _metrics(sample, explained)


def _held_out(measured: Measured, excerpts: Excerpts, chosen: Chosen | str) -> list[HeldOut]:
    if isinstance(chosen, str):
        return []
    numbers = list(chosen.activation)
    texts = read_texts(measured.store, [excerpts.span(number) for number in numbers])
    source_W, window_N = excerpts.sample.source_W, excerpts.sample.window_N
    return [
        HeldOut(
            document=int(excerpts.document_E[number]),
            source=measured.store.info.sources[source_W[window_N[excerpts.start_E[number]]]],
            activation=activation,
            text=text,
        )
        for (number, activation), text in zip(chosen.activation.items(), texts, strict=True)
    ]


def _judged(
    settings: ExplainSettings, judge: Judge, features: Sequence[_Feature], explained: Sequence[Explained]
) -> list[Explained]:
    questions = []
    for feature, one in zip(features, explained, strict=True):
        tried = one.texts
        # In a random order: their place says nothing about them.
        order = np.random.default_rng([settings.seed, feature.id, 1]).permutation(len(tried)).tolist()
        shown = [example.pieces for example in feature.examples if example.pieces is not None]
        questions.append(
            Question(
                id=feature.id,
                examples=[[(piece.text, piece.activation) for piece in pieces] for pieces in shown],
                texts=[tried[i].text for i in order],
                active=[int(tried[i].activation > 0) for i in order],
            )
        )
    verdicts = ask_all(judge, questions, with_null=settings.detection_null)
    return [Explained(one.id, one.partition, one.description, one.texts, verdicts[one.id]) for one in explained]


def _counts(sample: Sample, describer: Describer) -> dict[str, int]:
    return {
        "pairs": len(sample.word_N),
        "describing_pairs": describer.pairs,
        "outliers": int((~sample.kept_N).sum()),
        "documents": len(np.unique(sample.document_W)),
        "held_out_documents": len(np.unique(sample.document_W[sample.second_W])),
    }


def _metrics(sample: Sample, explained: Sequence[Explained]) -> dict[str, Any]:
    """For the manifest: how many were described and detected, by whom."""
    metrics: dict[str, Any] = {
        "features": len(explained),
        "pairs": len(sample.word_N),
        "described": sum(one.description.missing is None for one in explained),
    }
    said = [one.judge for one in explained if one.judge is not None]
    if said:
        tried = [one.detection for one in said if one.detection is not None]
        metrics["judge"] = {
            "explained": sum(one.explanation is not None for one in said),
            "concerning": sum(bool(one.concerning) for one in said),
            "detection": float(np.mean(tried)) if tried else None,
            "interpretable": sum(bool(one.interpretable) for one in said),
            "tried": len(tried),
        }
    return metrics
