"""The score by effects, end to end on one model against itself: known answers, controls, refusals, interruptions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import modeldiff.features.score.by_effect as by_effect_module
import modeldiff.features.score.effect as effect_module
from modeldiff.crosscoder.stitch import load_stitch
from modeldiff.errors import InputError
from modeldiff.features.score.result import SCORE_NAME, ScoreRow, read_score, read_scores
from modeldiff.features.score.run import run
from modeldiff.features.score.settings import ScoreSettings
from modeldiff.features.score.subjects import find_subjects
from modeldiff.workspace import Artifact
from tests.features.made_pair import (
    B_LOUD,
    DEAD,
    LOUD,
    MUTE,
    OTHER_LOUD,
    SHARED_LOUD,
    WIDTH,
    Made,
    crosscoder,
    publish_stitch,
    swapped,
)


def settings_of(**values: Any) -> ScoreSettings:
    return ScoreSettings(**{"device": "cpu", "positions": 60, "random_directions": 12, **values})


def rows_of(artifact: Artifact) -> list[ScoreRow]:
    return [ScoreRow.from_json(row, "here") for row in read_score(artifact)["rows"]]


def test_a_model_against_itself_scores_1_throughout(pair: Made) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    artifact = run(settings_of(), pair.workspace)
    rows = rows_of(artifact)
    scored = [row for row in rows if row.score is not None]
    assert {row.partition for row in scored} == {"A", "shared", "B", "random"}
    for row in scored:
        assert row.similarity == pytest.approx(5, abs=1e-6), row.name
        assert row.score == pytest.approx(1, abs=1e-6), row.name
        at_source, at_target = row.details["at"]
        assert at_source == at_target
        assert row.details["raises"][0] == row.details["raises"][1]
    by_source = read_scores(artifact)
    assert by_source[LOUD].keys() == {"A"}
    assert by_source[SHARED_LOUD].keys() == {"A", "B"}
    assert by_source[B_LOUD]["B"].steerable


def test_an_effect_on_other_strings_scores_near_5_and_the_null_says_what_is_near(pair: Made) -> None:
    publish_stitch(pair, swapped(), "swapped")
    artifact = run(settings_of(), pair.workspace)
    found = read_scores(artifact)
    for feature, source in ((LOUD, "A"), (OTHER_LOUD, "A"), (SHARED_LOUD, "A"), (SHARED_LOUD, "B"), (B_LOUD, "B")):
        row = found[feature][source]
        assert row.steerable
        assert row.score is not None
        assert row.score > 4, row
        if source == "A" and feature == SHARED_LOUD:
            # The other model has the very direction; it is the stitch that loses it.
            assert row.details["own_direction_score"] == pytest.approx(1, abs=0.1)
    for group in read_score(artifact)["groups"]:
        assert group["mismatched_median"] is not None
        assert (group["own_direction_median"] is not None) == (group["partition"] == "shared")


def test_what_does_nothing_is_not_steerable_and_has_no_score(pair: Made) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    row = read_scores(run(settings_of(feature=(MUTE, LOUD)), pair.workspace))[MUTE]["A"]
    assert row.steerable is False
    assert row.steerability == 0
    assert row.similarity is None
    assert row.score is None
    assert "not steerable" in row.missing[0]
    (group, *_) = read_score(pair.workspace.find("score"))["groups"]
    assert (group["n"], group["scored"], group["not_steerable"], group["missing"]) == (2, 1, 1, 0)


def test_a_target_that_is_not_moved_at_all_scores_5(pair: Made) -> None:
    publish_stitch(pair, torch.zeros(WIDTH, WIDTH), "nothing")
    for row in rows_of(run(settings_of(), pair.workspace)):
        assert row.score in (None, 5), row.name


def test_random_directions_are_in_every_table_and_scored_whatever_they_do(pair: Made) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    artifact = run(settings_of(features_from=("A",), random_directions=15), pair.workspace)
    score = read_score(artifact)
    assert [(g["partition"], g["source"], g["n"]) for g in score["groups"]] == [("A", "A", 3), ("random", "A", 15)]
    assert score["groups"][1]["scored"] == 15
    # By construction about 5 % of them exceed the 95 % quantile of the others.
    assert score["groups"][1]["not_steerable"] >= 12
    assert all(row.stitch_r2 is None for row in rows_of(artifact) if row.partition == "random")


def test_the_bias_is_added_when_it_is_asked_for(pair: Made) -> None:
    loud = 20 * torch.eye(WIDTH)[1]
    publish_stitch(pair, torch.eye(WIDTH), "biased", bias=loud)
    without = read_scores(run(settings_of(feature=(LOUD,)), pair.workspace))[LOUD]["A"]
    with_bias = read_scores(run(settings_of(feature=(LOUD,), stitch_bias=True), pair.workspace))[LOUD]["A"]
    assert without.score == pytest.approx(1, abs=1e-6)
    assert with_bias.score is not None
    assert with_bias.score > 2


def test_r2_of_the_stitch_where_the_feature_is_active(pair: Made) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    row = read_scores(run(settings_of(feature=(LOUD,)), pair.workspace))[LOUD]["A"]
    assert row.active_pairs is not None
    assert 20 <= row.active_pairs <= 100
    assert row.stitch_r2 == pytest.approx(1, abs=1e-6)


def test_the_sample_is_alive_seeded_and_bounded(pair: Made) -> None:
    stitch = load_stitch(publish_stitch(pair, torch.eye(WIDTH), "identity"))

    def drawn(seed: int) -> list[tuple[str, str, int]]:
        found = find_subjects(settings_of(sample=2, seed=seed), crosscoder(), pair.features, stitch)
        return [(one.partition, one.source, one.number) for one in found.all if not one.is_random]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1
    for seed in range(4):
        assert len(drawn(seed)) == 2 + 2 + 2 * 2  # shared ones both ways
        assert all(number % 4 != DEAD for _, _, number in drawn(seed))


def test_random_directions_are_as_long_as_features_usually_are(pair: Made) -> None:
    stitch = load_stitch(publish_stitch(pair, 2 * torch.eye(WIDTH), "twice"))
    found = find_subjects(settings_of(), crosscoder(), pair.features, stitch)
    max_F = load_file(pair.features.file("statistics.safetensors"))["max_activation"]
    for side, features in (("a", max_F[:8]), ("b", max_F[4:])):
        usual = float(np.median(features[features > 0]))  # decoder rows have length 1
        randoms = found.of("random", side)
        assert len(randoms) == 12
        for one in randoms:
            assert float(one.source_D.norm()) == pytest.approx(usual, rel=1e-5)
            assert torch.allclose(one.target_D, 2 * one.source_D)


def test_an_interrupted_run_continues_and_ends_alike(pair: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    whole = run(settings_of(feature=(LOUD, B_LOUD), random_directions=10), pair.workspace)
    expected = (whole.folder / SCORE_NAME).read_bytes()
    measure = effect_module.EffectMeter.measure
    calls = 0

    def counted(self: Any, vectors: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return measure(self, vectors)

    monkeypatch.setattr(effect_module.EffectMeter, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        run(settings_of(feature=(LOUD, B_LOUD), random_directions=10), pair.workspace, force=True)
    again = run(settings_of(feature=(LOUD, B_LOUD), random_directions=10), pair.workspace, force=True)
    assert calls == 2 * 22 + 1  # two models, 22 directions, and the one that was cut short
    assert (again.folder / SCORE_NAME).read_bytes() == expected


def test_without_a_stitch_the_command_that_makes_it_is_named(pair: Made) -> None:
    with pytest.raises(InputError, match=r"no stitch of activations:1 yet.*modeldiff features stitch --activations"):
        run(settings_of(), pair.workspace)


def test_vocabularies_without_a_common_string_cannot_be_compared(pair: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    vocabularies = iter([["x"], ["y"]])
    monkeypatch.setattr(by_effect_module, "token_strings", lambda _: next(vocabularies))
    with pytest.raises(InputError, match="no string is a single token of both models"):
        run(settings_of(feature=(LOUD,)), pair.workspace)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"feature": (DEAD,)}, "never fires"),
        ({"feature": (99,)}, "feature 99 does not exist"),
        ({"stitch": "7"}, "no stitch called '7'"),
        ({"features": "7"}, "no features called '7'"),
    ],
)
def test_what_is_not_there_is_said(pair: Made, values: dict[str, Any], message: str) -> None:
    publish_stitch(pair, torch.eye(WIDTH), "identity")
    with pytest.raises(InputError, match=message):
        run(settings_of(**values), pair.workspace)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sample": 0}, "--sample"),
        ({"features_from": ("C",)}, "--features-from"),
        ({"features_from": ()}, "--features-from"),
        ({"random_directions": 9}, "at least 10 with --judge effect"),
        ({"random_directions": -1, "judge": "local", "judge_model": "x"}, "at least 0, found -1"),
        ({"strength": (0.0,)}, "--strength"),
        ({"strength": (-1.0,)}, "--strength"),
        ({"strength": (float("inf"),)}, "--strength"),
        ({"positions": 0}, "--positions"),
        ({"prompt": (" ",)}, "--prompt"),
        ({"prompt": ()}, "--prompt"),
        ({"max_new_tokens": 0}, "--max-new-tokens"),
        ({"temperature": -1.0}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"min_steerability": 6.0}, "--min-steerability"),
        ({"aggregate": "sum"}, "--aggregate"),
        ({"judge": "local"}, "--judge-model"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        settings_of(**values)
    assert "\n" not in str(caught.value)


def test_defaults_depend_on_the_judge() -> None:
    effect, read = ScoreSettings(), ScoreSettings(judge="openai", judge_model="wise")
    assert (effect.n_sample, effect.n_random, effect.strengths) == (50, 50, (0.5, 1.0, 2.0))
    assert (read.n_sample, read.n_random) == (20, 10)
    # Paper B.5; strength 0, the model as it is, is always there.
    assert read.strengths == tuple(range(1, 11))
    assert read.prompt == ("What's on your mind?", "What do you want to talk about?", "Tell me something")
    assert (read.max_new_tokens, read.temperature, read.top_p, read.min_steerability) == (200, 0.7, 0.9, 3.0)


def test_the_file_is_json_that_says_what_was_done(pair: Made) -> None:
    stitch = publish_stitch(pair, torch.eye(WIDTH), "identity")
    artifact = run(settings_of(feature=(LOUD,)), pair.workspace)
    score = json.loads((artifact.folder / SCORE_NAME).read_text())
    assert (score["judge"], score["stitch"], score["features"]) == ("effect", stitch.ref, "features:1")
    assert score["strengths"] == [0.5, 1.0, 2.0]
    assert score["places"] > 0
