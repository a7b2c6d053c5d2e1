"""Settings of a judge, to be inherited by the settings of a stage that asks one. Imports nothing heavy."""

from __future__ import annotations

import re
from typing import Literal

from modeldiff.errors import InputError
from modeldiff.settings import RemoteCode, setting, settings

DEFAULT_KEY_ENV = "OPENAI_API_KEY"
BASE_URL_ENV = "OPENAI_BASE_URL"
DEFAULT_BASE_URL = "https://api.openai.com/v1"
_BASE_URL = re.compile(r"https?://([\w-]+(\.[\w-]+)*|\[[\da-f:.]+\])(:\d{1,5})?(/[^\s?#]*)?", re.IGNORECASE)


@settings
class JudgeSettings(RemoteCode):
    """Who judges. What decides the answers is `Judge.identity`: a stage puts it into its fingerprint."""

    judge: Literal["none", "local", "openai"] = setting(default="none")
    """Who judges: none, a chat model on this machine (local), or any OpenAI-compatible endpoint (openai)."""
    judge_model: str | None = setting(default=None, result=False)
    """The judging model: a folder, a GGUF file or a hub name with local, the endpoint's name for it with openai."""
    judge_base_url: str | None = setting(default=None, result=False)
    """Of the endpoint, e.g. http://localhost:8000/v1. Default: the environment's OPENAI_BASE_URL, else OpenAI's own."""
    judge_key_env: str = setting(default=DEFAULT_KEY_ENV, result=False)
    """Name of the environment variable that holds the endpoint's key. The key itself is written nowhere."""
    judge_max_calls: int | None = setting(default=None, result=False, least=0)
    """Stop before making more calls than this in one run. Default: 1000 with openai, no limit with local."""
    judge_max_tokens: int = setting(default=1024, result=False, least=1)
    """Longest answer of the judge, in tokens. A model that thinks before it answers needs more."""
    judge_concurrency: int = setting(default=4, result=False, least=1)
    """Calls at the same time with openai, prompts in a batch with local."""
    judge_timeout: float = setting(default=120.0, result=False, above=0)
    """Seconds until a call without a whole answer is given up and repeated."""

    def check(self) -> None:
        if self.judge in ("local", "openai") and not (self.judge_model or "").strip():
            which = "a folder, a GGUF file or a hub name" if self.judge == "local" else "the endpoint's name for it"
            raise InputError(f"--judge {self.judge} needs a model: name it with --judge-model ({which})")
        if self.judge_base_url is not None:
            check_base_url(self.judge_base_url, "--judge-base-url")
        if not self.judge_key_env.isidentifier():
            # What stands here may be the key itself, so it is not repeated.
            raise InputError("--judge-key-env expects the name of an environment variable, not the key")


def check_base_url(url: str, where: str) -> str:
    """The URL without a closing slash. Raises InputError: it is no plain http(s) URL. What it holds may be a secret, so
    it is not repeated in the message."""
    if not _BASE_URL.fullmatch(url.strip()):
        raise InputError(
            f"{where} is not a URL like {DEFAULT_BASE_URL}; it may hold no user name, password or query, for it is "
            "written to files: the key comes from the variable that --judge-key-env names"
        )
    return url.strip().rstrip("/")
