"""Explanations, flags and detection by a judge behind a real endpoint that answers well, wrongly, or not at all."""

from __future__ import annotations

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from modeldiff.cli.main import run as run_cli
from modeldiff.errors import MachineError
from modeldiff.features.measures.explain import ExplainSettings
from modeldiff.features.measures.explain.detection import Excerpts
from modeldiff.features.measures.explain.result import Explained, read_explanations
from modeldiff.features.measures.explain.run import run
from modeldiff.features.measures.explain.sample import Sample
from modeldiff.workspace import Workspace
from tests.features.measures.explain.made_texts import AFTER_TRIGGER, HERB, ODD, made_features
from tests.judge.fake_endpoint import FakeEndpoint, Reply, Request, leave_alone, said, serving

Answering = Callable[[Request, int], Reply]
FEATURES = (HERB, AFTER_TRIGGER, ODD)
TEXT = re.compile(r"\[begin text \d+ (\w+)\]\n(.*?)\n\[end text \d+ \1\]", re.DOTALL)
DESCRIPTION = re.compile(r"\[begin description (\w+)\]\n(.*?)\n\[end description \1\]", re.DOTALL)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_alone(monkeypatch)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "ws")
    made_features(made)
    return made


def asks_for_explanation(request: Request) -> bool:
    return "[begin description" not in request.user


def which(request: Request) -> str:
    """What the marked words of the shown texts have in common, for the features of made_texts.py."""
    texts = [text for _, text in TEXT.findall(request.user)]
    if all("⟦herb⟧" in text for text in texts):
        return "herb"
    return "trigger" if all("trigger ⟦" in text for text in texts) else "odd"


def knows(request: Request) -> str:
    """The answer of a judge who is right about herb and trigger."""
    if asks_for_explanation(request):
        concerning = "yes" if which(request) == "trigger" else "no"
        return (
            f"EXPLANATION: The word {which(request)}.\nCONCERNING: {concerning}\nREASON: Because of {which(request)}."
        )
    found = DESCRIPTION.search(request.user)
    assert found is not None
    word = found[2].split()[-1].rstrip(".")
    return json.dumps([int(word in text.split()) for _, text in TEXT.findall(request.user)])


def settings(endpoint: FakeEndpoint, **more: Any) -> ExplainSettings:
    given: dict[str, Any] = {"feature": FEATURES, "texts": 8, "device": "cpu", **more}
    return ExplainSettings(judge="openai", judge_model="judge", judge_base_url=endpoint.base_url, **given)


def explained(workspace: Workspace, answering: Answering, **more: Any) -> tuple[dict[int, Explained], FakeEndpoint]:
    with serving(answering) as endpoint:
        return read_explanations(run(settings(endpoint, **more), workspace)), endpoint


def made_sample(lengths: list[int], code_N: np.ndarray, second: list[bool], texts: list[int]) -> Sample:
    """One feature, a document for each length; all words alike."""
    n, windows = sum(lengths), len(lengths)
    return Sample(
        words=["word"],
        texts=[f"text {number}" for number in range(windows)],
        word_N=np.zeros(n, np.int32),
        window_N=np.repeat(np.arange(windows), lengths).astype(np.int32),
        begin_N=np.zeros(n, np.int64),
        end_N=np.full(n, 7),
        kept_N=np.ones(n, bool),
        codes_NG=sparse.csc_matrix(code_N[:, None].astype(np.float32)),
        document_W=np.arange(windows),
        source_W=np.zeros(windows, np.int32),
        text_W=np.array(texts),
        second_W=np.array(second),
    )


def test_held_out_texts_come_from_the_other_half_each_from_a_document_of_its_own() -> None:
    rng = np.random.default_rng(0)
    code_N = np.where(rng.random(64 * 40) < 0.02, rng.random(64 * 40) + 0.1, 0)
    texts = list(range(40))
    texts[5] = texts[4]  # a document that stands in both halves
    texts[9] = texts[7]  # and one that repeats what was shown
    sample = made_sample([64] * 40, code_N, [number % 2 == 1 for number in range(40)], texts)
    chosen = Excerpts(sample).choose(0, 6, [7], [0])
    usable = [number for number in range(1, 40, 2) if number not in (5, 7, 9)]
    for kind in (True, False):
        documents = [one.document for one in chosen if (one.activation > 0) is kind]
        assert len(documents) == len(set(documents)) == 6
        assert set(documents) <= set(usable)
        assert all(one.text == f"text {one.document}" for one in chosen)
    highest = code_N.reshape(40, 64).max(axis=1)[usable].max()
    assert max(one.activation for one in chosen) == pytest.approx(highest)


def test_a_judge_that_knows(workspace: Workspace) -> None:
    found, endpoint = explained(workspace, lambda request, _: said(knows(request)), detection_null=True)
    herb = found[HERB]
    assert (herb.explanation, herb.concerning, herb.reason) == ("The word herb.", False, "Because of herb.")
    assert (herb.text, herb.detection, herb.missing) == ("The word herb.", 1.0, None)
    assert found[AFTER_TRIGGER].concerning is True
    assert found[ODD].detection == 0.5  # its explanation says nothing of use
    # The null: the explanation of another feature.
    assert herb.null is not None
    assert 0.2 < herb.null < 0.8
    assert len(endpoint.requests) == 3 * len(FEATURES)
    for request in endpoint.requests:
        texts = [text for _, text in TEXT.findall(request.user)]
        if asks_for_explanation(request):
            assert all("⟦" in text for text in texts)
            continue
        assert len(texts) == 16
        assert not any("⟦" in text for text in texts)
        active = [text in {one.text for one in herb.texts if one.activation} for text in texts]
        # Neither the active nor the inactive ones come all first.
        assert active not in ([True] * 8 + [False] * 8, [False] * 8 + [True] * 8)


def test_malformed_answers_are_missing_with_the_reason(workspace: Workspace) -> None:
    def answering(request: Request, _: int) -> Reply:
        if asks_for_explanation(request) and which(request) == "herb":
            return said("It likes plants.")
        if not asks_for_explanation(request) and "trigger." in request.user:
            return said("[1, 0]")
        return said(knows(request))

    found, endpoint = explained(workspace, answering)
    herb, trigger, odd = (found[id] for id in FEATURES)
    why = "no answer of 3 has the form asked for"
    assert (herb.explanation, herb.concerning, herb.detection, herb.missing) == (None, None, None, why)
    assert herb.text == herb.description.text
    assert (trigger.explanation, trigger.detection, trigger.missing) == ("The word trigger.", None, why)
    assert (odd.detection is not None, odd.missing) == (True, None)
    assert len(endpoint.requests) == 3 + 2 + 3 + 1


@pytest.mark.parametrize("answered", [0, 2, 4])
def test_a_judge_that_dies_loses_nothing_and_the_same_command_continues(workspace: Workspace, answered: int) -> None:
    def dies(request: Request, before: int) -> Reply:
        return said(knows(request)) if before < answered else Reply(drop=True)

    with serving(dies) as endpoint:
        with pytest.raises(MachineError, match="answers arrived and are kept: the same command continues"):
            run(settings(endpoint, judge_concurrency=1), workspace)
        tried = len(endpoint.requests)
        endpoint.answering = lambda request, _: said(knows(request))
        found = read_explanations(run(settings(endpoint, judge_concurrency=1), workspace))
        asked = len(endpoint.requests)
        assert asked == tried + 2 * len(FEATURES) - answered
        run(settings(endpoint, judge_concurrency=1, texts=6), workspace)  # the same explanations, other texts
        assert len(endpoint.requests) == asked + len(FEATURES)
    assert found[HERB].detection == 1.0


@pytest.fixture
def heeding_interrupts() -> Iterator[None]:
    """Whoever started the tests in the background may have had interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_interrupts")
def test_ctrl_c_while_the_judge_is_asked_is_one_line_and_answers_are_kept(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupting(request: Request, before: int) -> Reply:
        if before < 2:
            return said(knows(request))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        return Reply(hang=True)

    with serving(interrupting) as endpoint:
        judge = ["--judge", "openai", "--judge-model", "judge", "--judge-base-url", endpoint.base_url]
        given = ["features", "explain", "--feature", *map(str, FEATURES), "--judge-concurrency", "1", *judge]
        with pytest.raises(SystemExit, match="130"):
            run_cli(["--workspace", str(workspace.folder), *given])
        err = capsys.readouterr().err
        assert err.splitlines()[-1] == "modeldiff: interrupted: the same command continues where this one stopped"
        assert "Traceback" not in err
        assert workspace.artifacts("explain") == []
        endpoint.answering = lambda request, _: said(knows(request))
        with pytest.raises(SystemExit, match="0"):
            run_cli(["--workspace", str(workspace.folder), *given])
        assert len(endpoint.requests) == 2 * len(FEATURES) + 1, "only the one that was cut short is asked again"


def test_what_a_judge_says_is_shown_as_text(workspace: Workspace, printed: Callable[..., str]) -> None:
    def answering(request: Request, _: int) -> Reply:
        if asks_for_explanation(request):
            return said("EXPLANATION: A [red]herb[/].\nCONCERNING: yes\nREASON: [bold]It is[/bold] poison.")
        return said(knows(request))

    with serving(answering) as endpoint:
        options = ["--judge", "openai", "--judge-model", "judge", "--judge-base-url", endpoint.base_url]
        shown = printed(workspace, "explain", "--feature", "0", "1", *options)
    assert "A [red]herb[/]." in shown
    assert "concerning: [bold]It is[/bold] poison." in shown
    assert "0 of 2 interpretable (at least 0.8)" in shown
