"""The continuations stage: both models go on from the same places in texts. Depends on the models and texts alone.

Layout (normative):
    continuations.json   format; models and revisions; sources, with the number of their places; counts
    documents.jsonl      {"text", "source", "number", "messages"}: what was read, a line each; messages: of a chat, or
                         null
    places.jsonl         {"document", "end", "divergence", "drawn"}: position of the document, characters before the
                         place, bits, and how it was drawn (places.py)
    said_a.jsonl         for each place a list of what model A said, one text a draw; likewise said_b.jsonl

An interrupted run keeps the divergences of a model and every finished part of the sampling.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from modeldiff.console import progress, say
from modeldiff.contrast.divergence import Kept, divergence, likeliest
from modeldiff.contrast.documents import Document, drawn_documents, open_document, open_prompts, read_prompts
from modeldiff.contrast.places import Place, choose_places
from modeldiff.contrast.settings import ContinuationsSettings
from modeldiff.errors import DamagedError, InputError
from modeldiff.lm.buckets import common_buckets, token_strings
from modeldiff.lm.device import resolve_device, resolve_dtype
from modeldiff.lm.generate import continue_tokens
from modeldiff.lm.geometry import read_geometry
from modeldiff.lm.load import load_model, load_tokenizer, model_identity
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.quiet import quiet
from modeldiff.lm.ref import ModelRef
from modeldiff.sides import SIDES
from modeldiff.texts.sources import Record, Source, mix, parse_sources, source_digest
from modeldiff.texts.tokenize import Reader
from modeldiff.threads import by_side, shared_cores
from modeldiff.workspace import Artifact, Input, Order, Work, Workspace, produce
from modeldiff.workspace.files import read_json

SCHEMA = 2
FORMAT = 1
KIND = "continuations"
NAME = "continuations.json"
DOCUMENTS, PLACES = "documents.jsonl", "places.jsonl"
# Places of a part: what an interrupted run may lose. The same on every machine, for it decides the random numbers.
_PART = 256
# Places continued at once, by kind of device: on a CPU the cache decides, a GPU wants to be busy. It decides the random
# numbers, too.
_BATCH = {"cpu": 32, "cuda": 512, "mps": 128}


@dataclass(frozen=True)
class Continued:
    """A place with what both models said there."""

    document: int
    """Position in `Continuations.documents`."""
    end: int
    """Characters of the document before the place."""
    divergence: float
    drawn: str
    said: dict[str, list[str]]
    """By side, one text a draw."""


class Continuations:
    """A `continuations` artifact, opened.

    Raises:
        DamagedError: a file is missing or damaged.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.info: dict[str, Any] = read_json(artifact.file(NAME))
        self.documents = [_record(line) for line in _lines(artifact, DOCUMENTS)]
        self.number = [line["number"] for line in _lines(artifact, DOCUMENTS)]
        said = {side: list(_lines(artifact, f"said_{side}.jsonl")) for side in SIDES}
        self.places = [
            Continued(**line, said={side: said[side][i] for side in SIDES})
            for i, line in enumerate(_lines(artifact, PLACES))
        ]

    def refs(self, trust_remote_code: bool = False) -> dict[str, ModelRef]:
        """The models by side, as they were named."""
        return {
            side: ModelRef(self.info["models"][side], self.info["revisions"][side], trust_remote_code) for side in SIDES
        }

    def before(self, place: int) -> str:
        """The text before a place."""
        one = self.places[place]
        return self.documents[one.document].text[: one.end]


def run(
    settings: ContinuationsSettings, workspace: Workspace, *, name: str | None = None, force: bool = False
) -> Artifact:
    """Let both models continue the same texts.

    Raises:
        InputError: a model or text cannot be used, or the texts hold no place that both models can go on from.
    """
    settings = with_models_of(settings, workspace)
    workspace.create()
    digest = workspace.digest_of
    refs = {
        "a": ModelRef(str(settings.model_a), settings.revision_a, settings.trust_remote_code),
        "b": ModelRef(str(settings.model_b), settings.revision_b, settings.trust_remote_code),
    }
    inputs: dict[str, Input] = {}
    for side in SIDES:
        identity = model_identity(refs[side], digest)
        inputs[f"model_{side}"] = Input(refs[side].name, identity.get("digest") or identity["commit"])
    sources = parse_sources(settings.texts)
    for i, (source, entry) in enumerate(zip(sources, settings.texts, strict=True), 1):
        inputs[f"text_{i}"] = Input(entry, source_digest(source, digest))
    prompts = read_prompts(settings.prompts, settings.text_field) if settings.prompts else []
    if settings.prompts:
        inputs["prompts"] = Input(str(settings.prompts), digest(settings.prompts))
    device = resolve_device(settings.device)
    dtype = resolve_dtype(settings.dtype, device)

    def build(work: Work) -> dict[str, Any]:
        return _Build(settings, work, refs, sources, prompts, device, dtype).run()

    resolved = {
        "dtype": str(dtype).removeprefix("torch."),
        "sources": [[source.label, source.weight] for source in sources],
    }
    order = Order(KIND, settings, inputs, SCHEMA, resolved)
    return produce(workspace, order, build, name=name, force=force)


def with_models_of(settings: ContinuationsSettings, workspace: Workspace) -> ContinuationsSettings:
    """The settings with what they leave out taken from the latest activations.

    Raises:
        InputError: there are no activations, or they were imported without models or texts.
    """
    if settings.model_a is not None and (settings.texts or settings.prompts):
        return settings
    made = workspace.find("activations")
    said = made.settings
    values: dict[str, Any] = {}
    if settings.model_a is None:
        if said.get("model_a") is None or said.get("model_b") is None:
            raise InputError(f"{made.ref} was imported without its models: give --model-a and --model-b")
        values |= {key: said[key] for key in ("model_a", "model_b", "revision_a", "revision_b")}
    if not settings.texts and not settings.prompts:
        if not said.get("texts"):
            raise InputError(f"{made.ref} was imported without texts: give --texts or --prompts")
        values |= {"texts": tuple(said["texts"]), "text_field": said["text_field"]}
    say(f"models and texts as in {made.ref}")
    return dataclasses.replace(settings, **values)


class _Build:
    """One run of the stage."""

    def __init__(
        self,
        settings: ContinuationsSettings,
        work: Work,
        refs: dict[str, ModelRef],
        sources: list[Source],
        prompts: list[str],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.settings, self.work, self.refs, self.sources = settings, work, refs, sources
        self.prompts, self.device, self.dtype = prompts, device, dtype
        self.models: dict[str, LanguageModel] = {}

    def run(self) -> dict[str, Any]:
        self.work.environment.update(device=str(self.device), dtype=str(self.dtype).removeprefix("torch."))
        documents, records = self.read()
        of_candidate = self.divergences(documents)
        settings = self.settings
        places = choose_places(
            documents, of_candidate, places=settings.places, uniform=settings.uniform, seed=settings.seed
        )
        say(
            f"{len(places):,} places in {len(documents):,} documents, {settings.draws} x up to {settings.tokens} "
            f"tokens by each model; mean divergence {np.mean([place.divergence for place in places]):.3f} bits"
        )
        self.sample(documents, places)
        for side in SIDES:
            if not self.work.has(f"said_{side}.jsonl"):
                said = [texts for part in range(_parts(places)) for texts in self.part(side, part)]
                order = np.argsort(_order(documents, places, side), kind="stable")
                self.work.write_bytes(f"said_{side}.jsonl", _jsonl([said[i] for i in order]))
        self.work.write_bytes(
            DOCUMENTS,
            _jsonl(
                {"text": d.text, "source": d.source, "number": d.number, "messages": list(r.messages) or None}
                for d, r in zip(documents, records, strict=True)
            ),
        )
        self.work.write_bytes(
            PLACES,
            _jsonl(
                {
                    "document": p.document,
                    "end": documents[p.document].ends[p.candidate],
                    "divergence": round(p.divergence, 6),
                    "drawn": p.drawn,
                }
                for p in places
            ),
        )
        by_source: dict[str, int] = {}
        for place in places:
            source = documents[place.document].source
            by_source[source] = by_source.get(source, 0) + 1
        self.work.write_json(
            NAME,
            {
                "format": FORMAT,
                "models": {side: self.refs[side].name for side in SIDES},
                "revisions": {side: self.refs[side].revision for side in SIDES},
                "documents": len(documents),
                "places": len(places),
                "sources": dict(sorted(by_source.items())),
                "mean_divergence": float(np.mean([place.divergence for place in places])),
            },
        )
        return {"documents": len(documents), "places": len(places), "sources": dict(sorted(by_source.items()))}

    def read(self) -> tuple[list[Document], list[Record]]:
        """The documents that have a place, with the records that they are from."""
        settings = self.settings
        readers = {side: Reader(load_tokenizer(self.refs[side]), True) for side in SIDES}
        context = {}
        for side in SIDES:
            positions = read_geometry(self.refs[side]).max_positions or settings.context + settings.tokens
            context[side] = min(settings.context, positions - settings.tokens)
            if context[side] < 8:
                raise InputError(
                    f"model {self.refs[side].short_name} reads {positions} tokens at most: --tokens {settings.tokens} "
                    "leaves too few before a place"
                )
        records: list[Record] = []
        documents: list[Document] = []
        with progress("read", settings.places, "documents") as bar:
            drawn = (
                drawn_documents(mix(self.sources, settings.text_field), settings.places, settings.seed)
                if self.sources
                else []
            )
            for number, record in drawn:
                document = open_document(record, number, readers, context, settings.seed)
                if document:
                    documents.append(document)
                    records.append(record)
                bar.advance()
        first = 1 + max((number for number, _ in drawn), default=-1)
        for document in open_prompts(self.prompts, first, readers, context):
            documents.append(document)
            records.append(Record("prompts", document.text))
        if not documents:
            raise InputError("the texts hold no place that both models can go on from: give longer --texts")
        return documents, records

    def divergences(self, documents: list[Document]) -> NDArray[np.float32]:
        """(N,) of the candidates of all documents, in order."""
        missing = [side for side in SIDES if not self.work.has(_kept_name(side))]
        if missing:
            tokenizers = {side: load_tokenizer(self.refs[side]) for side in SIDES}
            buckets = common_buckets({side: token_strings(tokenizers[side]) for side in SIDES})

            def one(side: str) -> None:
                if side not in missing:
                    return
                lm = self.open(side)
                total = sum(len(document.readings[side]) for document in documents)
                with progress(f"next words of {side.upper()}", total, "readings") as bar:
                    bucket_NK, p_NK = likeliest(lm, side, documents, buckets, bar.advance)
                self.work.write_bytes(_kept_name(side), save({"bucket": bucket_NK, "p": p_NK}))

            self.each_side(one)
        kept = {side: self.kept(side) for side in SIDES}
        return divergence(kept["a"], kept["b"])

    def kept(self, side: str) -> Kept:
        arrays = load_file(self.work.folder / _kept_name(side))
        return arrays["bucket"], arrays["p"]

    def open(self, side: str) -> LanguageModel:
        """The model. On a CPU both stay in memory; elsewhere one at a time."""
        if side not in self.models:
            if self.device.type != "cpu":
                self.models.clear()
            self.models[side] = load_model(self.refs[side], self.device, self.dtype)
        return self.models[side]

    def each_side(self, make: Callable[[str], None]) -> None:
        """Both models at the same time on a CPU, one after the other elsewhere."""
        if self.device.type == "cpu":
            for side in SIDES:
                self.open(side)
            by_side(make)
        else:
            for side in SIDES:
                make(side)

    def sample(self, documents: list[Document], places: list[Place]) -> None:
        """Write the parts that are missing: places by the length of what is before them, so that little is padding.

        On a CPU two parts are sampled at a time, whichever model they are of: the slower model does not end alone. The
        longest come first, so that what is left at the end is short.
        """
        order = {side: _order(documents, places, side) for side in SIDES}
        last_first = reversed(range(_parts(places)))
        missing = [(side, n) for n in last_first for side in SIDES if not self.work.has(_part_name(side, n))]
        if self.device.type != "cpu":
            missing.sort(key=lambda part: part[0])

        def one(part: tuple[str, int]) -> int:
            side, n = part
            mine = [places[i] for i in order[side][n * _PART : (n + 1) * _PART]]
            self.work.write_bytes(_part_name(side, n), _jsonl(self.said(side, n, documents, mine)))
            return len(mine)

        lengths = [min(_PART, len(places) - n * _PART) for _, n in missing]
        total = len(SIDES) * len(places)
        with progress("continuations", total, "places", done=total - sum(lengths)) as bar:
            if self.device.type == "cpu":
                for side, _ in missing:
                    self.open(side)
                # Quiet around both: each would otherwise put back what the other has set.
                with quiet(bars=True), shared_cores(len(SIDES)), ThreadPoolExecutor(len(SIDES), "part") as workers:
                    for done in workers.map(one, missing):
                        bar.advance(done)
            else:
                for part in missing:
                    bar.advance(one(part))

    def said(self, side: str, part: int, documents: list[Document], places: list[Place]) -> list[list[str]]:
        """What a model says at the places of a part, one list a place."""
        settings, lm = self.settings, self.open(side)
        prompts = [documents[p.document].prompt(side, p.candidate) for p in places for _ in range(settings.draws)]
        made = continue_tokens(
            lm,
            prompts,
            max_new_tokens=settings.tokens,
            temperature=1.0,
            seed=_seed(settings.seed, side, part),
            batch_size=_BATCH.get(lm.device.type, 32),
        )
        texts = [one.text for one in made]
        return [texts[i : i + settings.draws] for i in range(0, len(texts), settings.draws)]

    def part(self, side: str, part: int) -> list[list[str]]:
        path = self.work.folder / _part_name(side, part)
        return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def _order(documents: list[Document], places: list[Place], side: str) -> NDArray[np.int64]:
    """The places by the length of what the model reads before them."""
    length = [len(documents[place.document].prompt(side, place.candidate)) for place in places]
    return np.argsort(length, kind="stable")


def _parts(places: list[Place]) -> int:
    return -(-len(places) // _PART)


def _seed(seed: int, side: str, part: int) -> int:
    return (seed * 2 + SIDES.index(side)) * 1_000_003 + part


def _kept_name(side: str) -> str:
    return f"resume/likeliest-{side}.safetensors"


def _part_name(side: str, part: int) -> str:
    return f"resume/said-{side}-{part:05d}.jsonl"


def _jsonl(rows: Any) -> bytes:
    # ASCII: no line separator of Unicode can break a line.
    return "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")


def _lines(artifact: Artifact, name: str) -> Iterator[Any]:
    path = artifact.file(name)
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            yield json.loads(line)
    except ValueError as error:
        raise DamagedError(f"{path}: not valid JSON lines ({error}); {artifact.mend}") from None


def _record(line: dict[str, Any]) -> Record:
    return Record(line["source"], line["text"], tuple(line["messages"] or ()))
