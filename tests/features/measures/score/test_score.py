"""The score, by a judge behind a real HTTP server that is well, wrong, flaky or dead."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

import modeldiff.features.measures.score.run as texts_module
from modeldiff.catalogue.direction import direction_of
from modeldiff.errors import InputError
from modeldiff.features.measures.score import PROMPTS, ScoreSettings
from modeldiff.features.measures.score.result import GENERATIONS_NAME, ScoreRow, read_score, read_scores
from modeldiff.features.measures.score.run import run
from modeldiff.lm.chat import open_chat
from modeldiff.lm.generate import generate
from modeldiff.lm.load import ModelRef, load_model
from modeldiff.lm.residual import add_to_residual
from modeldiff.records import from_json
from modeldiff.workspace import Artifact
from tests.features.made_pair import (
    B_LOUD,
    DEAD,
    LAYER,
    LOUD,
    MUTE,
    SHARED_LOUD,
    WIDTH,
    Made,
    crosscoder,
    publish_stitch,
)
from tests.judge.fake_endpoint import FakeEndpoint, Reply, Request, failed, leave_alone, said, serving

FEATURES = (LOUD, MUTE, B_LOUD)
ONE: dict[str, Any] = {"feature": (LOUD,), "random_directions": 0}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_alone(monkeypatch)


@pytest.fixture
def stitched(pair: Made) -> Made:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    return pair


@pytest.fixture
def generated(dying: Callable[..., list[Any]]) -> list[Any]:
    """Gets an entry whenever texts are generated."""
    return dying(texts_module, "generate")


def settings_of(server: FakeEndpoint, **values: Any) -> ScoreSettings:
    chosen = {
        "judge": "openai", "judge_model": "wise", "judge_base_url": server.base_url, "judge_concurrency": 1,
        "feature": FEATURES, "random_directions": 1, "strength": (1.0, 3.0), "max_new_tokens": 3, "device": "cpu",
        "prompt": PROMPTS[:2],
    }  # fmt: skip
    return ScoreSettings(**{**chosen, **values})


def kind_of(request: Request) -> str:
    return "similarity" if "Two language models" in request.body["messages"][0]["content"] else "steerability"


def rating(steerability: int = 4, similarity: int = 2) -> Callable[[Request, int], Reply]:
    """A judge with one opinion on each question."""

    def answer(request: Request, before: int) -> Reply:
        return said(f"Because.\nRATING: {similarity if kind_of(request) == 'similarity' else steerability}")

    return answer


def rows_of(artifact: Artifact) -> list[ScoreRow]:
    return [from_json(ScoreRow, row, "here") for row in read_score(artifact)["rows"]]


def generations(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifact.folder / GENERATIONS_NAME).read_text().splitlines()]


def test_the_score_is_6_minus_the_rating_and_all_is_kept(stitched: Made, generated: list[Any]) -> None:
    with serving(rating()) as server:
        artifact = run(settings_of(server), stitched.workspace)
        kinds = Counter(kind_of(request) for request in server.requests)
    rows = rows_of(artifact)
    assert [(row.partition, row.source, row.number) for row in rows] == [
        ("A", "A", LOUD), ("A", "A", MUTE), ("B", "B", B_LOUD), ("random", "A", 0), ("random", "B", 0),
    ]  # fmt: skip
    assert all((row.steerability, row.score, row.missing) == (4, 4, []) for row in rows)
    # Five directions, two prompts; the mute feature's texts and questions are the unsteered ones, asked as any other.
    assert kinds["steerability"] <= 10
    assert kinds["similarity"] <= 10
    texts = generations(artifact)
    assert len(texts) == 5 * 2 * 2 * 3  # directions, models, prompts, strengths 0, 1 and 3
    unsteered = {(t["model"], t["prompt"], t["text"]) for t in texts if t["strength"] == 0}
    assert len(unsteered) == 4
    mute = [t for t in texts if t["subject"].startswith(f"{MUTE} A")]
    assert len({t["text"] for t in mute if t["prompt"] == PROMPTS[0]}) == 1
    # Unsteered once in each model, then each direction in both, all strengths and prompts at once.
    assert len(generated) == 2 + 5 * 2
    score = read_score(artifact)
    assert (score["judge"], score["prompts"]) == (f"openai:wise at {server.base_url}", list(PROMPTS[:2]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature": (DEAD,)}, "never fires"),
        ({"feature": (99,)}, "feature 99 does not exist"),
        ({"stitch": "7"}, "no stitch called '7'"),
    ],
)
def test_what_is_not_there_is_said(pair: Made, values: dict[str, Any], message: str) -> None:
    with serving(rating()) as server:
        with pytest.raises(InputError, match=r"no stitch of activations:1 yet.*modeldiff features stitch --activ"):
            run(settings_of(server), pair.workspace)
        publish_stitch(pair, torch.eye(WIDTH), "identity")
        with pytest.raises(InputError, match=message):
            run(settings_of(server, **values), pair.workspace)


def test_the_judge_sees_what_the_paper_shows_it(stitched: Made) -> None:
    with serving(rating()) as server:
        run(settings_of(server, **ONE, prompt=PROMPTS), stitched.workspace)
        requests = list(server.requests)
    assert Counter(map(kind_of, requests)) == {"steerability": 3, "similarity": 3}
    assert PROMPTS == ("What's on your mind?", "What do you want to talk about?", "Tell me something")
    for number, request in enumerate(requests):
        assert f"]\n{PROMPTS[number % 3]}\n[end" in request.user
        both = kind_of(request) == "similarity"
        strengths = re.findall(r"\[begin (?:model [12] at )?strength (\S+)", request.user)
        assert strengths == [s for s in ("0", "1", "3") for _ in range(2 if both else 1)]


def test_what_is_not_steerable_is_neither_moved_nor_compared(stitched: Made, generated: list[Any]) -> None:
    with serving(rating(steerability=2)) as server:
        # Long enough that no two texts are the same, which would be asked about once.
        artifact = run(settings_of(server, max_new_tokens=8), stitched.workspace)
        asked = [request.user for request in server.requests if kind_of(request) == "similarity"]
    for row in rows_of(artifact):
        if row.partition == "random":
            assert row.score == 4  # a control is compared whatever it does
        else:
            assert row.score is None
            assert row.missing == ["not steerable: rated 2, below 3"]
    assert len(asked) == 2 * 2
    assert len(generated) == 2 + 5 + 2
    group = read_score(artifact)["groups"][0]
    assert (group["n"], group["scored"], group["not_steerable"], group["missing"]) == (2, 0, 2, 0)


def test_answers_that_cannot_be_read_are_asked_again_then_missing(stitched: Made) -> None:
    def babbling(request: Request, before: int) -> Reply:
        if kind_of(request) == "similarity" and PROMPTS[0] in request.user:
            return said("I would rather not say.")
        return rating()(request, before)

    with serving(babbling) as server:
        artifact = run(settings_of(server, **ONE), stitched.workspace)
        asked = [r for r in server.requests if kind_of(r) == "similarity" and PROMPTS[0] in r.user]
    assert len(asked) == 3
    (row,) = rows_of(artifact)
    assert row.score == 4  # of the prompt that was answered
    assert [one["similarity"] for one in row.ratings] == [None, 2]
    assert row.missing == [f"similarity, prompt {PROMPTS[0]!r}: no answer of 3 has the form asked for"]
    with serving(lambda *_: said("Hm.")) as server:
        artifact = run(settings_of(server, **ONE), stitched.workspace)
    (row,) = rows_of(artifact)
    assert (row.steerability, row.score, len(row.missing)) == (None, None, 2)
    (group,) = read_score(artifact)["groups"]
    assert (group["not_steerable"], group["missing"]) == (0, 1)


@pytest.mark.parametrize("dies_at", [3, 9])
def test_a_judge_that_dies_loses_nothing_and_the_same_command_continues(
    stitched: Made, generated: list[Any], dies_at: int
) -> None:
    alive = [False]

    def dying(request: Request, before: int) -> Reply:
        return rating()(request, before) if alive[0] or before < dies_at else failed(401)

    with serving(dying) as server:
        settings = settings_of(server)
        with pytest.raises(
            InputError, match=r"refuses access.*answers arrived and are kept: the same command continues"
        ):
            run(settings, stitched.workspace)
        assert not stitched.workspace.artifacts("score")
        made = len(generated)
        answered = [request.user for request in server.requests[:dies_at]]
        alive[0] = True
        before = len(server.requests)
        artifact = run(settings, stitched.workspace)
        after = [request.user for request in server.requests[before:]]
    assert made > 0
    assert len(generated) == 2 + 5 * 2  # none was made twice
    assert not set(answered) & set(after)  # and none asked twice
    assert all(row.score == 4 for row in rows_of(artifact))


def test_texts_are_those_of_each_vector_alone(stitched: Made) -> None:
    with serving(rating()) as server:
        settings = settings_of(server, **ONE, temperature=0.0)
        texts = generations(run(settings, stitched.workspace))
    lm = load_model(ModelRef(str(stitched.activations.settings["model_a"])), torch.device("cpu"), torch.float32)
    unit_D = direction_of(crosscoder(), stitched.features, LOUD, "a").unit_D
    for strength in (0.0, 1.0, 3.0):
        with add_to_residual(lm, LAYER, strength * unit_D):
            prompts = [open_chat(lm.tokenizer, prompt) for prompt in PROMPTS[:2]]
            expected = generate(lm, prompts, max_new_tokens=3, add_special_tokens=False)
        for role in ("source", "target"):
            found = [t["text"] for t in texts if t["role"] == role and t["strength"] == strength]
            assert found == expected


def test_the_tables_have_all_groups_and_json_has_everything(stitched: Made, printed: Callable[..., str]) -> None:
    small = ["--device", "cpu", "--random-directions", "2", "--max-new-tokens", "2", "--strength", "1"]
    with serving(rating(similarity=3)) as server:
        judge = ["--judge", "openai", "--judge-model", "wise", "--judge-base-url", server.base_url]
        lines = printed(stitched.workspace, "score", *small, *judge).splitlines()
        found = json.loads(printed(stitched.workspace, "score", *small, *judge, "--json"))
    groups = ["A-exclusive A -> B", "B-exclusive B -> A", "shared A -> B", "shared B -> A", "random A -> B",
              "random B -> A"]  # fmt: skip
    first = next(i for i, line in enumerate(lines) if line.startswith("A-exclusive"))
    assert [line[:18].strip() for line in lines[first : first + 6]] == groups
    assert lines[first].split()[4:] == ["3", "0", "0", "3.00", "3.00", "3.00", "0%"]
    assert len(found["score"]["rows"]) == 3 + 3 + 2 * 3 + 2 * 2
    by_source = read_scores(stitched.workspace.find("score"))
    assert by_source[SHARED_LOUD].keys() == {"A", "B"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": (0.0,)}, "--strength"),
        ({"prompt": (" ",)}, "--prompt"),
        ({"judge": None}, "give --judge local --judge-model MODEL .* or --judge openai --judge-model NAME"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScoreSettings(**{"judge": "local", "judge_model": "m", **values})
