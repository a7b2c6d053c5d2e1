"""A pair of tiny models, texts, and every stage of the tool on them, each as a command of a second or two."""

from __future__ import annotations

import json
import random
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modeldiff.workspace import Artifact, Workspace
from tests.attack.child import call
from tests.tiny_models import CHAT_TEMPLATE, save_tiny

TINY_TOY = shlex.split(
    "--preset quick --tables sizes --seeds 1 --architectures standard dfc --jobs 1 "
    "--concepts 16 --width-a 8 --width-b 8 --sizes 1 --steps 30 --exclusive-ratio 0.25"
)


@dataclass(frozen=True)
class Stage:
    """A command, and the kind of artifact that it makes."""

    kind: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Inputs in a folder, and the stages in an order in which they can run.

    Attributes:
        digests: by kind, of the artifact that an undisturbed run makes.
        seconds: by kind, what it took.
    """

    folder: Path
    stages: list[Stage]
    digests: dict[str, str]
    seconds: dict[str, float]

    @property
    def workspace(self) -> Path:
        """Where every stage has run, undisturbed: not to be changed."""
        return self.folder / "done"

    def copy(self, to: Path) -> Path:
        """A copy of `workspace`."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.workspace, to)
        return to


def build(folder: Path, kinds: list[str] | None = None) -> World:
    """Make the inputs and run the stages (those of these kinds) once. Raises RuntimeError: one fails."""
    made = World(folder, [one for one in prepare(folder) if kinds is None or one.kind in kinds], {}, {})
    for stage in made.stages:
        take_away(made.workspace, stage)  # one command makes continuations and a contrast
        outcome = call("--workspace", str(made.workspace), *stage.args)
        if outcome.code:
            raise RuntimeError(f"{' '.join(stage.args)}: {outcome.last_line}")
        made.digests[stage.kind] = newest(made.workspace, stage.kind).manifest.digest
        made.seconds[stage.kind] = outcome.seconds
    return made


def prepare(folder: Path) -> list[Stage]:
    """Make the inputs; the stages that can run on them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(200)]
    texts = [" ".join(rng.choices(words, k=60)) + "." for _ in range(60)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "prompts.txt").write_text("\n".join(" ".join(rng.choices(words, k=8)) for _ in range(3)) + "\n")
    for name, arch, width in (("a", "gpt2", 16), ("b", "llama", 24)):
        save_tiny(folder / name, arch, texts=texts, width=width, layers=2, chat_template=CHAT_TEMPLATE)
    return _stages(folder)


def take_away(workspace: Path, stage: Stage) -> None:
    """Remove what the stage made, so that it has to run."""
    opened = Workspace(workspace)
    for artifact in opened.artifacts(stage.kind):
        opened.remove(artifact.folder)


def newest(workspace: Path, kind: str) -> Artifact:
    return Workspace(workspace).find(kind)


def _stages(folder: Path) -> list[Stage]:
    models = ("--model-a", str(folder / "a"), "--model-b", str(folder / "b"))
    texts = ("--texts", str(folder / "texts.jsonl"))
    cpu = ("--device", "cpu")
    harvest = ("--pairs", "2400", "--shard-pairs", "500", "--context", "48", "--batch-tokens", "256", *cpu)
    write = ("--prompts", str(folder / "prompts.txt"), "--strength", "1", "2", "--max-new-tokens", "4", *cpu)
    vector = folder / "vector.npy"
    np.save(vector, np.random.default_rng(0).standard_normal(16).astype(np.float32))
    often = ("--checkpoint-seconds", "0.05")
    short = ("--max-new-tokens", "4")
    contrast = ("contrast", "--no-cause", "--places", "40", "--tokens", "3", "--least", "4", *cpu)
    return [
        Stage("activations", ("harvest", *models, *texts, *harvest)),
        Stage(
            "crosscoder",
            ("train", "--features", "64", "--k", "8", "--steps", "60", "--batch", "256", *often, *cpu),
        ),
        Stage("features", ("features", "--sample-pairs", "2000", *cpu)),
        Stage("stitch", ("features", "stitch", *cpu)),
        Stage("continuations", contrast),
        Stage("contrast", contrast),
        Stage("evaluate", ("features", "evaluate", "--pairs", "600", *cpu)),
        Stage("impact", ("features", "impact", "--pairs", "300", "--samples", "1", *cpu)),
        Stage("explain", ("features", "explain", "--pairs", "1500", "--top", "3", *cpu)),
        Stage("steering", ("steer", "--model", "A", "--feature", "0", *write)),
        Stage(
            "transfer",
            ("steer", "transfer", "--from", "A", "--vector", str(vector), "--prompt", "ab", *short, *cpu),
        ),
        Stage("toy", ("toy", *TINY_TOY, *cpu)),
    ]
