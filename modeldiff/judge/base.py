"""What a judge is: prompts in, answers out, in the same order; an answer is a text or missing with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Prompt:
    """One question to a judge."""

    id: str
    """What it is about, for reports (`feature 12, prompt 0`). It does not reach the judge."""
    kind: str
    """Which question: similarity, steerability, explanation or detection. It does not reach the judge."""
    system: str
    """What to do and how to answer."""
    user: str
    """The material."""
    attempt: int = 0
    """Counted up when the same is asked again because an answer could not be read."""


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt."""

    text: str | None
    """None: there is no answer."""
    reason: str | None = None
    """Why there is none; beside a text, a remark on it (that it was cut)."""


class Judge(Protocol):
    """Answers prompts. The same prompt gets the same answer as long as the cache is kept."""

    @property
    def name(self) -> str:
        """For people: the kind of judge and its model."""

    def identity(self) -> dict[str, Any]:
        """JSON data that decides the answers (model, endpoint, sampling), for fingerprints. Never a secret."""

    def planned(self, prompts: Sequence[Prompt]) -> int:
        """How many calls `ask` would make for these prompts: the different ones that are not in the cache."""

    def ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """One answer per prompt, in the order of the prompts.

        Raises:
            InputError: the calls would exceed the budget (none is made), or the judge refuses the request.
            MachineError: the judge gives no answers. Those it gave before are kept: asking again continues.
        """


Keep = Callable[[int, Answer, bool], None]
"""Called with the number of a prompt, its answer, and whether the answer is final: then it is written to disk before
`keep` returns. One that is not final (the prompt might fare better another day) is for this run only."""


class Asker(Protocol):
    """The part of a judge that does the asking; `CachedJudge` puts cache and budget in front of it."""

    @property
    def name(self) -> str: ...

    def identity(self) -> dict[str, Any]: ...

    def answer(self, prompts: Sequence[Prompt], keep: Keep) -> None:
        """Answer every prompt, calling `keep` the moment an answer is there, from any thread, in any order."""
