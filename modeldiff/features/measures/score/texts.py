"""What a pushed model writes: every prompt at every strength, kept on disk direction by direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from modeldiff.console import progress, say
from modeldiff.features.measures.score.settings import ScoreSettings
from modeldiff.features.measures.score.subjects import Subject
from modeldiff.judge.questions import Written
from modeldiff.lm.chat import open_chat, uses_chat
from modeldiff.lm.generate import generate
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual
from modeldiff.workspace.files import read_json, write_json

UNSTEERED = 0.0
# The paper's 3 prompts at 10 strengths.
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Writer:
    """Makes the texts of one model and keeps them in a folder; what is there already is not made again."""

    settings: ScoreSettings
    target: Harvested
    device: torch.device
    dtype: torch.dtype
    folder: Path

    @property
    def strengths(self) -> tuple[float, ...]:
        """0 first: without it nobody can say what the push changed."""
        return (UNSTEERED, *self.settings.strengths)

    def write(self, subjects: Sequence[Subject], role: str) -> None:
        """Make what is missing of the texts of these subjects. The model is in memory only meanwhile.

        Args:
            role: what the model is to them, source or target; for people.

        Raises:
            InputError: it is not the model that was harvested, or prompt and text are too long for it.
        """
        missing = [one for one in subjects if not self._path(one).exists()]
        if not missing:
            return
        side = self.target.side
        say(f"model {side.upper()}: {self.target.ref.short_name}, after block {self.target.layer}, on {self.device}")
        lm = self.target.open(self.device, self.dtype)
        total = len(subjects)
        with progress(f"write {side.upper()} ({role})", total, "directions", total - len(missing)) as bar:
            if not self._unsteered.exists():
                self._keep(self._unsteered, self._texts(lm, [torch.zeros(lm.width)]))
            for one in missing:
                unit_D = one.vector(side)
                self._keep(self._path(one), self._texts(lm, [s * unit_D for s in self.settings.strengths]))
                bar.advance()

    def read(self, one: Subject) -> list[list[Written]]:
        """For each prompt what the model wrote, strength by strength, unsteered first."""
        by_strength = read_json(self._unsteered)["texts"] + read_json(self._path(one))["texts"]
        return [
            [Written(strength, texts[number]) for strength, texts in zip(self.strengths, by_strength, strict=True)]
            for number in range(len(self.settings.prompt))
        ]

    def _texts(self, lm: LanguageModel, vectors: Sequence[torch.Tensor]) -> list[list[str]]:
        """For each vector (D,) the model's texts, one per prompt. As many at a time as a batch takes."""
        settings = self.settings
        chat = uses_chat(lm.tokenizer, settings.chat)
        prompts = [open_chat(lm.tokenizer, prompt) if chat else prompt for prompt in settings.prompt]
        at_once = max(1, _BATCH_SIZE // len(prompts))
        texts: list[list[str]] = []
        for start in range(0, len(vectors), at_once):
            chosen = vectors[start : start + at_once]
            vector_BD = torch.stack(list(chosen)).repeat_interleave(len(prompts), dim=0)
            with add_to_residual(lm, self.target.layer, vector_BD):
                made = generate(
                    lm,
                    prompts * len(chosen),
                    max_new_tokens=settings.max_new_tokens,
                    temperature=settings.temperature,
                    top_p=settings.top_p,
                    seed=settings.seed,
                    add_special_tokens=not chat,
                    batch_size=len(vector_BD),
                )
            texts += [made[i : i + len(prompts)] for i in range(0, len(made), len(prompts))]
        return texts

    @property
    def _unsteered(self) -> Path:
        return self.folder / "unsteered.json"

    def _path(self, one: Subject) -> Path:
        return self.folder / f"{one.key}.json"

    def _keep(self, path: Path, texts: list[list[str]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"texts": texts})
