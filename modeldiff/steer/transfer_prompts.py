"""The prompts of a contrast: two files, positive and negative."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeldiff.errors import InputError
from modeldiff.workspace import Input
from modeldiff.workspace.files import sha256_json

_FIELDS = ("prompt", "system", "response")


@dataclass(frozen=True)
class Prompt:
    """One line of a file."""

    prompt: str
    system: str | None = None
    """Instructions before the prompt."""
    response: str | None = None
    """What is said after it, to the letter (a leading blank included). None: the model is asked."""


@dataclass(frozen=True)
class PromptPair:
    """The prompts of both classes."""

    positive: tuple[Prompt, ...]
    negative: tuple[Prompt, ...]
    label: str

    @property
    def all(self) -> tuple[Prompt, ...]:
        """The positive ones, then the negative ones."""
        return self.positive + self.negative

    def as_input(self) -> Input:
        """For a fingerprint: what the prompts say."""
        said = [[dataclasses.asdict(one) for one in part] for part in (self.positive, self.negative)]
        return Input(self.label, sha256_json(said))


def read_prompt_pair(files: tuple[Path, ...], option: str) -> PromptPair:
    """Both files. Raises InputError as `read_prompts`, or when they say the same."""
    positive, negative = (read_prompts(path, option) for path in files)
    if positive == negative:
        raise InputError(f"{option}: {files[0]} and {files[1]} hold the same prompts, so there is no contrast")
    return PromptPair(positive, negative, ", ".join(map(str, files)))


def read_prompts(path: Path, option: str) -> tuple[Prompt, ...]:
    """The prompts of a .jsonl file (prompt, and if wanted system and response), or of a text file, one per line.

    Raises:
        InputError: the file cannot be read as UTF-8 text or holds fewer than two prompts; a line of .jsonl is no such
            object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{option}: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{option}: {path}: expected UTF-8 text, one prompt per line") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".jsonl":
        prompts = tuple(_record(line, f"{option}: {path}, line {number}") for number, line in numbered)
    else:
        prompts = tuple(Prompt(line.rstrip("\r")) for _, line in numbered)
    if len(prompts) < 2:
        raise InputError(f"{option}: {path} holds {len(prompts)} prompts: two are the least that a mean is made of")
    return prompts


def _record(line: str, where: str) -> Prompt:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg}, character {error.colno})") from None
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(record).__name__}")
    unknown = sorted(record.keys() - set(_FIELDS))
    if unknown:
        raise InputError(f"{where}: field '{unknown[0]}' is unknown: expected prompt, and if wanted system, response")
    for field in _FIELDS:
        value = record.get(field)
        if not (isinstance(value, str) or (value is None and field != "prompt")):
            raise InputError(f"{where}: field '{field}' is missing or not a text")
    if not record["prompt"].strip():
        raise InputError(f"{where}: the prompt is empty")
    if record.get("response") == "":
        raise InputError(f"{where}: the response is empty: leave the field out to have the model answer")
    return Prompt(record["prompt"], record.get("system"), record.get("response"))
