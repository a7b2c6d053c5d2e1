"""Asking a model behind an OpenAI-compatible endpoint, several calls at a time, through the package `openai`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modeldiff.console import say
from modeldiff.errors import InputError, MachineError, ModeldiffError
from modeldiff.judge.base import Answer, Keep, Prompt

if TYPE_CHECKING:
    import openai

_LONGEST_REASON = 200
# What servers on one's own machine get, which ask for no key: the package insists on one.
_NO_KEY = "none"


class OpenAIAsker:
    """An `Asker` for `POST {base_url}/chat/completions`, at temperature 0.

    The package repeats calls while trouble may pass (timeouts, no connection, too many requests, server errors), and
    waits as long as a server asks. The key appears in the header of requests and nowhere else.

    Args:
        base_url: checked by `check_base_url`.
        key: None: the endpoint asks for none.
        key_env: where the key comes from, for messages.
        model: the endpoint's name of the model.
        max_tokens: longest answer.
        concurrency: calls at the same time.
        timeout: seconds of one try.
        retries: how often a call is repeated.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None,
        key_env: str,
        model: str,
        *,
        max_tokens: int,
        concurrency: int = 4,
        timeout: float = 120.0,
        retries: int = 6,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise InputError("--judge openai needs the package openai: pip install 'modeldiff[openai]'") from None
        self._base_url, self._key, self._key_env, self._model = base_url, key, key_env, model
        self._max_tokens, self._concurrency, self._tries = max_tokens, concurrency, retries + 1
        self._client = openai.OpenAI(
            base_url=base_url,
            api_key=key or _NO_KEY,
            timeout=timeout,
            max_retries=retries,
            # A redirect would take the question, and the key, to whatever host it names.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._lock = threading.Lock()
        self._answered = 0
        # Newer models of OpenAI's own endpoint take another name for the limit, and no temperature.
        self._options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0}

    @property
    def name(self) -> str:
        return f"openai:{self._model} at {self._base_url}"

    def identity(self) -> dict[str, Any]:
        return {
            "judge": "openai",
            "endpoint": self._base_url,
            "model": self._model,
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }

    def answer(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        """As `Asker.answer`. When one call fails for good, those under way are finished and no other begins.

        Raises:
            InputError: the server refuses a request.
            MachineError: the server stays out of reach, or says something that is not an answer.
        """
        waiting, stop = iter(range(len(prompts))), threading.Event()
        errors: list[BaseException] = []

        def work() -> None:
            while not stop.is_set():
                with self._lock:
                    number = next(waiting, None)
                if number is None:
                    return
                try:
                    keep(number, *self._one(prompts[number]))
                except BaseException as error:  # raised again below, in the thread that asked
                    errors.append(error)
                    stop.set()

        # Daemons, so that Ctrl-C need not wait for a slow server: every answer that arrived is on disk.
        count = min(self._concurrency, len(prompts))
        threads = [threading.Thread(target=work, daemon=True, name=f"judge-{i}") for i in range(count)]
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
        import openai

        before = self._answered
        try:
            answer = self._read(self._ask(prompt))
        except openai.InternalServerError as error:
            # While it was tried, the server has answered others: it is this prompt that it cannot take.
            if self._answered > before:
                return Answer(None, f"the endpoint failed on it {self._tries} times ({self._because(error)})"), False
            raise self._failed(error) from None
        except openai.APIError as error:
            raise self._failed(error) from None
        with self._lock:
            self._answered += 1
        return answer, True

    def _ask(self, prompt: Prompt) -> Any:
        import openai

        messages: Any = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        while True:
            options = self._options
            try:
                return self._client.chat.completions.create(model=self._model, messages=messages, **options)
            except openai.BadRequestError as error:
                if error.param == "max_tokens" and "max_tokens" in options:
                    others = {name: value for name, value in options.items() if name != "max_tokens"}
                    self._options = {**others, "max_completion_tokens": self._max_tokens}
                elif error.param == "temperature" and "temperature" in options:
                    say(f"{self.name} takes no temperature: its answers are drawn as it draws them")
                    self._options = {name: value for name, value in options.items() if name != "temperature"}
                else:
                    raise

    def _read(self, completion: Any) -> Answer:
        """The answer in a completion.

        Raises:
            MachineError: it is none.
        """
        try:
            choice = completion.choices[0]
            text, finish = choice.message.content, choice.finish_reason
        except (AttributeError, IndexError, TypeError):
            text, finish = 0, None
        if not isinstance(text, str | None):
            raise MachineError(f"what the judge at {self._base_url} answers is not a chat completion")
        cut = f"cut at {self._max_tokens} tokens" if finish == "length" else None
        if not text:
            return Answer(None, f"the answer is empty{f', {cut}' if cut else ''}")
        return Answer(self._hide_key(text), cut)

    def _failed(self, error: openai.APIError) -> ModeldiffError:
        """What is to be said of a call that failed for good."""
        import openai

        where = f"the judge at {self._base_url}"
        if not isinstance(error, openai.APIStatusError):
            said = "no connection" if type(error) is openai.APIConnectionError else self._because(error)
            return MachineError(f"{where} gave no answer in {self._tries} tries ({said})")
        status, because = error.status_code, self._because(error)
        if error.code == "insufficient_quota":
            return MachineError(f"the account at {self._base_url} has used up its quota")
        if status in (401, 403):
            # Some servers repeat parts of the key in what they say, so it is left out.
            found = "is not accepted" if self._key else "is not set"
            return InputError(f"{where} refuses access (HTTP {status}): the key in {self._key_env} {found}")
        if 300 <= status < 400:
            return InputError(f"{where} has moved (HTTP {status}): give its address with --judge-base-url")
        if status == 404:
            return InputError(f"{where} was not found ({because}): check --judge-base-url and --judge-model")
        if status in (408, 409, 429) or status >= 500:
            return MachineError(f"{where} gave no answer in {self._tries} tries ({because})")
        return InputError(f"{where} refuses the request ({because})")

    def _because(self, error: openai.APIError) -> str:
        """The server's own words in one line, without the key."""
        body = error.body if isinstance(error.body, dict) else {"message": error.body or error.message}
        said = str(body.get("message") or "")
        words = " ".join("".join(c if c.isprintable() else " " for c in self._hide_key(said)).split())
        status = getattr(error, "status_code", None)
        parts = [f"HTTP {status}"] if status else []
        parts += [words[:_LONGEST_REASON]] if words else []
        return ": ".join(parts)

    def _hide_key(self, text: str) -> str:
        """The text without the key, should the other side have repeated it."""
        return text.replace(self._key, "[key]") if self._key else text
