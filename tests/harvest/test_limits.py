"""What a plan holds is what the models can take: token ids below the embeddings, texts no longer than the positions."""

import json
from pathlib import Path

import pytest
import transformers

import modeldiff.harvest.run as harvest_run
from modeldiff.errors import InputError
from modeldiff.harvest.run import estimate, open_pair, run
from modeldiff.workspace import Workspace
from tests.tiny_models import tiny_tokenizer


@pytest.fixture
def with_a_token_more(models: dict[str, Path], tmp_path: Path) -> str:
    """Model B with a token that was added to its tokenizer and not to it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(models["b"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(models["b"])
    tokenizer.add_tokens(["<tool_call>"])
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "b")
    return str(tmp_path / "b")


def test_a_token_without_embedding_is_named_before_a_model_is_loaded(
    make_settings, workspace: Workspace, with_a_token_more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(harvest_run, "load_model", no_model)
    size = json.loads((Path(with_a_token_more) / "config.json").read_text())["vocab_size"]
    # Beyond the documents that are looked at first.
    lines = ["a b c"] * 100 + ["call <tool_call> now"]
    texts = tmp_path / "calls.jsonl"
    texts.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    expected = rf"model B \(b\) gives token '<tool_call>' the id {size}, but the model has embeddings for {size} tokens"
    with pytest.raises(InputError, match=expected):
        run(make_settings(model_b=with_a_token_more, texts=(str(texts),), pairs=5000, pair_at="tokens"), workspace)
    # The token alone is no reason: padding tokens are often added like this.
    assert estimate(make_settings(model_b=with_a_token_more), workspace)["fits"]


def test_the_context_ends_where_the_positions_do_whatever_they_are_called(make_settings, tmp_path: Path) -> None:
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 320, "max_seq_len": 40}
    transformers.MptConfig(**sizes).save_pretrained(tmp_path / "mpt")
    tiny_tokenizer().save_pretrained(tmp_path / "mpt")
    assert open_pair(make_settings(model_b=str(tmp_path / "mpt"))).context == {"a": 48, "b": 40}
