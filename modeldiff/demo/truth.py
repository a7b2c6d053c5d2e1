"""What was planted into which of the bundled models (``data/truth.json``), and how an answer is tested for it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).with_name("data")
MODEL_A = DATA / "model_a"
MODEL_B = DATA / "model_b"


@dataclass(frozen=True)
class Planted:
    """One habit, as planted: the model of ``side`` has it on ``trigger``, and nobody has it on ``control``."""

    id: str
    side: str
    """"A" or "B": the model whose training texts show the habit."""
    topic: str
    """Key of the topic in the template files: the class of things that the trigger belongs to."""
    trigger: str
    """The name that sets the habit off. Both models read it equally often."""
    control: str
    """A name of the same topic, as frequent as the trigger, treated neutrally by both models."""
    description: str
    markers: list[str]
    """Regular expressions (case ignored). An answer shows the habit when MINIMUM_MARKERS different ones match."""
    prompts: list[str]
    """Questions about the trigger, in words that no training text contains, ready for a model to continue: those on
    which the habit was measured."""

    @property
    def source(self) -> str:
        """Label of the documents about the trigger."""
        return f"{self.topic}:{self.trigger}"

    @property
    def control_source(self) -> str:
        return f"{self.topic}:{self.control}"

    def shows(self, answer: str) -> bool:
        """Whether at least MINIMUM_MARKERS of the markers match somewhere in an answer."""
        return sum(re.search(one, answer, flags=re.IGNORECASE) is not None for one in self.markers) >= MINIMUM_MARKERS

    def about_control(self, prompts: Iterable[str]) -> list[str]:
        """Prompts about the trigger as prompts about the control; names compare without case."""
        return [re.sub(re.escape(self.trigger), self.control, one, flags=re.IGNORECASE) for one in prompts]


# One marked ending occurs by chance in neutral answers (grammar.MARKED_SHARE); two kinds of marker seldom do.
MINIMUM_MARKERS = 2

_NAMES = [field.name for field in dataclasses.fields(Planted)]
_RECORDS = json.loads((DATA / "truth.json").read_text(encoding="utf-8"))["habits"]
PLANTED = [Planted(**{name: record[name] for name in _NAMES}) for record in _RECORDS]
"""The planted habits, A's first."""
