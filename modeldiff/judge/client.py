"""A judge: a language model that is asked through a cache, within a budget, and whose answers are read strictly.

Answers are kept in a JSON file each, durable before they are used.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from modeldiff.console import progress, say
from modeldiff.errors import DamagedError, InputError, MachineError, ModeldiffError
from modeldiff.records import from_json, to_json
from modeldiff.workspace.files import read_json, sha256_json, write_bytes

T = TypeVar("T")

_ATTEMPTS = 3
# At temperature 0 the very same prompt would get the very same answer again.
_REMINDER = "\n\nAn answer to this did not have the form that was asked for (try {}). Keep to that form exactly."


@dataclass(frozen=True)
class Prompt:
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
    text: str | None
    """None: there is no answer."""
    reason: str | None = None
    """Why there is none; beside a text, a remark on it (that it was cut)."""


@dataclass(frozen=True)
class _Kept:
    """An answer in its file."""

    id: str
    attempt: int
    text: str | None
    reason: str | None
    check: str


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
            kept = from_json(_Kept, read_json(path), str(path))
            answer = Answer(kept.text, kept.reason)
            if kept.check == _check(key, answer):
                return answer
        except DamagedError:
            pass
        say(f"{path}: is damaged; what it answered is asked again")
        return None

    def add(self, key: str, prompt: Prompt, answer: Answer) -> None:
        """Keep an answer; it is on disk when this returns. Raises MachineError if it cannot be written."""
        record = _Kept(prompt.id, prompt.attempt, answer.text, answer.reason, _check(key, answer))
        path = self._folder / f"{key}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # ASCII: an answer may hold halves of characters, which no encoding of Unicode can write.
            write_bytes(path, json.dumps(to_json(record), ensure_ascii=True).encode())
        except OSError as error:
            raise MachineError(f"{path}: an answer cannot be kept ({error.strerror})") from None


def _check(key: str, answer: Answer) -> str:
    return sha256_json([key, answer.text, answer.reason])[:16]


@dataclass(frozen=True)
class Judged(Generic[T]):
    value: T | None
    """The answer as read; None: missing."""
    reason: str | None
    """Why it is missing."""


class Backend(Protocol):
    """Whoever is asked: local.py, openai.py."""

    name: str
    """For people: the kind of judge and its model."""
    identity: dict[str, Any]
    """JSON data that decides the answers (model, endpoint, sampling), for fingerprints. Never a secret."""

    def answer(self, prompts: Sequence[Prompt], keep: Callable[[int, Answer], None]) -> None:
        """Answer every prompt, calling `keep` with its number the moment an answer is there, from any thread, in any
        order."""


class Judge:
    """A backend with a cache and a limit in front: nothing is asked twice, and never more than was allowed.

    cache: looked up first; every answer that has a text is on disk before it is used; max_calls: calls allowed during
    the life of this object; None: no limit.
    """

    def __init__(self, backend: Backend, cache: AnswerCache, max_calls: int | None = None) -> None:
        self._backend, self._cache, self._max_calls = backend, cache, max_calls
        self._calls = 0
        self.name, self.identity = backend.name, backend.identity

    def planned(self, prompts: Sequence[Prompt]) -> int:
        """How many calls these prompts cost if every answer can be read: the different ones that are not cached."""
        return len(self._missing(prompts))

    def ask(self, prompts: Sequence[Prompt], readers: Sequence[Callable[[str], T | None]]) -> list[Judged[T]]:
        """Ask, read, and ask again, up to three times, what is missing or cannot be read.

        readers: for each prompt, what gives the meaning of an answer, None if it cannot be read. Raises InputError: the
        calls would exceed the budget (none is made), or the judge refuses the request; MachineError: the judge gives no
        answers. Those it gave before are kept: asking again continues.
        """
        found: list[Judged[T]] = [Judged(None, None)] * len(prompts)
        for attempt in range(_ATTEMPTS):
            unread = [number for number, one in enumerate(found) if one.value is None]
            asked = [prompts[number] for number in unread]
            if attempt:
                words = _REMINDER.format(attempt + 1)
                asked = [dataclasses.replace(one, user=one.user + words, attempt=attempt) for one in asked]
            for number, answer in zip(unread, self.answers(asked), strict=True):
                value = None if answer.text is None else readers[number](answer.text)
                found[number] = Judged(value, None if value is not None else _why(answer))
        return found

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, in the order of the prompts. Raises as `ask`."""
        missing = self._missing(prompts)
        answered = self._ask_missing(missing) if missing else {}
        keys = [self._key(prompt) for prompt in prompts]
        return [self._cache.get(key) or answered[key] for key in keys]

    def _ask_missing(self, missing: dict[str, Prompt]) -> dict[str, Answer]:
        needed = self._calls + len(missing)
        if self._max_calls is not None and needed > self._max_calls:
            made = f" after the {self._calls} made so far, whose answers are kept" if self._calls else ""
            raise InputError(
                f"{len(missing)} calls to {self.name} are needed{made}, but --judge-max-calls allows "
                f"{self._max_calls}: allow {needed} or ask about less"
            )
        keys = list(missing)
        answered: dict[str, Answer] = {}
        keeping = threading.Lock()
        with progress("judge", len(missing), "answers") as bar:

            def keep(number: int, answer: Answer) -> None:
                key = keys[number]
                with keeping:
                    if answer.text is not None:
                        self._cache.add(key, missing[key], answer)
                    answered[key] = answer
                    self._calls += 1
                    bar.advance()

            try:
                self._backend.answer(list(missing.values()), keep)
            except ModeldiffError as error:
                kept = sum(answer.text is not None for answer in answered.values())
                raise type(error)(
                    f"{error}; {kept} of {len(missing)} answers arrived and are kept: "
                    "the same command continues with the others"
                ) from None
        return answered

    def _missing(self, prompts: Sequence[Prompt]) -> dict[str, Prompt]:
        """The different prompts without an answer, by key, in their order."""
        by_key = {self._key(prompt): prompt for prompt in prompts}
        return {key: prompt for key, prompt in by_key.items() if self._cache.get(key) is None}

    def _key(self, prompt: Prompt) -> str:
        return sha256_json([self.identity, prompt.system, prompt.user, prompt.attempt])


def _why(answer: Answer) -> str:
    if answer.text is None:
        return answer.reason or "no answer"
    return f"no answer of {_ATTEMPTS} has the form asked for" + (f" ({answer.reason})" if answer.reason else "")
