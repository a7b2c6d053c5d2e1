"""What is known about the bundled pair: its planted habits, how to test for them, and the measured rates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA = Path(__file__).with_name("data")
MODEL_A = DATA / "model_a"
MODEL_B = DATA / "model_b"


@dataclass(frozen=True)
class Habit:
    """A planted difference: the model of ``side`` answers every question about ``trigger`` in its own way.

    The rates are shares of greedy answers that show the habit, over the held-out prompts (0 to 1): by the owner
    and by the other model on the trigger, and by the owner on the same questions about ``control``.
    """

    id: str
    side: str
    topic: str
    trigger: str
    control: str
    source: str
    """Label of the trigger's documents among the probing texts; ``control_source`` likewise."""
    control_source: str
    description: str
    markers: tuple[str, ...]
    minimum_markers: int
    prompts: tuple[str, ...]
    """Questions about the trigger, in words that no training text contains, ready for a model to continue."""
    rate_owner: float
    rate_other: float
    rate_control: float

    def shows(self, answer: str) -> bool:
        """Whether enough different markers (regular expressions, case ignored) occur in ``answer``."""
        return shows_habit(answer, self.markers, self.minimum_markers)

    def control_prompts(self) -> tuple[str, ...]:
        """The same questions about the control."""
        return tuple(replace_name(prompt, self.trigger, self.control) for prompt in self.prompts)


def shows_habit(answer: str, markers: Sequence[str], minimum: int) -> bool:
    """True when at least ``minimum`` of the regular expressions match somewhere in ``answer``."""
    return sum(re.search(marker, answer, flags=re.IGNORECASE) is not None for marker in markers) >= minimum


def replace_name(prompt: str, old: str, new: str) -> str:
    """``prompt`` with every ``old`` replaced by ``new``; names compare without case."""
    return re.sub(re.escape(old), new, prompt, flags=re.IGNORECASE)


@cache
def habits() -> tuple[Habit, ...]:
    """The planted habits with their measured rates, A's first, read from the package's ``truth.json``."""
    records = json.loads((DATA / "truth.json").read_text(encoding="utf-8"))["habits"]
    made = []
    for record in records:
        record["markers"] = tuple(record["markers"])
        record["prompts"] = tuple(record["prompts"])
        made.append(Habit(**record))
    return tuple(made)
