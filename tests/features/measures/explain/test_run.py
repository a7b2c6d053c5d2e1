"""The offline explanation of features whose meaning is known: words, context, sources."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import modeldiff.features.measures.explain.run as run_module
from modeldiff.catalogue.table import FeatureTable
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.measures.explain import ExplainSettings
from modeldiff.features.measures.explain.describe import PRIOR
from modeldiff.features.measures.explain.result import EXPLANATION_NAME, Explained, read_explanations
from modeldiff.features.measures.explain.run import run
from modeldiff.features.measures.explain.sample import in_second_half
from modeldiff.records import to_json
from modeldiff.workspace import Artifact, Workspace
from tests.features.measures.explain.made_texts import AFTER_TRIGGER, HERB, LENGTH, ODD, made_documents, made_features

OFFLINE: dict[str, Any] = {"device": "cpu", "texts": 8}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("explain") / "ws")
    made_features(workspace)
    return workspace


@pytest.fixture(scope="module")
def artifact(made: Workspace) -> Artifact:
    return run(ExplainSettings(**OFFLINE, feature=(HERB, AFTER_TRIGGER, ODD, 3)), made)


@pytest.fixture(scope="module")
def explained(artifact: Artifact) -> dict[int, Explained]:
    return read_explanations(artifact)


def test_the_word_the_trigger_and_the_source_of_a_feature_are_found(explained: dict[int, Explained]) -> None:
    description = explained[HERB].description
    (herb,) = description.words
    # Every "herb" of the describing half, all with the same activation: the lift is (N + 5) / (n + 5).
    first = [number for number in range(120) if not in_second_half(np.arange(120), 0)[number]]
    n, pairs = sum(number % 2 == 0 for number in first), LENGTH * len(first)
    assert herb.name == "herb"
    assert herb.lift == pytest.approx((pairs + PRIOR) / (n + PRIOR))
    assert description.firings == n
    assert description.text.startswith("on herb ")
    description = explained[AFTER_TRIGGER].description
    assert description.context[0].name == "trigger"
    assert "trigger" not in [one.name for one in description.words]  # it begins to fire after it
    assert description.text.startswith("after trigger ")
    (odd,) = explained[ODD].description.sources
    assert odd.name == "odd"
    n = LENGTH * sum(number % 2 for number in first)
    assert odd.lift == pytest.approx((1 + PRIOR / pairs) / (n + PRIOR) * pairs)


def test_held_out_texts_are_no_part_of_what_describes(made: Workspace, explained: dict[int, Explained]) -> None:
    table = FeatureTable(made.find("features"))
    documents = [" ".join(words) for words in made_documents()]
    for one in explained.values():
        shown = {example.document for example in table.row(one.id, examples=10).examples}
        assert one.texts
        for text in one.texts:
            assert in_second_half(np.array([text.document]), 0)[0]
            assert text.document not in shown
            assert text.text in documents[text.document]
        assert sum(text.activation > 0 for text in one.texts) == len(one.texts) / 2


def test_what_is_read_is_what_was_written_whichever_others_are_asked_for(
    made: Workspace, artifact: Artifact, explained: dict[int, Explained]
) -> None:
    info = json.loads((artifact.folder / EXPLANATION_NAME).read_text())
    assert info["explained"] == [to_json(one) for one in explained.values()]
    assert list(explained) == [HERB, AFTER_TRIGGER, ODD, 3]
    assert explained[HERB].text == explained[HERB].description.text
    assert (info["judge"], info["pairs"], info["documents"]) == (None, 120 * LENGTH, 120)
    alone = read_explanations(run(ExplainSettings(**OFFLINE, feature=(HERB,)), made))
    assert alone[HERB] == explained[HERB]


def test_which_features(made: Workspace) -> None:
    def chosen(**settings: Any) -> list[int]:
        return run_module.chosen_features(FeatureTable(made.find("features")), ExplainSettings(**settings))

    assert sorted(chosen()) == [0, 1, 2, 7, 8, 9]
    assert sorted(chosen(exclusive="B")) == [7, 8, 9]
    assert len(chosen(shared=True, top=2)) == 2
    assert chosen(feature=(5, 1, 5)) == [5, 1]
    with pytest.raises(InputError, match="feature 10 does not exist"):
        chosen(feature=(10,))
    with pytest.raises(InputError, match="--feature names the features: leave out --exclusive and --shared"):
        chosen(feature=(1,), exclusive="A")


@pytest.mark.parametrize(("herb", "says"), [("herb", "too seldom"), ("other", "fires 0 times in the ")])
def test_a_feature_that_fires_too_seldom_is_not_described(workspace: Workspace, herb: str, says: str) -> None:
    made_features(workspace, made_documents(12, herb=herb))
    one = read_explanations(run(ExplainSettings(**OFFLINE, feature=(HERB,)), workspace))[HERB]
    assert says in one.description.text
    assert one.texts == []


@pytest.mark.usefixtures("small_blocks")
def test_a_smaller_sample_is_whole_texts_and_neither_blocks_nor_shards_matter(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, explained: dict[int, Explained]
) -> None:
    made_features(workspace)
    monkeypatch.setattr("modeldiff.features.measures.explain.sample._GROUP_ROWS", 100)
    everything = run(ExplainSettings(**OFFLINE, feature=(HERB,)), workspace)
    assert read_explanations(everything)[HERB] == explained[HERB]
    half = run(ExplainSettings(**OFFLINE, feature=(HERB,), pairs=60 * LENGTH), workspace)
    assert 50 * LENGTH < half.metrics["pairs"] < 70 * LENGTH
    (herb,) = read_explanations(half)[HERB].description.words
    assert herb.name == "herb"


def test_an_interrupted_pass_goes_on_behind_its_last_shard(
    workspace: Workspace, dying: Callable[..., list[Any]], explained: dict[int, Explained]
) -> None:
    made_features(workspace)
    calls = dying(Encoder, "sparse", 3)
    settings = ExplainSettings(**OFFLINE, feature=(HERB, AFTER_TRIGGER, ODD, 3))
    with pytest.raises(KeyboardInterrupt):
        run(settings, workspace)
    assert read_explanations(run(settings, workspace)) == explained
    assert [block.shard for _, block in calls] == [0, 1, 2, 2, 3], "none twice"


def test_words_are_shown_as_text(workspace: Workspace, printed: Callable[..., str]) -> None:
    made_features(workspace, herb="[red]h/[/red]")
    options = ["explain", "--device", "cpu", "--texts", "8", "--top", "2"]
    shown = printed(workspace, *options)
    assert "'[red]h/[/red]'" in shown
    assert {one["partition"] for one in json.loads(printed(workspace, *options, "--json"))["explained"]} == {"A", "B"}
    assert "explained     on '[red]h/[/red]'" in printed(workspace, "show", "0")
    assert json.loads(printed(workspace, "show", "3", "--json"))["explain"] is None
