"""What a pushed model writes: every prompt at every strength, kept on disk direction by direction.

Legend: D width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from modeldiff.console import progress, say
from modeldiff.features.measures.score import ScoreSettings
from modeldiff.features.measures.score.directions import ScoredDirection
from modeldiff.judge.questions import Written
from modeldiff.lm.chat import open_chat, uses_chat
from modeldiff.lm.generate import generate
from modeldiff.lm.harvested import Harvested
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual
from modeldiff.workspace.files import read_json, write_json

# The paper's 3 prompts at 10 strengths.
_BATCH_SIZE = 32


@dataclass(frozen=True)
class Writer:
    """Makes the texts of one model and keeps them in a folder; what is there already is not made again."""

    settings: ScoreSettings
    model: Harvested
    device: torch.device
    dtype: torch.dtype
    folder: Path

    def write(self, directions: Sequence[ScoredDirection], role: str) -> None:
        """Make what is missing of the texts of these directions, to which the model is the source or the target
        (`role`). It is in memory only meanwhile. Raises InputError if it is not the model that was harvested, or if
        prompt and text are too long for it."""
        missing = [one for one in directions if not self._path(one.key).exists()]
        if not missing:
            return
        side, total = self.model.side, len(directions)
        say(f"model {side.upper()}: {self.model.ref.short_name}, after block {self.model.layer}, on {self.device}")
        lm = self.model.open(self.device, self.dtype)
        with progress(f"write {side.upper()} ({role})", total, "directions", total - len(missing)) as bar:
            if not self._path("unsteered").exists():
                self._keep("unsteered", self._texts(lm, [torch.zeros(lm.width)]))
            for one in missing:
                pushes = [strength * one.unit_D[side] for strength in self.settings.strengths if strength]
                self._keep(one.key, self._texts(lm, pushes))
                bar.advance()

    def read(self, direction: ScoredDirection) -> list[list[Written]]:
        """For each prompt what the model wrote, strength by strength, unsteered first."""
        by_strength = [text for key in ("unsteered", direction.key) for text in read_json(self._path(key))["texts"]]
        return [list(zip(self.settings.strengths, texts, strict=True)) for texts in zip(*by_strength, strict=True)]

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
            with add_to_residual(lm, self.model.layer, vector_BD):
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

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _keep(self, key: str, texts: list[list[str]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(key), {"texts": texts})
