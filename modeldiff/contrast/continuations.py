"""The continuations stage: both models go on from the same places in texts. Depends on the models and texts alone.
Its layout: documents.py.

An interrupted run keeps the divergences of a model and every finished part of the sampling.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from modeldiff.console import progress, say
from modeldiff.contrast.divergence import KEPT, Kept, divergence, likeliest
from modeldiff.contrast.documents import Document, Place, choose_places, drawn_documents, open_document, read_prompts
from modeldiff.contrast.settings import ContinuationsSettings
from modeldiff.errors import InputError
from modeldiff.lm.buckets import common_buckets, token_strings
from modeldiff.lm.chat import ChatError
from modeldiff.lm.device import device_and_dtype
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.load import load_model, load_tokenizer, model_identity, quiet, read_geometry
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.ref import ModelRef, model_input, refs_of
from modeldiff.sides import SIDES
from modeldiff.texts.sources import LeftOut, Record, Source, mix, parse_source, source_digest
from modeldiff.texts.tokenize import open_reader
from modeldiff.threads import by_side, shared_cores
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.artifact import check_format
from modeldiff.workspace.files import json_lines, read_json, read_json_lines, require_free
from modeldiff.workspace.rehearsal import Size, rehearse

Made = TypeVar("Made")

SCHEMA = 2
FORMAT = 1
NAME = "continuations.json"
DOCUMENTS, PLACES, SAID = "documents.jsonl", "places.jsonl", {side: f"said_{side}.jsonl" for side in SIDES}
# Places of a part. The same on every machine, for it decides the random numbers.
_PART = 256
_REHEARSED = 256
# Places continued at once, by kind of device: on a CPU the cache decides, a GPU wants to be busy. It decides the random
# numbers, too.
_BATCH = {"cpu": 32, "cuda": 512, "mps": 128}


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


class Models:
    """The two models, loaded when first asked for. On a CPU both stay in memory; elsewhere only the latest one."""

    def __init__(self, refs: dict[str, ModelRef], device: torch.device, dtype: torch.dtype) -> None:
        self.refs, self.device, self.dtype = refs, device, dtype
        self.on_cpu = device.type == "cpu"
        self._loaded: dict[str, LanguageModel] = {}

    def load(self, side: str) -> LanguageModel:
        if side not in self._loaded:
            if not self.on_cpu:
                self._loaded.clear()
            self._loaded[side] = load_model(self.refs[side], self.device, self.dtype)
        return self._loaded[side]

    def each_side(self, make: Callable[[str], Made]) -> dict[str, Made]:
        """make("a") and make("b"): at the same time on a CPU, one after the other elsewhere."""
        if not self.on_cpu:
            return {side: make(side) for side in SIDES}
        for side in SIDES:
            self.load(side)
        return by_side(make)


def plan(settings: ContinuationsSettings, workspace: Workspace) -> dict[str, Any]:
    """For `--plan`: see `rehearse`. Raises as `run`."""
    sizes = {"places": Size(settings.places, _REHEARSED, ("read", "next words", "continuations"))}
    note = "comparing, and the cause of what is found"
    return {"places": settings.places, "not_in_it": note, "rehearsal": rehearse(run, settings, sizes, workspace)}


def run(
    settings: ContinuationsSettings, workspace: Workspace, *, name: str | None = None, force: bool = False
) -> Artifact:
    """Let both models continue the same texts. Raises InputError: a model or text cannot be used, or the texts hold no
    place that both models can go on from."""
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
    device, dtype, names = device_and_dtype(settings)

    def build(work: Work) -> dict[str, Any]:
        work.environment.update(names)
        models = Models(refs, device, dtype)
        documents = _read(settings, refs, sources, prompts)
        found = _divergences(work, models, documents)
        places = choose_places(documents, found, places=settings.places, uniform=settings.uniform, seed=settings.seed)
        say(
            f"{len(places):,} places in {len(documents):,} documents, {settings.draws} x up to {settings.tokens} "
            f"tokens by each model; mean divergence {np.mean([place.divergence for place in places]):.3f} bits"
        )
        _sample(settings, work, models, documents, places)
        return _write(work, refs, documents, places)

    resolved = {"dtype": names["dtype"], "sources": [[source.label, source.weight] for source in sources]}
    order = Order("continuations", settings, inputs, SCHEMA, resolved)
    return produce(workspace, order, build, name=name, force=force)


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
    with progress("read", settings.places, "documents") as bar:
        records = left_out.usable(mix(sources, settings.text_field, settings.source_field))
        drawn = drawn_documents(records, settings.places, settings.seed)
        for number, record in drawn:
            try:
                opened.append(open_document(record, number, readers, context, settings.seed))
            except ChatError as error:
                left_out.add(record, str(error))
            bar.advance()
    if left_out.data["records"]:
        say(str(left_out))
    first = drawn[-1][0] + 1 if drawn else 0
    numbered = enumerate(prompts, first)
    opened += [open_document(one, number, readers, context, settings.seed, prompt=True) for number, one in numbered]
    documents = [document for document in opened if document]
    if not documents:
        raise InputError("the texts hold no place that both models can go on from: give longer --texts")
    return documents


def _divergences(work: Work, models: Models, documents: list[Document]) -> NDArray[np.float32]:
    """(N,) of the candidates of all documents, in order."""
    buckets = common_buckets({side: token_strings(load_tokenizer(models.refs[side])) for side in SIDES})
    cuts = sum(len(reading.cuts) for document in documents for side in SIDES for reading in document.readings[side])
    require_free(work.folder, 8 * KEPT * cuts, f"the next words at {cuts:,} places")

    def read(side: str) -> Kept:
        name = f"resume/likeliest-{side}.safetensors"
        if not work.has(name):
            total = sum(len(document.readings[side]) for document in documents)
            with progress(f"next words of {side.upper()}", total, "readings") as bar:
                bucket_NK, p_NK = likeliest(models.load(side), side, documents, buckets, bar.advance)
            work.write_bytes(name, save({"bucket": bucket_NK, "p": p_NK}))
        found = load_file(work.folder / name)
        return found["bucket"], found["p"]

    kept = models.each_side(read)
    return divergence(kept["a"], kept["b"])


class _Part(NamedTuple):
    """Places at which a model is sampled in one go: what an interrupted run may lose."""

    side: str
    number: int
    places: list[int]

    @property
    def name(self) -> str:
        return f"resume/said-{self.side}-{self.number:05d}.jsonl"


def _parts(documents: list[Document], places: list[Place]) -> list[_Part]:
    """All places once by each model, those with texts of like length together, so that little is padding. The longest
    come first, so that what is left at the end is short."""
    parts = []
    for side in SIDES:
        order = np.argsort([len(_prompt(documents, place, side)) for place in places], kind="stable").tolist()
        parts += [_Part(side, n, order[n * _PART : (n + 1) * _PART]) for n in range(-(-len(order) // _PART))]
    return sorted(parts, key=lambda part: (-part.number, part.side))


def _sample(
    settings: ContinuationsSettings, work: Work, models: Models, documents: list[Document], places: list[Place]
) -> None:
    """Write what either model says at each place. On a CPU two parts are sampled at a time, whichever model they are
    of: the slower model does not end alone."""
    parts = _parts(documents, places)
    missing = [part for part in parts if not work.has(part.name)]
    at_once = len(SIDES) if models.on_cpu else 1
    if models.on_cpu:
        for part in missing:
            models.load(part.side)
    else:
        missing.sort(key=lambda part: part.side)

    def sample(part: _Part) -> int:
        made = continue_tokens(
            models.load(part.side),
            [_prompt(documents, places[i], part.side) for i in part.places for _ in range(settings.draws)],
            max_new_tokens=settings.tokens,
            temperature=1.0,
            seed=(settings.seed * 2 + SIDES.index(part.side)) * 1_000_003 + part.number,
            batch_size=_BATCH.get(models.device.type, 32),
        )
        texts = [one.text for one in made]
        rows: list[Any] = [texts[i : i + settings.draws] for i in range(0, len(texts), settings.draws)]
        work.write_bytes(part.name, json_lines(rows))
        return len(rows)

    left, total = sum(len(part.places) for part in missing), len(SIDES) * len(places)
    # Quiet around both threads: each would otherwise put back what the other has set.
    with (
        progress("continuations", total, "places", done=total - left) as bar,
        quiet(bars=True),
        shared_cores(at_once),
        ThreadPoolExecutor(at_once, "part") as workers,
    ):
        for count in workers.map(sample, missing):
            bar.advance(count)
    for side in SIDES:
        said: dict[int, Any] = {}
        for part in parts:
            if part.side == side:
                said |= zip(part.places, read_json_lines(work.folder / part.name), strict=True)
        work.write_bytes(SAID[side], json_lines(said[i] for i in range(len(places))))


def _prompt(documents: list[Document], place: Place, side: str) -> list[int]:
    return documents[place.document].prompt(side, place.end)


def _write(work: Work, refs: dict[str, ModelRef], documents: list[Document], places: list[Place]) -> dict[str, Any]:
    """Write all files but what is said; returns the metrics."""
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
