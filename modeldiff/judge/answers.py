"""Prompts, answers, and the answers that are kept: a JSON file each, durable before the answer is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from modeldiff.console import say
from modeldiff.errors import DamagedError, MachineError
from modeldiff.workspace.files import read_json, sha256_json, write_bytes


@dataclass(frozen=True)
class Prompt:
    """One question to a judge."""

    id: str
    """Which question about what (`similarity, feature 12, prompt 0`), for readers of the cache; not sent."""
    system: str
    """What to do and how to answer."""
    user: str
    """The material."""
    attempt: int = 0
    """How often it was asked before and got an answer that could not be read."""


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt."""

    text: str | None
    """None: there is no answer."""
    reason: str | None = None
    """Why there is none; beside a text, a remark on it (that it was cut)."""


class AnswerCache:
    """The answers in a folder, by key. Several threads and processes may add to it at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Answer | None:
        """The answer kept under `key`; None if there is none, or if it was damaged."""
        path = self._folder / f"{key}.json"
        if not path.exists():
            return None
        try:
            record = read_json(path)
            answer = Answer(record["text"], record["reason"])
            if record["check"] == _check(key, answer):
                return answer
        except (DamagedError, KeyError):
            pass
        say(f"{path}: is damaged; what it answered is asked again")
        return None

    def add(self, key: str, prompt: Prompt, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns. Raises MachineError if it cannot be written."""
        record = {"id": prompt.id, "attempt": prompt.attempt, "text": answer.text, "reason": answer.reason}
        path = self._folder / f"{key}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # ASCII: an answer may hold halves of characters, which no encoding of Unicode can write.
            write_bytes(path, json.dumps({**record, "check": _check(key, answer)}, ensure_ascii=True).encode())
        except OSError as error:
            raise MachineError(f"{path}: an answer cannot be kept ({error.strerror})") from None


def _check(key: str, answer: Answer) -> str:
    return sha256_json([key, answer.text, answer.reason])[:16]
