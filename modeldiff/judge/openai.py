"""Asking a model behind an OpenAI-compatible endpoint: several calls at a time, repeated while trouble may pass."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from modeldiff.console import say
from modeldiff.errors import MachineError
from modeldiff.judge.base import Answer, Keep, Prompt
from modeldiff.judge.endpoint import Endpoint, RefusedError, TroubleError

# 1, 2, 4, ... seconds: with six repeats a server may be away for about a minute.
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0
# A server that wants to be left alone for longer has run out of something that waiting here does not mend.
_LONGEST_ASKED_WAIT = 300.0


class _Stopped(Exception):  # noqa: N818
    """Another thread has failed; this one need not go on."""


class OpenAIAsker:
    """An `Asker` for `POST {base_url}/chat/completions`, at temperature 0.

    Args:
        endpoint: where to ask.
        model: the endpoint's name of the model.
        max_tokens: longest answer.
        concurrency: calls at the same time.
        retries: how often a call is repeated when trouble may pass (`TroubleError`).
        sleep: waits some seconds; None: in a way that ends early when the asking ends.
        clock: seconds, never going back.
        draw: a number from 0 to 1, which spreads the repeats of several threads.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        max_tokens: int,
        concurrency: int = 4,
        retries: int = 6,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._endpoint, self._model, self._max_tokens = endpoint, model, max_tokens
        self._concurrency, self._retries = concurrency, retries
        self._sleep, self._clock, self._draw = sleep, clock, draw
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._answered = 0
        self._troubled = False
        # Newer models of OpenAI's own endpoint take another name for the limit, and no temperature.
        self._limit_field = "max_tokens"
        self._takes_temperature = True

    @property
    def name(self) -> str:
        return f"openai:{self._model} at {self._endpoint.base_url}"

    def identity(self) -> dict[str, Any]:
        return {
            "judge": "openai",
            "endpoint": self._endpoint.base_url,
            "model": self._model,
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }

    def answer(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        """As `Asker.answer`. When one call fails for good, those under way are finished and no other begins.

        Raises:
            RefusedError: the server refuses a request.
            MachineError: the server stays out of reach, or says something that is not an answer.
        """
        # A new one each time: threads that Ctrl-C left behind still look at theirs.
        stop = self._stop = threading.Event()
        waiting = iter(range(len(prompts)))
        errors: list[BaseException] = []

        def work() -> None:
            while not stop.is_set():
                with self._lock:
                    number = next(waiting, None)
                if number is None:
                    return
                try:
                    answer, final = self._one(prompts[number])
                    keep(number, answer, final)
                except _Stopped:
                    return
                except BaseException as error:  # raised again below, in the thread that asked
                    errors.append(error)
                    stop.set()
                    return

        # Daemons, so that Ctrl-C need not wait for a slow server: every answer that arrived is on disk.
        threads = [
            threading.Thread(target=work, daemon=True, name=f"judge-{i}")
            for i in range(min(self._concurrency, len(prompts)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            stop.set()
        if errors:
            raise errors[0]

    def _one(self, prompt: Prompt) -> tuple[Answer, bool]:
        """The answer to one prompt, and whether it is final."""
        answered = 0
        for attempt in range(self._retries + 1):
            self._wait_for_turn()
            try:
                answer = self._answer_in(self._chat(prompt))
            except TroubleError as trouble:
                if attempt < self._retries:
                    answered = self._answered
                    self._back_off(attempt, trouble)
                elif trouble.own and self._answered > answered:
                    # Since the last try the server has answered others: it is this prompt that it cannot take.
                    return Answer(None, f"the endpoint failed on it {attempt + 1} times ({trouble})"), False
                else:
                    raise MachineError(
                        f"the judge at {self._endpoint.base_url} gave no answer in {attempt + 1} tries ({trouble})"
                    ) from None
            else:
                with self._lock:
                    self._answered += 1
                    self._troubled = False
                return answer, True
        raise AssertionError("the last attempt returns or raises")

    def _chat(self, prompt: Prompt) -> dict[str, Any]:
        while True:
            body = self._body(prompt)
            try:
                return self._endpoint.chat(body)
            except RefusedError as refused:
                if refused.field == "max_tokens" and "max_tokens" in body:
                    self._limit_field = "max_completion_tokens"
                elif refused.field == "temperature" and "temperature" in body:
                    if self._takes_temperature:
                        say(f"{self.name} takes no temperature: its answers are drawn as it draws them")
                    self._takes_temperature = False
                else:
                    raise

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        body = {"model": self._model, "messages": messages, self._limit_field: self._max_tokens, "stream": False}
        return body | ({"temperature": 0} if self._takes_temperature else {})

    def _answer_in(self, data: dict[str, Any]) -> Answer:
        """The answer in a completion.

        Raises:
            TroubleError: it is not a completion.
        """
        try:
            choice = data["choices"][0]
            text, finish = choice["message"].get("content"), choice.get("finish_reason")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise TroubleError("its answer is not a chat completion", own=True) from None
        cut = f"cut at {self._max_tokens} tokens" if finish == "length" else None
        if text is None or text == "":
            return Answer(None, f"the answer is empty{f', {cut}' if cut else ''}")
        if not isinstance(text, str):
            raise TroubleError("its answer is not a chat completion", own=True)
        return Answer(self._endpoint.hide_key(text), cut)

    def _back_off(self, attempt: int, trouble: TroubleError) -> None:
        """Wait before the next try. A wait that the server asked for holds for every thread.

        Raises:
            MachineError: it asks for a longer wait than makes sense here.
        """
        if trouble.wait is not None and trouble.wait > _LONGEST_ASKED_WAIT:
            raise MachineError(
                f"the judge at {self._endpoint.base_url} asks to be left alone for {trouble.wait:.0f} s ({trouble})"
            ) from None
        seconds = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * (0.5 + 0.5 * self._draw())
        if trouble.wait is not None:
            seconds = max(seconds, trouble.wait)
        with self._lock:
            first, self._troubled = not self._troubled, True
            if trouble.wait is not None:
                self._not_before = max(self._not_before, self._clock() + trouble.wait)
        if first:
            say(f"the judge at {self._endpoint.base_url}: {trouble}; trying again in {seconds:.0f} s")
        self._rest(seconds)

    def _wait_for_turn(self) -> None:
        if (left := self._not_before - self._clock()) > 0:
            self._rest(left)

    def _rest(self, seconds: float) -> None:
        if self._sleep is not None:
            self._sleep(seconds)
        else:
            self._stop.wait(seconds)
        if self._stop.is_set():
            raise _Stopped
