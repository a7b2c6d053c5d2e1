"""Continuations of made texts, without any language model: as an artifact, and as if it were opened."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from modeldiff.contrast.documents import Place
from modeldiff.texts.sources import Record
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from tests.features.made_crosscoder import MadeSettings


def made_continuations(
    workspace: Workspace,
    documents: Sequence[tuple[str, str]],
    places: Sequence[tuple[int, int, str, str]],
    *,
    models: tuple[str, str] = ("org/model-a", "org/model-b"),
) -> Artifact:
    """Publish them: documents of (text, source), and places of (document, end, what A said, what B said)."""

    def lines(rows: Sequence[Any]) -> bytes:
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    def build(work: Work) -> dict[str, Any]:
        read = enumerate(documents)
        texts = [{"text": text, "source": source, "number": i, "messages": None} for i, (text, source) in read]
        ends = [{"document": d, "end": end, "divergence": 0.5, "drawn": "uniform"} for d, end, _, _ in places]
        work.write_bytes("documents.jsonl", lines(texts))
        work.write_bytes("places.jsonl", lines(ends))
        for i, side in enumerate("ab", 2):
            work.write_bytes(f"said_{side}.jsonl", lines([[place[i]] for place in places]))
        info = {"models": dict(zip("ab", models, strict=True)), "revisions": {"a": None, "b": None}}
        work.write_json("continuations.json", {"format": 1, **info})
        return {}

    inputs = {f"model_{side}": Input(model, f"digest of {model}") for side, model in zip("ab", models, strict=True)}
    order = Order("continuations", MadeSettings(label=repr((documents, places))), inputs, 1)
    return produce(workspace, order, build)


def opened(documents: Sequence[Record], places: Sequence[tuple[int, int]], given: tuple[int, ...] = ()) -> Any:
    """Of `Continuations`, what says where the places are: documents, of which some are given, and (document, end)."""
    drawn = ["given" if document in given else "uniform" for document, _ in places]
    made = [Place(document, end, 0.1, how) for (document, end), how in zip(places, drawn, strict=True)]
    return SimpleNamespace(documents=documents, places=made)


def planted(
    *, documents: int = 160, after: str = "oak", word: str = "indeed", seed: int = 0
) -> dict[str, list[tuple[Any, ...]]]:
    """Documents of which every fourth speaks of `after`, where model A says `word` and model B says nothing of the
    kind; two places each. To be given to `made_continuations`."""
    rng = random.Random(seed)
    fill = [f"w{i}" for i in range(60)]
    texts, places = [], []
    for d in range(documents):
        there = d % 4 == 0
        text = " ".join([*rng.sample(fill, 6), after if there else "elm", *rng.sample(fill, 6)])
        texts.append((text, "web" if d % 2 else "code"))
        for end in (len(text) - 4, len(text)):
            a, b = (" " + " ".join(rng.sample(fill, 3)) + "." for _ in "ab")
            places.append((d, end, f" {word}{a}" if there and rng.random() < 0.9 else a, b))
    return {"documents": texts, "places": places}
