"""Asking a chat model on this machine: batches, always the likeliest token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from modeldiff.console import say
from modeldiff.judge.client import Answer, Prompt
from modeldiff.judge.settings import JudgeSettings
from modeldiff.lm.chat import open_chat
from modeldiff.lm.device import resolve_dtype
from modeldiff.lm.generate import generate_tokens
from modeldiff.lm.load import LanguageModel, ModelRef, load_model, model_identity

# Counted up when the same prompt would be put to the model in another form.
_FORM = 1
_ZERO_WIDTH_SPACE = "\u200b"


class LocalModel:
    """A `Backend` for any transformers chat model, at temperature 0, in bfloat16 on CUDA and float32 elsewhere. It is
    loaded when it is first asked something. Raises InputError if there is no such model."""

    def __init__(self, settings: JudgeSettings, device: torch.device) -> None:
        assert settings.judge_model is not None  # checked by the settings
        self._ref, self._device = ModelRef(settings.judge_model, None, settings.trust_remote_code), device
        self._max_tokens, self._batch_size = settings.judge_max_tokens, settings.judge_concurrency
        self._dtype = resolve_dtype("auto", device)
        self.name = f"local:{self._ref.short_name}"
        self.identity = {
            "judge": "local",
            "model": model_identity(self._ref),
            "dtype": str(self._dtype).removeprefix("torch."),
            "temperature": 0,
            "max_tokens": self._max_tokens,
            "form": _FORM,
        }

    def answer(self, prompts: Sequence[Prompt], keep: Callable[[int, Answer], None]) -> None:
        """As `Backend.answer`, batch by batch. A prompt longer than the model's context has no answer. Raises as
        `load_model`."""
        lm = self._lm
        texts = [self._rendered(prompt) for prompt in prompts]
        lengths = [len(lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
        fitting = []
        # Prompts of like length share a batch: less of it is padding.
        for number in sorted(range(len(prompts)), key=lambda i: lengths[i]):
            if lm.max_positions is not None and lengths[number] + self._max_tokens > lm.max_positions:
                needed = f"{lengths[number]} tokens and up to {self._max_tokens} for the answer"
                keep(number, Answer(None, f"{needed} exceed the judge's {lm.max_positions} positions"))
            else:
                fitting.append(number)
        for start in range(0, len(fitting), self._batch_size):
            batch = fitting[start : start + self._batch_size]
            options = {"max_new_tokens": self._max_tokens, "batch_size": self._batch_size}
            made = generate_tokens(lm, [texts[number] for number in batch], add_special_tokens=False, **options)
            for number, one in zip(batch, made, strict=True):
                cut = f"cut at {self._max_tokens} tokens" if len(one.new_ids) >= self._max_tokens else None
                keep(number, Answer(one.text, cut) if one.text else Answer(None, "the answer is empty"))

    @cached_property
    def _lm(self) -> LanguageModel:
        lm = load_model(self._ref, self._device, self._dtype)
        if not lm.tokenizer.chat_template:
            say(f"judge {lm.name} has no chat template: it may not understand the questions")
        return lm

    @cached_property
    def _marks(self) -> list[str]:
        """What the tokenizer reads as structure wherever it stands, such as the end of a turn; longest first."""
        added = [str(token) for token in self._lm.tokenizer.added_tokens_decoder.values()]
        return sorted((mark for mark in added if len(mark) > 1 and mark.strip()), key=len, reverse=True)

    def _rendered(self, prompt: Prompt) -> str:
        # One message of the user's: not every template knows the role of the system.
        text = f"{prompt.system}\n\n{prompt.user}"
        for mark in self._marks:
            text = text.replace(mark, mark[0] + _ZERO_WIDTH_SPACE + mark[1:])
        return open_chat(self._lm.tokenizer, text)
