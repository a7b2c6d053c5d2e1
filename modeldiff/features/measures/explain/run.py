"""Explaining features: a `features` artifact in, an `explain` artifact out. Its layout: result.py.

One half of the sample's documents makes the descriptions; a judge's detection is tried on the other half, on documents
that do not hold the examples it is shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modeldiff.catalogue.table import FeatureTable, Partition
from modeldiff.console import progress, say
from modeldiff.crosscoder.part import part_of
from modeldiff.crosscoder.settings import outlier_factor_of
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.inputs import open_measured
from modeldiff.features.measures.explain import ExplainSettings
from modeldiff.features.measures.explain.describe import Describer
from modeldiff.features.measures.explain.detection import Excerpts, Pieces, ask_judge
from modeldiff.features.measures.explain.result import EXPLANATION_NAME, FORMAT, Explained
from modeldiff.features.measures.explain.sample import Sample, take_sample
from modeldiff.judge.choice import open_judge
from modeldiff.judge.client import Judge
from modeldiff.judge.questions import WORDING
from modeldiff.lm.device import resolve_device
from modeldiff.records import to_json
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce

SCHEMA = 4
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
    resolved = {} if judge is None else {"judge": judge.identity, "wording": WORDING}
    inputs = {"features": table.artifact.as_input(), **measured.inputs}

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(device=str(device), dtype="float32")
        factor = outlier_factor_of(measured.source, table.artifact.settings.get("outlier_factor"))
        encoder = Encoder(part_of(measured.crosscoder, sorted(ids)), measured.store, device, factor)
        sample = take_sample(encoder, pairs=settings.pairs, seed=settings.seed, resume=work.resume / "sample")
        explained = _explain(settings, table, ids, sample, judge)
        work.write_json(
            EXPLANATION_NAME,
            {
                "format": FORMAT,
                **{kind: one.label for kind, one in inputs.items()},
                "pairs": len(sample.word_N),
                "outliers": int((~sample.kept_N).sum()),
                "documents": len(np.unique(sample.document_W)),
                "held_out_documents": len(np.unique(sample.document_W[sample.second_W])),
                "judge": None if judge is None else judge.name,
                "explained": [to_json(one) for one in explained],
            },
        )
        detection = [one.detection for one in explained if one.detection is not None]
        told = {"detection": float(np.mean(detection))} if detection else {}
        return {"features": len(explained), "pairs": len(sample.word_N), **told}

    return produce(workspace, Order("explain", settings, inputs, SCHEMA, resolved), build, name=name, force=force)


def chosen_features(table: FeatureTable, settings: ExplainSettings) -> list[int]:
    """The features that the settings name, each once. Raises InputError: one does not exist, or there is none."""
    if settings.feature:
        for feature in settings.feature:
            table.row(feature, examples=0)  # says if there is no such feature
        return list(dict.fromkeys(settings.feature))
    found: list[int] = []
    partition: Partition | None = "shared" if settings.shared else settings.exclusive
    for part in (partition,) if partition else ("A", "B"):
        found += table.select(partition=part, top=settings.top).ids
    if not found:
        raise InputError(
            f"{table.artifact.ref} has no such feature that ever fires: choose others with --shared or --feature"
        )
    return found


def _explain(
    settings: ExplainSettings, table: FeatureTable, ids: list[int], sample: Sample, judge: Judge | None
) -> list[Explained]:
    """Every feature, in the order asked for."""
    excerpts = Excerpts(sample)
    describer = Describer(sample, table.info["sources"], settings.seed)
    if not describer.pairs:
        raise InputError("no pair is left to describe features from: raise --pairs")
    explained: list[Explained] = []
    shown: dict[int, list[Pieces]] = {}
    with progress("explain: descriptions", len(ids), "features") as bar:
        for id in ids:
            column = sorted(ids).index(id)
            examples = table.row(id, examples=SHOWN).examples
            shown[id] = [
                [(piece.text, piece.activation) for piece in one.pieces] for one in examples if one.pieces is not None
            ]
            seen = [one.document for one in examples if one.document is not None]
            # A seed of its own for each feature: its texts do not depend on which others are asked for.
            texts = excerpts.choose(column, settings.texts, seen, [settings.seed, id])
            explained.append(Explained(id, str(table.partition_F[id]), describer.describe(column), texts))
            bar.advance()
    if judge is None:
        return explained
    return ask_judge(judge, explained, shown, with_null=settings.detection_null)
