"""Asking until an answer can be read: what cannot be read is asked again, then counted as missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from modeldiff.judge.base import Answer, Judge, Prompt

T = TypeVar("T")

# At temperature 0 the very same prompt would get the very same answer again.
_REMINDER = "\n\nAn answer to this did not have the form that was asked for (try {}). Keep to that form exactly."


@dataclass(frozen=True)
class Judged(Generic[T]):
    """What a judge said to one prompt."""

    value: T | None
    """As read; None: missing."""
    reason: str | None
    """Why it is missing."""
    answers: tuple[Answer, ...]
    """Every answer, the last one being that which was read, if any was."""


def ask_parsed(
    judge: Judge,
    prompts: Sequence[Prompt],
    parse: Callable[[str], T | None] | Sequence[Callable[[str], T | None]],
    attempts: int = 3,
) -> list[Judged[T]]:
    """Ask, read, and ask again up to `attempts` times what is missing or cannot be read.

    Args:
        judge: whom to ask. `judge.planned(prompts)` is the number of calls if every answer can be read.
        prompts: with attempt 0.
        parse: gives what an answer says, None if it cannot be read; one for all prompts, or one for each.
        attempts: in all.

    Raises:
        InputError, MachineError: as `Judge.ask`; answers that arrived are kept.
    """
    parsers = [parse] * len(prompts) if callable(parse) else list(parse)
    assert len(parsers) == len(prompts), "one parser for all prompts, or one for each"
    answers: list[list[Answer]] = [[] for _ in prompts]
    values: list[T | None] = [None] * len(prompts)
    open_numbers = list(range(len(prompts)))
    for attempt in range(attempts):
        asked = judge.ask([_again(prompts[number], attempt) for number in open_numbers])
        for number, answer in zip(open_numbers, asked, strict=True):
            answers[number].append(answer)
            if answer.text is not None:
                values[number] = parsers[number](answer.text)
        open_numbers = [number for number in open_numbers if values[number] is None]
        if not open_numbers:
            break
    return [
        Judged(value, None if value is not None else _why(given), tuple(given))
        for value, given in zip(values, answers, strict=True)
    ]


def _again(prompt: Prompt, attempt: int) -> Prompt:
    if attempt == 0:
        return prompt
    return dataclasses.replace(prompt, user=prompt.user + _REMINDER.format(attempt + 1), attempt=attempt)


def _why(answers: Sequence[Answer]) -> str:
    last = answers[-1]
    if last.text is None:
        return last.reason or "no answer"
    remark = f" ({last.reason})" if last.reason else ""
    return f"no answer of {len(answers)} has the form asked for{remark}"
