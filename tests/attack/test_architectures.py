"""The short form of tests.attack.architectures: families that keep their stream, or list it, in different ways."""

from pathlib import Path

import pytest

from tests.attack.architectures import attempt

CAPTURED = (
    # State spaces, recurrences and hybrids: their hidden states are listed otherwise than those of transformers.
    "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma", "jamba", "bamba", "zamba2", "nemotron_h",
    "granitemoehybrid", "qwen3_next",
    # Parallel streams, numbered first and last; positions that begin behind padding; decoders of two-part models.
    "gemma3n_text", "deepseek_v4", "roberta", "blenderbot", "mpt", "longcat_flash",
)  # fmt: skip
REFUSED = {
    "xlnet": "for 5 tokens they give (5, 1, 32)",
    "dory": "they run 2 times",
    "prophetnet": "for 5 tokens they give (1, 15, 32)",
    "musicgen": "transformers cannot build it",
}


@pytest.mark.parametrize("model_type", CAPTURED)
def test_every_block_can_be_read(model_type: str, tmp_path: Path) -> None:
    outcome = attempt(model_type, tmp_path)
    assert (outcome.status, outcome.reason) == ("captured", "")


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_cannot_be_read_says_why(model_type: str, tmp_path: Path) -> None:
    outcome = attempt(model_type, tmp_path)
    assert outcome.status == "refused"
    assert REFUSED[model_type] in outcome.reason
