"""The judge that the settings ask for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from modeldiff.errors import InputError
from modeldiff.judge.base import Judge
from modeldiff.judge.cache import AnswerCache
from modeldiff.judge.cached import CachedJudge
from modeldiff.judge.settings import BASE_URL_ENV, DEFAULT_BASE_URL, DEFAULT_KEY_ENV, JudgeSettings, check_base_url

if TYPE_CHECKING:
    import torch

# Calls to an endpoint may cost money: without a word from the user, no more than this in a run.
_DEFAULT_MAX_CALLS = 1000


def open_judge(settings: JudgeSettings, cache_folder: Path, device: torch.device) -> Judge:
    """The judge, with the answers that `cache_folder` holds. Asks nothing and loads no model yet.

    Raises:
        InputError: the settings name no judge, no such model, or a key that is not there.
        MachineError: the kept answers cannot be read.
    """
    if settings.judge not in ("local", "openai"):
        raise InputError(
            "no judge is named: give --judge local --judge-model MODEL (a chat model on this machine) or "
            "--judge openai --judge-model NAME (an OpenAI-compatible endpoint)"
        )
    cache = AnswerCache(cache_folder)
    assert settings.judge_model is not None  # checked by the settings
    if settings.judge == "local":
        from modeldiff.judge.local import LocalAsker
        from modeldiff.lm.ref import ModelRef

        local = LocalAsker(
            ModelRef(settings.judge_model),
            device,
            max_tokens=settings.judge_max_tokens,
            batch_size=settings.judge_concurrency,
        )
        return CachedJudge(local, cache, settings.judge_max_calls)
    from modeldiff.judge.openai import OpenAIAsker

    remote = OpenAIAsker(
        *_endpoint(settings),
        settings.judge_model,
        max_tokens=settings.judge_max_tokens,
        concurrency=settings.judge_concurrency,
        timeout=settings.judge_timeout,
    )
    limit = _DEFAULT_MAX_CALLS if settings.judge_max_calls is None else settings.judge_max_calls
    return CachedJudge(remote, cache, limit)


def _endpoint(settings: JudgeSettings) -> tuple[str, str | None, str]:
    """(address, key, where the key comes from)."""
    if settings.judge_base_url is not None:
        url = check_base_url(settings.judge_base_url, "--judge-base-url")
    elif os.environ.get(BASE_URL_ENV):
        url = check_base_url(os.environ[BASE_URL_ENV], f"the environment's {BASE_URL_ENV}")
    else:
        url = DEFAULT_BASE_URL
    key = os.environ.get(settings.judge_key_env, "").strip() or None
    # Servers on one's own machine need no key, so only where one is surely meant is it missed.
    if key is None and (url == DEFAULT_BASE_URL or settings.judge_key_env != DEFAULT_KEY_ENV):
        raise InputError(
            f"the judge's key is not set: put it into {settings.judge_key_env}, or name another environment variable "
            "with --judge-key-env"
        )
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"{settings.judge_key_env} holds characters that no key has: set it again")
    return url, key, settings.judge_key_env
