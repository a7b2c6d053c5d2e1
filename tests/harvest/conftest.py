"""Two tiny models of different architecture, width and tokenizer, and texts for them."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from modeldiff.harvest.settings import HarvestSettings
from modeldiff.workspace.stage import Work
from tests.tiny_models import CHAT_TEMPLATE, save_tiny


def make_texts(count: int = 40, words: int = 40) -> list[str]:
    letters = random.Random(0)
    vocabulary = ["".join(letters.choices("abcdefgh", k=letters.randint(2, 7))) for _ in range(80)]
    return [
        f"{i}: " + " ".join(letters.choices(vocabulary, k=letters.randint(3, words))) + ", 東京 don't 3.14 😀!"
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    texts = make_texts()
    return {
        "a": save_tiny(folder / "a", "gpt2", texts=texts, width=16, chat_template=CHAT_TEMPLATE, max_positions=128),
        "b": save_tiny(
            folder / "b", "llama", texts=texts[:20], width=24, vocab_size=400, layers=2, seed=1, add_bos=True
        ),
    }


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text("\n\n".join(make_texts()), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def make_settings(models, texts_file):
    """Settings of a small harvest, with changes."""

    def make(**changes) -> HarvestSettings:
        values = {
            "model_a": str(models["a"]),
            "model_b": str(models["b"]),
            "texts": (str(texts_file),),
            "pairs": 500,
            "shard_pairs": 200,
            "context": 48,
            "device": "cpu",
            "batch_tokens": 128,
            "storage": "float32",
        }
        return HarvestSettings(**{**values, **changes})

    return make


@pytest.fixture
def interrupted_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with what to run and the ending of a file's name: the run is interrupted before the file is there."""

    def interrupt(run: Callable[[], object], ending: str) -> None:
        commit = Work.commit

        def stop(work: Work, temporary: Path, name: str) -> None:
            if name.endswith(ending):
                raise KeyboardInterrupt
            commit(work, temporary, name)

        with monkeypatch.context() as patch:
            patch.setattr(Work, "commit", stop)
            with pytest.raises(KeyboardInterrupt):
                run()

    return interrupt
