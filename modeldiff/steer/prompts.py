"""Prompts: read from files, and put to a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeldiff.errors import InputError
from modeldiff.lm.chat import open_chat, uses_chat
from modeldiff.lm.model import LanguageModel
from modeldiff.steer.settings import Steering
from modeldiff.texts.readers import read_lines, read_objects


@dataclass(frozen=True)
class Prompt:
    prompt: str
    system: str | None = None
    """Instructions before the prompt."""
    response: str | None = None
    """What is said after it, to the letter (a leading blank included). None: the model is asked."""


def put(settings: Steering, lm: LanguageModel, prompts: Sequence[Prompt]) -> tuple[list[str], dict[str, Any]]:
    """(the prompts as the model reads them, up to where its text begins; what `generate_tokens` takes beside them)."""
    chat = uses_chat(lm.tokenizer, settings.chat)
    if chat:
        texts = [open_chat(lm.tokenizer, one.prompt, one.system) for one in prompts]
    else:
        texts = [f"{one.system}\n\n{one.prompt}" if one.system else one.prompt for one in prompts]
    options = {name: getattr(settings, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    return texts, options | {"add_special_tokens": not chat}


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a .jsonl file (prompt, and if wanted system and response), or of a text file, one per line. Raises
    InputError: the file cannot be read or holds fewer than two prompts; a line of .jsonl is no such object."""
    if path.suffix == ".jsonl":
        prompts = [_prompt(where, record) for where, record in read_objects(path)]
    else:
        prompts = [Prompt(line) for line in read_lines(path)]
    if len(prompts) < 2:
        raise InputError(f"{path} holds {len(prompts)} prompts: two are the least that a mean is made of")
    return prompts


def _prompt(where: str, record: dict[str, Any]) -> Prompt:
    unknown = sorted(record.keys() - {"prompt", "system", "response"})
    if unknown:
        raise InputError(f"{where}: field '{unknown[0]}' is unknown: expected prompt, and if wanted system, response")
    found = Prompt(record.get("prompt", ""), record.get("system"), record.get("response"))
    for field, value in vars(found).items():
        if not (value is None or isinstance(value, str)) or (field != "system" and value == ""):
            raise InputError(f"{where}: field '{field}' is missing, empty or not a text")
    return found
