"""Which judge: the backend that the settings name, with its answers so far."""

from __future__ import annotations

from pathlib import Path

import torch

from modeldiff.errors import InputError
from modeldiff.judge.client import AnswerCache, Judge
from modeldiff.judge.local import LocalModel
from modeldiff.judge.openai import Endpoint
from modeldiff.judge.settings import JudgeSettings

# Calls to an endpoint may cost money: without a word from the user, no more than this in a run.
_DEFAULT_MAX_CALLS = 1000


def open_judge(settings: JudgeSettings, cache_folder: Path, device: torch.device) -> Judge:
    """The judge that the settings ask for, with the answers that `cache_folder` holds. Loads no model yet. Raises
    InputError: the settings name no judge, no such model, or a key that is not there."""
    cache, limit = AnswerCache(cache_folder), settings.judge_max_calls
    if settings.judge == "local":
        return Judge(LocalModel(settings, device), cache, limit)
    if settings.judge == "openai":
        return Judge(Endpoint(settings), cache, _DEFAULT_MAX_CALLS if limit is None else limit)
    raise InputError(
        "no judge is named: give --judge local --judge-model MODEL (a chat model on this machine) or "
        "--judge openai --judge-model NAME (an OpenAI-compatible endpoint)"
    )
