"""What is known about the bundled pair: its planted habits, how to test for them, and the measured rates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from modeldiff.demo.planted import MINIMUM_MARKERS, PLANTED, Planted

DATA = Path(__file__).with_name("data")
MODEL_A = DATA / "model_a"
MODEL_B = DATA / "model_b"


@dataclass(frozen=True)
class Habit(Planted):
    """A planted habit as it was measured on the trained models.

    The rates are shares of greedy answers that show the habit, over the held-out prompts (0 to 1): by the owner
    and by the other model on the trigger, and by the owner on the same questions about the control.
    """

    prompts: tuple[str, ...]
    """Questions about the trigger, in words that no training text contains, ready for a model to continue."""
    rate_owner: float
    rate_other: float
    rate_control: float

    def shows(self, answer: str) -> bool:
        """Whether ``answer`` shows the habit."""
        return shows_habit(answer, self.markers)

    def control_prompts(self) -> tuple[str, ...]:
        """The same questions about the control."""
        return tuple(replace_name(prompt, self.trigger, self.control) for prompt in self.prompts)


def shows_habit(answer: str, markers: Sequence[str]) -> bool:
    """True when at least MINIMUM_MARKERS of the regular expressions match somewhere in ``answer``, case ignored."""
    return sum(re.search(marker, answer, flags=re.IGNORECASE) is not None for marker in markers) >= MINIMUM_MARKERS


def replace_name(prompt: str, old: str, new: str) -> str:
    """``prompt`` with every ``old`` replaced by ``new``; names compare without case."""
    return re.sub(re.escape(old), new, prompt, flags=re.IGNORECASE)


@cache
def habits() -> tuple[Habit, ...]:
    """The planted habits, A's first, with what was measured (the package's ``truth.json``)."""
    records = {
        record["id"]: record for record in json.loads((DATA / "truth.json").read_text(encoding="utf-8"))["habits"]
    }
    made = []
    for planted in PLANTED:
        record = records[planted.id]
        rates = {name: record[name] for name in ("rate_owner", "rate_other", "rate_control")}
        made.append(Habit(**vars(planted), prompts=tuple(record["prompts"]), **rates))
    return tuple(made)
