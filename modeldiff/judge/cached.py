"""A judge with a cache and a budget: nothing is asked twice, and never more than was allowed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from modeldiff.console import progress
from modeldiff.errors import InputError, ModeldiffError
from modeldiff.judge.base import Answer, Asker, Prompt
from modeldiff.judge.cache import AnswerCache
from modeldiff.workspace.files import sha256_json


class CachedJudge:
    """The `Judge` made of one who asks, the answers kept so far, and a limit.

    Args:
        asker: asks what is not in the cache.
        cache: looked up first; every final answer is added the moment it arrives.
        max_calls: calls allowed during the life of this object; None: no limit. A call that the asker has to repeat
            because the other side failed counts once.
    """

    def __init__(self, asker: Asker, cache: AnswerCache, max_calls: int | None = None) -> None:
        self._asker, self._cache, self._max_calls = asker, cache, max_calls
        self._identity = asker.identity()
        self.calls = 0
        """Calls made so far."""

    @property
    def name(self) -> str:
        return self._asker.name

    def identity(self) -> dict[str, Any]:
        return self._identity

    def planned(self, prompts: Sequence[Prompt]) -> int:
        return len(self._missing(prompts))

    def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        missing = self._missing(prompts)
        answered = self._ask_missing(missing) if missing else {}
        answers = []
        for prompt in prompts:
            key = self._key(prompt)
            answer = self._cache.get(key) or answered.get(key)
            assert answer is not None, f"the asker left out {prompt.kind}, {prompt.id}"
            answers.append(answer)
        return answers

    def _ask_missing(self, missing: dict[str, Prompt]) -> dict[str, Answer]:
        self._check_budget(len(missing))
        keys = list(missing)
        answered: dict[str, Answer] = {}
        kept = 0
        counting = threading.Lock()
        with progress("judge", len(missing), "answers") as bar:

            def keep(number: int, answer: Answer, final: bool) -> None:
                nonlocal kept
                key = keys[number]
                if final:
                    self._cache.add(key, missing[key], answer)
                with counting:
                    answered[key] = answer
                    kept += final
                    self.calls += 1
                    bar.advance()

            try:
                self._asker.answer(list(missing.values()), keep)
            except ModeldiffError as error:
                raise type(error)(
                    f"{error}; {kept} of {len(missing)} answers arrived and are kept: "
                    "the same command continues with the others"
                ) from None
        return answered

    def _check_budget(self, needed: int) -> None:
        if self._max_calls is not None and self.calls + needed > self._max_calls:
            made = f" after the {self.calls} made so far, whose answers are kept" if self.calls else ""
            raise InputError(
                f"{needed} calls to {self.name} are needed{made}, but --judge-max-calls allows {self._max_calls}: "
                f"allow {self.calls + needed} or ask about less"
            )

    def _missing(self, prompts: Sequence[Prompt]) -> dict[str, Prompt]:
        """The different prompts without an answer, by key, in their order."""
        by_key = {self._key(prompt): prompt for prompt in prompts}
        return {key: prompt for key, prompt in by_key.items() if self._cache.get(key) is None}

    def _key(self, prompt: Prompt) -> str:
        return sha256_json([self._identity, prompt.system, prompt.user, prompt.attempt])
