"""Answers on disk: one JSON object per line, appended and made durable the moment an answer arrives.

A line that a crash cut short is not an answer; the next one is put on a line of its own.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from filelock import FileLock

from modeldiff.console import say
from modeldiff.errors import MachineError
from modeldiff.judge.base import Answer, Prompt
from modeldiff.workspace.files import fsync_folder, sha256_json

ANSWERS_NAME = "answers.jsonl"


class AnswerCache:
    """The answers in a folder, by key. Several threads, and several processes, may add to it at the same time.

    Args:
        folder: made when the first answer is kept.

    Raises:
        MachineError: the file is there and cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ANSWERS_NAME
        self._adding = threading.Lock()
        self._answers = self._read()

    def get(self, key: str) -> Answer | None:
        """The answer kept under `key`, None if there is none."""
        return self._answers.get(key)

    def add(self, key: str, prompt: Prompt, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns.

        Raises:
            MachineError: the file cannot be written.
        """
        record = {
            "key": key,
            "kind": prompt.kind,
            "id": prompt.id,
            "attempt": prompt.attempt,
            "text": answer.text,
            "reason": answer.reason,
            "check": _check(key, answer),
        }
        # ASCII: no line separator of Unicode can break the line, and any text can be written.
        line = json.dumps(record, ensure_ascii=True).encode() + b"\n"
        try:
            with self._adding:
                self._append(line)
                self._answers[key] = answer
        except OSError as error:
            raise MachineError(f"{self.path}: an answer cannot be kept ({error.strerror})") from None

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            new = not self.path.exists()
            with self.path.open("ab+") as file:
                if file.seek(0, os.SEEK_END):
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if new:
                fsync_folder(self.path.parent)

    def _read(self) -> dict[str, Answer]:
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise MachineError(f"{self.path}: the kept answers cannot be read ({error.strerror})") from None
        answers: dict[str, Answer] = {}
        damaged = 0
        for line in filter(None, lines):
            try:
                record = json.loads(line)
                answer = Answer(record["text"], record["reason"])
                if record["check"] != _check(record["key"], answer):
                    raise ValueError("the check does not fit")
                answers[record["key"]] = answer
            except (ValueError, KeyError, TypeError):
                damaged += 1
        if damaged:
            say(f"{self.path}: {damaged} lines are cut short or altered; what they answered is asked again")
        return answers


def _check(key: str, answer: Answer) -> str:
    return sha256_json([key, answer.text, answer.reason])[:16]
