"""`modeldiff harvest`: texts + two models -> activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.cli.common import show_metrics, stage_command
from modeldiff.console import echo
from modeldiff.harvest.settings import HarvestSettings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


def _show(artifact: Artifact, **_: Any) -> None:
    show_metrics(artifact)
    echo("next: modeldiff train")


command = stage_command(
    "harvest",
    HarvestSettings,
    "modeldiff.harvest.run",
    show=_show,
    plan="modeldiff.harvest.run",
    help="Texts + two models -> paired activations.\n\nReads the texts with both models, pairs the tokens that end at "
    "the same character, and stores both residual streams. An interrupted harvest continues with the same command.\n\n"
    "With several GPUs: `torchrun --nproc-per-node N -m modeldiff harvest ...`; each process captures its share.",
    lines=[
        "modeldiff harvest --model-a gpt2 --model-b EleutherAI/pythia-160m \\",
        "    --texts news=cnn.jsonl chats.jsonl@0.5 --pairs 1000000",
        "modeldiff harvest --model-a ./model-a --model-b ./model-b.gguf \\",
        "    --texts book.txt --pairs 20000 --plan",
        "modeldiff harvest --import-a a.npy --import-b b.npy",
    ],
)
