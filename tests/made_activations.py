"""An `activations` artifact from tensors, without any language model: for tests of the stages that read activations.

Legend: N rows (pairs), Da, Db widths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from safetensors.numpy import save

from modeldiff.records import to_json
from modeldiff.settings import Settings, setting, settings
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.activations import (
    DATASET,
    STATISTICS_NAME,
    STORE_NAME,
    SideInfo,
    StoreInfo,
    plan_name,
    rows_name,
)
from modeldiff.workspace.bits import ENCODINGS, RowWriter
from modeldiff.workspace.hdf5 import NewFile
from modeldiff.workspace.plan import Document, PairTable, ShardPlan, Tokens, write_plan


@settings
class MadeSettings(Settings):
    """Stands for the harvest's settings."""

    shard_pairs: int = setting()
    """Pairs of one shard."""


def make_activations(
    workspace: Workspace,
    x_a: torch.Tensor,
    x_b: torch.Tensor,
    shard_pairs: int = 1000,
    texts: Sequence[str] | None = None,
    *,
    sources: Sequence[str] | None = None,
    encoding: str = "float32",
    models: tuple[str | None, str | None] = (None, None),
    layers: tuple[int | None, int | None] = (None, None),
) -> Artifact:
    """Publish `x_a` (N, Da) and `x_b` (N, Db) as an activations artifact; row i of both is pair i.

    Args:
        texts: documents whose words, split at spaces, are the tokens of both sides: word i of all texts together
            belongs to row i, so there must be N words. None makes an artifact without plan files.
        sources: label of each text; "made" for all by default.
        models, layers: what store.json says about where the sides come from.
    """
    rows = len(x_a)
    stored = {side: x.to(ENCODINGS[encoding][0]) for side, x in zip(SIDES, (x_a, x_b), strict=True)}
    labels = sorted(set(sources)) if sources else ["made"]
    shards = [min(shard_pairs, rows - start) for start in range(0, rows, shard_pairs)]
    plans = _plans(texts, [labels.index(s) for s in sources or ["made"] * len(texts)], shards) if texts else None
    about = {
        side: _side_info(stored[side], encoding, model, layer)
        for side, model, layer in zip(SIDES, models, layers, strict=True)
    }
    info = StoreInfo(pairs=rows, shards=shards, sources=labels, has_texts=plans is not None, sides=about)

    def build(work: Work) -> dict[str, int]:
        arrays = {f"mean_{side}": stored[side].double().nan_to_num().mean(dim=0).numpy() for side in SIDES}
        for side in SIDES:
            for shard, x_ND in enumerate(stored[side].split(shard_pairs)):
                temporary = work.temporary(rows_name(shard, side))
                with NewFile(temporary) as file:
                    writer = RowWriter(file, DATASET, *x_ND.shape, encoding)
                    writer.append(x_ND)
                work.commit(temporary, rows_name(shard, side))
                arrays[rows_name(shard, side)] = writer.digests
        for shard, plan in enumerate(plans or []):
            temporary = work.temporary(plan_name(shard))
            write_plan(temporary, plan)
            work.commit(temporary, plan_name(shard))
        work.write_bytes(STATISTICS_NAME, save(arrays))
        work.write_json(STORE_NAME, to_json(info))
        return {"pairs": rows}

    content = hashlib.sha256(repr((texts, sources, encoding, models, layers)).encode())
    for side in SIDES:
        content.update(stored[side].float().numpy().tobytes())
    order = Order("activations", MadeSettings(shard_pairs=shard_pairs), {"made": Input("made", content.hexdigest())}, 1)
    return produce(workspace, order, build)


def _side_info(x_ND: torch.Tensor, encoding: str, model: str | None, layer: int | None) -> SideInfo:
    norm_N = x_ND.double().nan_to_num().norm(dim=1)  # a NaN may be planted, in rows that the harvest would refuse
    quantiles = {f"{q:g}": float(norm_N.quantile(q)) for q in (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)}
    return SideInfo(
        width=x_ND.shape[1], encoding=encoding, median_norm=quantiles["0.5"], norm_quantiles=quantiles, model=model,
        revision=None, layer=layer,
    )  # fmt: skip


def _plans(texts: Sequence[str], sources: list[int], shards: list[int]) -> list[ShardPlan]:
    vocabulary = {word: i for i, word in enumerate(sorted({word for text in texts for word in text.split(" ")}))}
    documents = [_document(text, sources[i], i, vocabulary) for i, text in enumerate(texts)]
    places = [(d, t) for d, document in enumerate(documents) for t in range(len(document.tokens["a"].ids))]
    assert len(places) == sum(shards), f"{sum(shards)} rows need as many words, the texts have {len(places)}"
    plans, first = [], 0
    for count in shards:
        here = places[first : first + count]
        low = here[0][0]  # a document that crosses the border is in both shards, whole
        pairs = PairTable(
            document=np.array([d - low for d, _ in here], np.int32),
            token=dict.fromkeys(SIDES, np.array([t for _, t in here], np.int32)),
            char_end=np.array([documents[d].tokens["a"].ends[t] for d, t in here], np.int32),
            window=dict.fromkeys(SIDES, np.ones(count, np.int32)),
        )
        plans.append(ShardPlan(documents[low : here[-1][0] + 1], pairs))
        first += count
    return plans


def _document(text: str, source: int, index: int, vocabulary: dict[str, int]) -> Document:
    words = text.split(" ")
    length = np.array([len(word) for word in words], np.int32)
    ends = np.cumsum(length + 1, dtype=np.int32) - 1
    ids = np.array([vocabulary[word] for word in words], np.int32)
    return Document(text, source, index, dict.fromkeys(SIDES, Tokens(ids, ends - length, ends)))
