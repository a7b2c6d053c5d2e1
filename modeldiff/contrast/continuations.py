"""The continuations stage: both models go on from the same places in texts. Depends on the models and texts alone.
Its layout: documents.py.

An interrupted run keeps the divergences of a model and every finished part of the sampling.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from modeldiff.console import progress, say
from modeldiff.contrast.divergence import KEPT, divergence, likeliest
from modeldiff.contrast.documents import Document, Place, choose_places, drawn_documents, open_document, read_prompts
from modeldiff.contrast.sampling import Models, sample
from modeldiff.contrast.settings import ContinuationsSettings
from modeldiff.errors import InputError
from modeldiff.lm.buckets import common_buckets, token_strings
from modeldiff.lm.chat import ChatError
from modeldiff.lm.device import device_and_dtype
from modeldiff.lm.load import load_tokenizer, model_identity, read_geometry
from modeldiff.lm.ref import ModelRef, model_input, refs_of
from modeldiff.sides import SIDES
from modeldiff.texts.sources import LeftOut, Record, Source, mix, parse_source, source_digest
from modeldiff.texts.tokenize import open_reader
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace
from modeldiff.workspace.artifact import check_format
from modeldiff.workspace.files import json_lines, read_json, read_json_lines, require_free
from modeldiff.workspace.ranks import Ranks, produce_together, ranks
from modeldiff.workspace.rehearsal import Size, rehearse
from modeldiff.workspace.stage import Build

SCHEMA = 3
FORMAT = 1
NAME = "continuations.json"
DOCUMENTS, PLACES, SAID = "documents.jsonl", "places.jsonl", {side: f"said_{side}.jsonl" for side in SIDES}
_REHEARSED = 256


class Continuations:
    """A `continuations` artifact, opened. Raises DamagedError: a file is missing or damaged; InputError: it was written
    by another version of modeldiff."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.info: dict[str, Any] = read_json(artifact.file(NAME))
        check_format(self.info, artifact.folder / NAME, FORMAT)
        documents, places = (read_json_lines(artifact.file(name)) for name in (DOCUMENTS, PLACES))
        said = {side: read_json_lines(artifact.file(SAID[side])) for side in SIDES}
        self.documents = [Record(line["source"], line["text"], tuple(line["messages"] or ())) for line in documents]
        self.number = [line["number"] for line in documents]
        self.places = [Place(**line, said={side: said[side][i] for side in SIDES}) for i, line in enumerate(places)]

    def models(
        self, workspace: Workspace, device: torch.device, dtype: torch.dtype, *, trust_remote_code: bool
    ) -> Models:
        """The models that continued the texts. Raises InputError: one has changed since."""
        names, revisions = self.info["models"], self.info["revisions"]
        refs = {side: ModelRef(names[side], revisions[side], trust_remote_code) for side in SIDES}
        for side, ref in refs.items():
            made_with = self.artifact.manifest.inputs[f"model_{side}"]
            if made_with.digest not in model_identity(ref, workspace.digest_of).values():
                made = f"model {made_with.label} has changed since {self.artifact.ref} was made"
                raise InputError(f"{made}: run the continuations again")
        return Models(refs, device, dtype)

    def before(self, place: int) -> str:
        one = self.places[place]
        return self.documents[one.document].text[: one.end]


def plan(settings: ContinuationsSettings, workspace: Workspace) -> dict[str, Any]:
    """For `--plan`: see `rehearse`. Raises as `run`."""
    settings = with_models_of(settings, workspace)
    sizes = {
        "places": Size(settings.places, _REHEARSED, ("continuations",)),
        "documents": Size(count_documents(settings), _REHEARSED, ("read", "next words")),
    }
    note = "comparing, and the cause of what is found"
    return {"places": settings.places, "not_in_it": note, "rehearsal": rehearse(run, settings, sizes, workspace)}


def count_documents(settings: ContinuationsSettings) -> int:
    """How many a run would read: as many as places where there are so many, and all prompts."""
    records = mix([parse_source(entry) for entry in settings.texts], settings.text_field, settings.source_field)
    texts = sum(1 for _ in islice(LeftOut(strict=settings.strict).usable(records), settings.places))
    prompts = read_prompts(settings.prompts, settings.text_field, settings.source_field) if settings.prompts else []
    return texts + len(prompts)


def run(
    settings: ContinuationsSettings, workspace: Workspace, *, name: str | None = None, force: bool = False
) -> Artifact:
    """Let both models continue the same texts. Under torchrun every rank calls this, samples its share, and gets the
    artifact. Raises InputError: a model or text cannot be used, or the texts hold no
    place that both models can go on from."""
    ours = ranks()
    return produce_together(ours, workspace, partial(_prepare, settings, workspace, ours), name=name, force=force)


def _prepare(settings: ContinuationsSettings, workspace: Workspace, ours: Ranks) -> tuple[Order, Build]:
    settings = with_models_of(settings, workspace)
    digest = workspace.digest_of
    refs = refs_of(settings)
    inputs = {f"model_{side}": model_input(ref, digest) for side, ref in refs.items()}
    sources = [parse_source(entry) for entry in settings.texts]
    for i, (source, entry) in enumerate(zip(sources, settings.texts, strict=True), 1):
        inputs[f"text_{i}"] = Input(entry, source_digest(source, digest))
    fields = settings.text_field, settings.source_field
    prompts = read_prompts(settings.prompts, *fields) if settings.prompts else []
    if settings.prompts:
        inputs["prompts"] = Input(str(settings.prompts), digest(settings.prompts))
    device, dtype, names = device_and_dtype(settings, ours.local_rank)

    def build(work: Work) -> dict[str, Any]:
        """Rank 0 reads the texts and chooses the places; every rank lets the models read and write its part of them."""
        work.environment.update(names)
        if ours.world > 1:
            work.environment["processes"] = ours.world
        models = Models(refs, device, dtype)
        documents = ours.broadcast(_read(settings, refs, sources, prompts) if ours.first else None)
        found = _divergences(work, models, documents, ours)
        places = ours.broadcast(None if found is None else _places(settings, documents, found))
        said = sample(settings, work, models, documents, places, ours)
        return _write(work, refs, documents, places, said) if ours.first else {}

    resolved = {"dtype": names["dtype"], "sources": [[source.label, source.weight] for source in sources]}
    return Order("continuations", settings, inputs, SCHEMA, resolved), build


def _places(
    settings: ContinuationsSettings, documents: list[Document], divergence_N: NDArray[np.float32]
) -> list[Place]:
    places = choose_places(
        documents, divergence_N, places=settings.places, uniform=settings.uniform, seed=settings.seed
    )
    say(
        f"{len(places):,} places in {len(documents):,} documents, {settings.draws} x up to {settings.tokens} "
        f"tokens by each model; mean divergence {np.mean([place.divergence for place in places]):.3f} bits"
    )
    return places


def with_models_of(settings: ContinuationsSettings, workspace: Workspace) -> ContinuationsSettings:
    """The settings with what they leave out taken from the latest activations. Raises InputError: there are none, or
    they were imported without models or texts."""
    if settings.model_a is not None and (settings.texts or settings.prompts):
        return settings
    latest = workspace.find("activations")
    harvested = latest.settings
    values: dict[str, Any] = {}
    if settings.model_a is None:
        if harvested.get("model_a") is None or harvested.get("model_b") is None:
            raise InputError(f"{latest.ref} was imported without its models: give --model-a and --model-b")
        values |= {key: harvested[key] for key in ("model_a", "model_b", "revision_a", "revision_b")}
    if not settings.texts and not settings.prompts:
        if not harvested.get("texts"):
            raise InputError(f"{latest.ref} was imported without texts: give --texts or --prompts")
        values |= {"texts": tuple(harvested["texts"])}
        values |= {key: harvested[key] for key in ("text_field", "source_field", "strict")}
    say(f"models and texts as in {latest.ref}")
    return dataclasses.replace(settings, **values)


def _read(
    settings: ContinuationsSettings, refs: dict[str, ModelRef], sources: list[Source], prompts: list[Record]
) -> list[Document]:
    readers = {side: open_reader(refs[side], side) for side in SIDES}
    context = {}
    for side in SIDES:
        positions = read_geometry(refs[side]).max_positions or settings.context + settings.tokens
        context[side] = min(settings.context, positions - settings.tokens)
        if context[side] < 8:
            raise InputError(
                f"model {refs[side].short_name} reads {positions} tokens at most: --tokens {settings.tokens} "
                "leaves too few before a place"
            )
    opened: list[Document | None] = []
    left_out = LeftOut(strict=settings.strict)

    def open_one(record: Record, number: int, *, prompt: bool = False) -> None:
        try:
            opened.append(open_document(record, number, readers, context, settings.seed, prompt=prompt))
        except ChatError as error:
            left_out.add(record, str(error))
        else:
            if opened[-1] is None and (prompt or record.messages):
                left_out.add(record, f"nothing to answer within {min(context.values())} tokens (--context)")

    with progress("read", settings.places, "documents") as bar:
        records = left_out.usable(mix(sources, settings.text_field, settings.source_field))
        drawn = drawn_documents(records, settings.places, settings.seed)
        for number, record in drawn:
            open_one(record, number)
            bar.advance()
    for number, record in enumerate(prompts, drawn[-1][0] + 1 if drawn else 0):
        open_one(record, number, prompt=True)
    if left_out.data["records"]:
        say(str(left_out))
    documents = [document for document in opened if document]
    if not documents:
        raise InputError("the texts hold no place that both models can go on from: give longer --texts")
    return documents


def _divergences(work: Work, models: Models, documents: list[Document], ours: Ranks) -> NDArray[np.float32] | None:
    """(N,) of the candidates of all documents, in order; in the first process. Two processes read with a model each."""
    buckets = common_buckets({side: token_strings(load_tokenizer(models.refs[side])) for side in SIDES})
    cuts = sum(len(reading.cuts) for document in documents for side in SIDES for reading in document.readings[side])
    require_free(work.folder, 8 * KEPT * cuts, f"the next words at {cuts:,} places")

    names = {side: f"resume/likeliest-{side}.safetensors" for side in SIDES}
    missing = ours.broadcast([side for side in SIDES if not work.has(names[side])] if ours.first else None)

    def read(side: str) -> None:
        total = sum(len(document.readings[side]) for document in documents)
        with progress(f"next words of {side.upper()}", total, "readings") as bar:
            bucket_NK, p_NK = likeliest(models.load(side), side, documents, buckets, bar.advance)
        work.write_bytes(names[side], save({"bucket": bucket_NK, "p": p_NK}))

    models.each_side(read, ours.mine(missing))
    ours.barrier()
    if not ours.first:
        return None
    a, b = (load_file(work.folder / names[side]) for side in SIDES)
    return divergence((a["bucket"], a["p"]), (b["bucket"], b["p"]))


def _write(
    work: Work,
    refs: dict[str, ModelRef],
    documents: list[Document],
    places: list[Place],
    said: dict[str, list[Any]],
) -> dict[str, Any]:
    """Write all files; returns the metrics."""
    for side in SIDES:
        work.write_bytes(SAID[side], json_lines(said[side]))
    read = [
        {"text": one.text, "source": one.source, "number": one.number, "messages": list(one.messages) or None}
        for one in documents
    ]
    work.write_bytes(DOCUMENTS, json_lines(read))
    chosen = [
        {"document": p.document, "end": p.end, "divergence": round(p.divergence, 6), "drawn": p.drawn} for p in places
    ]
    work.write_bytes(PLACES, json_lines(chosen))
    by_source = Counter(documents[place.document].source for place in places)
    counts = {"documents": len(documents), "places": len(places), "sources": dict(sorted(by_source.items()))}
    info = {
        "format": FORMAT,
        "models": {side: refs[side].name for side in SIDES},
        "revisions": {side: refs[side].revision for side in SIDES},
        **counts,
        "mean_divergence": float(np.mean([place.divergence for place in places])),
    }
    work.write_json(NAME, info)
    return counts
