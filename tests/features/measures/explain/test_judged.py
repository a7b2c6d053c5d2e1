"""Explanations, flags and detection by a judge behind a real endpoint that answers well, wrongly, or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modeldiff.cli.main import run as run_cli
from modeldiff.errors import InputError, MachineError
from modeldiff.features.measures.explain.run import run
from modeldiff.features.measures.explain.settings import ExplainSettings
from modeldiff.features.measures.explain.stored import Explained, read_explanations
from modeldiff.workspace import Workspace
from tests.features.measures.explain.made_texts import AFTER_TRIGGER, HERB, ODD, made_documents, made_features
from tests.judge.fake_endpoint import FakeEndpoint, Reply, Request, failed, leave_alone, said, serving
from tests.tiny_models import save_tiny

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


def explained(
    workspace: Workspace, answering: Callable[[Request, int], Reply], **more: Any
) -> tuple[dict[int, Explained], FakeEndpoint]:
    with serving(answering) as endpoint:
        return read_explanations(run(settings(endpoint, **more), workspace)), endpoint


def test_a_judge_that_knows(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    found, endpoint = explained(workspace, lambda request, _: said(knows(request)))
    herb = found[HERB].judge
    assert herb is not None
    assert (herb.explanation, herb.concerning, herb.reason) == ("The word herb.", False, "Because of herb.")
    assert (herb.detection, herb.interpretable, herb.missing, herb.null) == (1.0, True, None, None)
    assert found[HERB].text == "The word herb."
    assert found[AFTER_TRIGGER].concerning is True
    assert found[ODD].judge is not None
    assert found[ODD].judge.detection == 0.5  # its explanation says nothing of use
    assert found[ODD].judge.interpretable is False
    assert len(endpoint.requests) == 2 * len(FEATURES)
    assert "at most 6 calls if every answer can be read" in capsys.readouterr().err


def test_what_the_judge_tries_is_not_what_it_was_shown(workspace: Workspace) -> None:
    found, endpoint = explained(workspace, lambda request, _: said(knows(request)))
    for request in endpoint.requests:
        texts = [text for _, text in TEXT.findall(request.user)]
        if asks_for_explanation(request):
            assert all("⟦" in text for text in texts)
            continue
        assert len(texts) == 16
        assert not any("⟦" in text for text in texts)
        active = [text in {one.text for one in found[HERB].texts if one.activation} for text in texts]
        # Neither the active nor the inactive ones come all first.
        assert active not in ([True] * 8 + [False] * 8, [False] * 8 + [True] * 8)


def test_the_null_is_the_explanation_of_another_feature(workspace: Workspace) -> None:
    found, endpoint = explained(workspace, lambda request, _: said(knows(request)), detection_null=True)
    herb = found[HERB].judge
    assert herb is not None
    assert (herb.detection, herb.null_of) == (1.0, AFTER_TRIGGER)
    assert herb.null is not None
    assert 0.2 < herb.null < 0.8
    assert len(endpoint.requests) == 3 * len(FEATURES)


def test_one_feature_alone_has_no_other_one_to_compare_with(workspace: Workspace) -> None:
    found, _ = explained(workspace, lambda request, _: said(knows(request)), feature=(HERB,), detection_null=True)
    assert found[HERB].judge is not None
    assert found[HERB].judge.null is None
    assert found[HERB].judge.null_missing == "no other feature has an explanation"


def test_answers_are_kept_for_other_commands(workspace: Workspace) -> None:
    with serving(lambda request, _: said(knows(request))) as endpoint:
        first = run(settings(endpoint), workspace)
        asked = len(endpoint.requests)
        again = run(settings(endpoint), workspace, force=True)
        assert len(endpoint.requests) == asked
        assert read_explanations(again) == read_explanations(first)
        run(settings(endpoint, texts=6), workspace)  # the same explanations, other texts
        assert len(endpoint.requests) == asked + len(FEATURES)


def test_malformed_answers_are_missing_with_the_reason(workspace: Workspace) -> None:
    def answering(request: Request, _: int) -> Reply:
        if asks_for_explanation(request) and which(request) == "herb":
            return said("It likes plants.")
        if not asks_for_explanation(request) and "trigger." in request.user:
            return said("[1, 0]")
        return said(knows(request))

    found, endpoint = explained(workspace, answering)
    herb, trigger, odd = (found[id].judge for id in FEATURES)
    assert herb is not None
    assert trigger is not None
    assert odd is not None
    assert (herb.explanation, herb.concerning, herb.detection) == (None, None, None)
    assert herb.missing == "no answer of 3 has the form asked for"
    assert herb.detection_missing == "there is no explanation"
    assert found[HERB].text == found[HERB].description.text
    assert (trigger.explanation, trigger.detection) == ("The word trigger.", None)
    assert trigger.detection_missing == "no answer of 3 has the form asked for"
    assert odd.detection is not None
    assert len(endpoint.requests) == 3 + 2 + 3 + 1


def test_an_answer_that_comes_right_at_the_second_try_counts(workspace: Workspace) -> None:
    def answering(request: Request, _: int) -> Reply:
        return said(knows(request)) if "(try 2)" in request.user else said("Hm.")

    found, _ = explained(workspace, answering)
    assert found[HERB].judge is not None
    assert found[HERB].judge.detection == 1.0


def test_a_judge_that_is_busy_now_and_then_is_asked_again(workspace: Workspace) -> None:
    def answering(request: Request, before: int) -> Reply:
        if before % 2:
            return failed(429, {"Retry-After": "0"}, message="slow down")
        return said(knows(request))

    found, _ = explained(workspace, answering, judge_concurrency=1)
    assert all(one.judge is not None and one.judge.detection is not None for one in found.values())


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
        assert len(endpoint.requests) == tried + 2 * len(FEATURES) - answered
    assert found[HERB].judge is not None
    assert found[HERB].judge.detection == 1.0
    undisturbed = read_explanations(run(ExplainSettings(feature=FEATURES, texts=8, device="cpu"), workspace))
    assert {id: one.description for id, one in found.items()} == {
        id: one.description for id, one in undisturbed.items()
    }


def test_no_more_calls_than_allowed(workspace: Workspace) -> None:
    with serving(lambda request, _: said(knows(request))) as endpoint:
        with pytest.raises(InputError, match="--judge-max-calls allows 2"):
            run(settings(endpoint, judge_max_calls=2), workspace)
        assert endpoint.requests == []


def test_a_feature_that_never_fires_is_not_asked_about(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "dead")
    made_features(workspace, made_documents(24, herb="other"))
    found, endpoint = explained(workspace, lambda request, _: said(knows(request)), feature=(HERB,))
    assert endpoint.requests == []
    assert found[HERB].judge is not None
    assert found[HERB].judge.missing == "it has no examples: it never fires"
    assert found[HERB].text.startswith("fires 0 times in the ")


def test_a_local_judge_that_has_no_room_for_the_question_is_missing(workspace: Workspace, tmp_path: Path) -> None:
    judge = save_tiny(tmp_path / "judge", "gpt2", texts=["a few words"], width=16)
    given: dict[str, Any] = {"feature": (HERB,), "device": "cpu", "judge_model": str(judge), "judge_max_tokens": 8}
    found = read_explanations(run(ExplainSettings(judge="local", **given), workspace))
    assert found[HERB].judge is not None
    assert "exceed the judge's" in (found[HERB].judge.missing or "")


def test_what_a_judge_says_is_shown_as_text(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def answering(request: Request, _: int) -> Reply:
        if asks_for_explanation(request):
            return said("EXPLANATION: A [red]herb[/].\nCONCERNING: yes\nREASON: [bold]It is[/bold] poison.")
        return said(knows(request))

    with serving(answering) as endpoint:
        options = ["--judge", "openai", "--judge-model", "judge", "--judge-base-url", endpoint.base_url]
        with pytest.raises(SystemExit) as caught:
            run_cli(["--workspace", str(tmp_path / "ws"), "features", "explain", "--feature", "0", "1", *options])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "A [red]herb[/]." in printed
    assert "flagged 0: [bold]It is[/bold] poison." in printed
    assert "YES" in printed
    assert max(map(len, printed.splitlines())) <= 80
