"""The continuations stage on two tiny models: what is written, that it can be interrupted, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeldiff.contrast import sampling
from modeldiff.contrast.continuations import Continuations, run
from modeldiff.contrast.settings import ContinuationsSettings
from modeldiff.errors import DamagedError, InputError
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.lm.generate import continue_tokens, generate
from modeldiff.lm.model import LanguageModel
from modeldiff.workspace import Artifact, Workspace
from tests.contrast.conftest import make_texts
from tests.made_activations import make_activations

Make = Callable[..., ContinuationsSettings]


def lines(artifact: Artifact, name: str) -> list[Any]:
    return [json.loads(line) for line in artifact.file(name).read_text(encoding="ascii").splitlines()]


def test_the_layout_is_as_stated(continued: Artifact, models: dict[str, Path]) -> None:
    documents, places = lines(continued, "documents.jsonl"), lines(continued, "places.jsonl")
    assert documents == [
        {"text": text, "source": ("web", "code")[i % 2], "number": i, "messages": None}
        for i, text in enumerate(make_texts())
    ]
    assert [set(one) for one in places] == [{"document", "end", "divergence", "drawn"}] * len(places)
    # As many places of each document: 60 of 40 is 2 or, by the rule of half to even, 2.
    assert [one["document"] for one in places] == [i // 2 for i in range(80)]
    assert all(0 <= one["divergence"] <= 1 for one in places)
    assert sorted(one["drawn"] for one in places) == ["divergence"] * 40 + ["uniform"] * 40
    counts = {"documents": 40, "places": 80, "sources": {"code": 40, "web": 40}}
    assert json.loads(continued.file("continuations.json").read_text()) == {
        "format": 1,
        "models": {side: str(models[side]) for side in "ab"},
        "revisions": {"a": None, "b": None},
        **counts,
        "mean_divergence": pytest.approx(np.mean([one["divergence"] for one in places]), abs=1e-5),
    }
    assert continued.metrics == counts
    assert continued.problems() == []
    opened = Continuations(continued)
    said = {side: lines(continued, f"said_{side}.jsonl") for side in "ab"}
    for i, (place, line) in enumerate(zip(opened.places, places, strict=True)):
        assert place.said == {side: said[side][i] for side in "ab"}
        assert opened.before(i) == make_texts()[line["document"]][: line["end"]]
        assert (place.divergence, place.drawn) == (line["divergence"], line["drawn"])


def test_models_really_go_on_from_the_text_before_the_place(
    make_settings: Make, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, lms: dict[str, LanguageModel]
) -> None:
    """With the likeliest token instead of a draw, what a model says is what `generate` gives for that text."""
    monkeypatch.setattr(
        sampling, "continue_tokens", lambda *args, **values: continue_tokens(*args, **{**values, "temperature": 0.0})
    )
    opened = Continuations(run(make_settings(), workspace))
    before = [opened.before(i) for i in range(len(opened.places))]
    for side, lm in lms.items():
        expected = generate(lm, before, max_new_tokens=4)
        assert [place.said[side] for place in opened.places] == [[text] for text in expected]
        assert len(set(expected)) > 20


def test_the_same_command_is_up_to_date_and_a_second_run_gives_the_same_bytes(
    continued: Artifact, make_settings: Make, workspace: Workspace, capsys
) -> None:
    first = run(make_settings(), workspace)
    assert first.manifest.digest == continued.manifest.digest
    assert run(make_settings(device="auto"), workspace).ref == first.ref == "continuations:1"
    assert "continuations:1 is up to date" in capsys.readouterr().err
    assert run(make_settings(seed=1), workspace).ref == "continuations:2"


@pytest.mark.parametrize("fails_at", [2, 5])
def test_interrupted_at_a_part_it_ends_with_the_same_bytes(
    make_settings: Make, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    monkeypatch.setattr(sampling, "_PART", 24)  # four parts a side
    straight = run(make_settings(), Workspace(tmp_path / "straight"))
    calls: list[int] = []

    def breaking(lm: LanguageModel, prompts: list[list[int]], **values: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return continue_tokens(lm, prompts, **values)

    monkeypatch.setattr(sampling, "continue_tokens", breaking)
    with pytest.raises(KeyboardInterrupt):
        run(make_settings(), workspace)
    calls.append(0)  # no further interruption
    done = calls.copy()
    again = run(make_settings(), workspace)
    assert again.manifest.digest == straight.manifest.digest
    assert again.files() == straight.files()
    # Every finished part was kept: what was interrupted and what had not begun is done now.
    assert sum(calls) - sum(done) == 2 * 80 - (sum(done) - done[fails_at - 1])


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(f"abc {i}?" for i in range(45)))
    return path


@pytest.mark.parametrize("texts", [False, True])
def test_prompts_alone_and_together_with_texts(
    make_settings: Make, workspace: Workspace, texts_file: Path, prompts_file: Path, texts: bool
) -> None:
    asked = make_settings(texts=(str(texts_file),) if texts else (), prompts=prompts_file)
    artifact = run(asked, workspace)
    opened = Continuations(artifact)
    assert opened.info["sources"] == ({"code": 20, "web": 20} if texts else {}) | {"prompts": 45}
    before = [opened.before(i) for i, place in enumerate(opened.places) if place.drawn == "given"]
    assert before == [f"abc {i}?" for i in range(45)]
    assert len(set(opened.number)) == len(opened.documents)
    (artifact.folder / "said_b.jsonl").write_text("{")
    with pytest.raises(DamagedError, match=r"said_b\.jsonl.*workspace remove continuations:1"):
        Continuations(artifact)


def test_a_prompt_that_is_too_long_is_left_out_counted_and_named(
    make_settings: Make, workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("abc gah?\n" * 41 + "bed " * 300)
    asked = make_settings(texts=(), prompts=path, context=30)
    assert len(Continuations(run(asked, workspace)).documents) == 41
    said = capsys.readouterr().err
    assert "1 record left out" in said
    assert f"{path}, prompt 42: nothing to answer within 30 tokens (--context)" in said


def test_chats_are_kept_with_their_messages_and_draws_differ(
    make_settings: Make, workspace: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "abc gah?"}, {"role": "assistant", "content": "bed cab 3.14."}]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(20)))
    artifact = run(make_settings(texts=(str(path),), draws=2), workspace)
    assert lines(artifact, "documents.jsonl")[0]["messages"] == messages
    opened = Continuations(artifact)
    assert opened.documents[0].messages == tuple(messages)
    assert [opened.before(i) for i in range(20)] == ["abc gah?"] * 20
    for side in "ab":  # untrained models say nearly anything
        assert sum(one != other for one, other in (place.said[side] for place in opened.places)) > 15


def test_models_and_texts_of_the_latest_activations(
    make_settings: Make, workspace: Workspace, models: dict[str, Path], texts_file: Path, continued: Artifact, capsys
) -> None:
    with pytest.raises(InputError, match="modeldiff harvest"):
        run(make_settings(model_a=None, model_b=None), workspace)
    named = {f"model_{side}": str(folder) for side, folder in models.items()}
    run_harvest(HarvestSettings(**named, texts=(str(texts_file),), pairs=100, device="cpu"), workspace)
    artifact = run(make_settings(model_a=None, model_b=None, texts=()), workspace)
    assert artifact.manifest.digest == continued.manifest.digest
    assert "models and texts as in activations:1" in capsys.readouterr().err
    # What is given goes first.
    assert run(make_settings(model_a=None, model_b=None), workspace).ref == artifact.ref
    assert run(make_settings(texts=()), workspace).ref == artifact.ref
    make_activations(workspace, torch.randn(20, 4), torch.randn(20, 4))
    with pytest.raises(InputError, match="--model-a and --model-b"):
        run(make_settings(model_a=None, model_b=None), workspace)
    with pytest.raises(InputError, match="give --texts or --prompts"):
        run(make_settings(texts=()), workspace)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_b": None}, "both --model-a and --model-b"),
        ({"texts": ("nowhere.txt",)}, "nowhere.txt"),
        ({"texts": ("short.txt",)}, "no place that both models can go on from"),
        ({"tokens": 250}, "--tokens 250 leaves too few"),
    ],
)
def test_what_cannot_be_done_is_said(
    make_settings: Make, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str
) -> None:
    workspace.create()
    monkeypatch.chdir(workspace.folder)
    Path("short.txt").write_text("abc")
    with pytest.raises(InputError, match=says):
        run(make_settings(**changes), workspace)
