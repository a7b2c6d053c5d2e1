"""Asking a model behind an OpenAI-compatible endpoint, several calls at a time, through the package `openai`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from modeldiff.console import say
from modeldiff.errors import InputError, MachineError, ModeldiffError, first_line
from modeldiff.judge.client import Answer, Prompt
from modeldiff.judge.settings import BASE_URL_ENV, DEFAULT_BASE_URL, DEFAULT_KEY_ENV, JudgeSettings, check_base_url

if TYPE_CHECKING:
    import openai

_LONGEST_REASON = 200
_LARGEST_ANSWER = 16 << 20
_TOO_LARGE = "the answer is larger than 16 MiB"


class Endpoint:
    """A `Backend` for `POST {base_url}/chat/completions`, at temperature 0.

    The package repeats calls while trouble may pass (timeouts, no connection, too many requests, server errors), and
    waits as long as a server asks. The key appears in the header of requests and nowhere else. Raises InputError if
    the package or the key is missing.
    """

    def __init__(self, settings: JudgeSettings, retries: int = 6) -> None:
        if importlib.util.find_spec("openai") is None:
            raise InputError("--judge openai needs the package openai: pip install 'modeldiff[openai]'")
        self._base_url = _base_url(settings)
        self._key = _key(settings, self._base_url)
        self._settings, self._tries = settings, retries + 1
        # Newer models of OpenAI's own endpoint take another name for the limit, and no temperature.
        self._options: dict[str, Any] = {"max_tokens": settings.judge_max_tokens, "temperature": 0}
        self.name = f"openai:{settings.judge_model} at {self._base_url}"
        self.identity: dict[str, Any] = {
            "judge": "openai",
            "endpoint": self._base_url,
            "model": settings.judge_model,
            "temperature": 0,
            "max_tokens": settings.judge_max_tokens,
        }

    def answer(self, prompts: Sequence[Prompt], keep: Callable[[int, Answer], None]) -> None:
        """As `Backend.answer`. When one call fails for good, those under way are finished and no other begins. Raises
        InputError if the server refuses a request, MachineError if it stays out of reach or gives no answer."""
        waiting = deque(range(len(prompts)))
        errors: list[Exception] = []

        async def work(client: openai.AsyncOpenAI) -> None:
            while waiting:
                number = waiting.popleft()
                try:
                    keep(number, self._read(await self._complete(client, prompts[number])))
                except Exception as error:  # raised again below, in the thread that asked
                    errors.append(error)
                    waiting.clear()

        async def work_together() -> None:
            async with self._client() as client:
                await asyncio.gather(*(work(client) for _ in range(self._settings.judge_concurrency)))

        def run() -> None:
            try:
                asyncio.run(work_together())
            except Exception as error:  # the client cannot be made: certificates, proxies
                errors.append(MachineError(f"the judge at {self._base_url} cannot be asked ({first_line(error)})"))

        # Beside this thread, which may have a loop already (a notebook); a daemon, so that Ctrl-C need not wait for a
        # slow server: every answer that arrived is on disk.
        thread = threading.Thread(target=run, daemon=True, name="judge")
        try:
            thread.start()
            thread.join()
        finally:
            waiting.clear()
        if errors:
            raise errors[0]

    def _client(self) -> openai.AsyncOpenAI:
        import openai

        return openai.AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._key or "none",  # servers on one's own machine ask for none, but the package insists on one
            timeout=self._settings.judge_timeout,
            max_retries=self._tries - 1,
            http_client=_impatient_client(self._settings.judge_timeout),
        )

    async def _complete(self, client: openai.AsyncOpenAI, prompt: Prompt) -> Any:
        import openai

        messages: Any = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        model: Any = self._settings.judge_model
        while True:
            options = self._options
            try:
                return await client.chat.completions.create(model=model, messages=messages, **options)
            except openai.APIError as error:
                refused = error.param if isinstance(error, openai.BadRequestError) else None
                if refused not in ("max_tokens", "temperature") or refused not in options:
                    raise self._failed(error) from None
                others = {name: value for name, value in options.items() if name != refused}
                if refused == "max_tokens":
                    others["max_completion_tokens"] = options["max_tokens"]
                else:
                    say(f"{self.name} takes no temperature: its answers are drawn as it draws them")
                self._options = others

    def _read(self, completion: Any) -> Answer:
        """The answer in a completion. Raises MachineError if it is none."""
        try:
            choice = completion.choices[0]
            text, finish = choice.message.content, choice.finish_reason
        except (AttributeError, IndexError, TypeError):
            text, finish = 0, None
        if not isinstance(text, str | None):
            raise MachineError(f"what the judge at {self._base_url} answers is not a chat completion")
        cut = f"cut at {self._settings.judge_max_tokens} tokens" if finish == "length" else None
        if not text:
            return Answer(None, f"the answer is empty{f', {cut}' if cut else ''}")
        return Answer(self._hide_key(text), cut)

    def _failed(self, error: openai.APIError) -> ModeldiffError:
        """What is to be said of a call that failed for good."""
        import openai

        where = f"the judge at {self._base_url}"
        status, because = getattr(error, "status_code", None), self._because(error)
        if status is None or status in (408, 409, 429) or status >= 500:
            said = because
            if type(error) is openai.APIConnectionError:
                said = _TOO_LARGE if _TOO_LARGE in str(error.__cause__) else "no connection"
            return MachineError(f"{where} gave no answer in {self._tries} tries ({said})")
        if status in (401, 403):
            # Some servers repeat parts of the key in what they say, so it is left out.
            found = "is not accepted" if self._key else "is not set"
            key_env = self._settings.judge_key_env
            return InputError(f"{where} refuses access (HTTP {status}): the key in {key_env} {found}")
        if 300 <= status < 400 or status == 404:
            return InputError(f"{where} was not found ({because}): check --judge-base-url and --judge-model")
        return InputError(f"{where} refuses the request ({because})")

    def _because(self, error: openai.APIError) -> str:
        body = error.body if isinstance(error.body, dict) else {"message": error.body or error.message}
        said = self._hide_key(str(body.get("message") or ""))
        words = " ".join(said.split())[:_LONGEST_REASON]
        status = getattr(error, "status_code", None)
        return ": ".join(filter(None, [f"HTTP {status}" if status else "", words]))

    def _hide_key(self, text: str) -> str:
        """The text without the key, should the other side have repeated it."""
        return text.replace(self._key, "[key]") if self._key else text


def _impatient_client(seconds: float) -> openai.DefaultAsyncHttpxClient:
    """For an exchange as a whole, from the request to the last byte of the answer, there are so many seconds. The
    timeouts that the package knows begin anew with every byte."""
    import openai

    http: Any = sys.modules[openai.DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]]

    class Client(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **options: Any) -> Any:
            try:
                async with asyncio.timeout(seconds):
                    response = await super().send(request, **{**options, "stream": True})
                    try:
                        return await read(response)
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise http.ReadTimeout(f"no whole answer in {seconds:g} s", request=request) from None

    async def read(response: Any) -> Any:
        """The same response with its body."""
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > _LARGEST_ANSWER:
                raise http.RemoteProtocolError(_TOO_LARGE, request=response.request)
        about_body = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in about_body]
        return http.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)

    # A redirect would take the question, and the key, to whatever host it names.
    return Client(follow_redirects=False)


def _base_url(settings: JudgeSettings) -> str:
    if settings.judge_base_url is not None:
        return check_base_url(settings.judge_base_url, "--judge-base-url")
    if from_environment := os.environ.get(BASE_URL_ENV):
        return check_base_url(from_environment, f"the environment's {BASE_URL_ENV}")
    return DEFAULT_BASE_URL


def _key(settings: JudgeSettings, base_url: str) -> str | None:
    """The endpoint's key; None: it asks for none."""
    name = settings.judge_key_env
    key = os.environ.get(name, "").strip() or None
    # Servers on one's own machine need no key, so only where one is surely meant is it missed.
    if key is None and (base_url == DEFAULT_BASE_URL or name != DEFAULT_KEY_ENV):
        raise InputError(
            f"the judge's key is not set: put it into {name}, or name another environment variable with --judge-key-env"
        )
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"{name} holds characters that no key has: set it again")
    return key
