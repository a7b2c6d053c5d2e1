"""The offline explanation of features whose meaning is known: words, context, sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modeldiff.features.codes as codes_module
import modeldiff.features.measures.explain.run as run_module
from modeldiff.cli.main import run as run_cli
from modeldiff.errors import InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.measures.explain import ExplainSettings
from modeldiff.features.measures.explain.describe import PRIOR
from modeldiff.features.measures.explain.result import EXPLANATION_NAME, Explained, read_explanations
from modeldiff.features.measures.explain.run import run
from modeldiff.features.measures.explain.sample import in_second_half
from modeldiff.features.table import FeatureTable
from modeldiff.records import to_json
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.features.made_crosscoder import made_pair
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


def test_the_word_a_feature_fires_on_has_the_highest_lift(explained: dict[int, Explained]) -> None:
    description = explained[HERB].description
    (herb,) = description.words
    # Every "herb" of the describing half, all with the same activation: (N + 5) / (n + 5), see test_describe.py.
    first = [number for number in range(120) if not in_second_half(np.arange(120), 0)[number]]
    n, pairs = sum(number % 2 == 0 for number in first), LENGTH * len(first)
    assert herb.name == "herb"
    assert herb.lift == pytest.approx((pairs + PRIOR) / (n + PRIOR))
    assert description.firings == n
    assert description.text.startswith("on herb ")


def test_the_trigger_of_a_feature_is_found_before_it(explained: dict[int, Explained]) -> None:
    description = explained[AFTER_TRIGGER].description
    assert description.context[0].name == "trigger"
    assert "trigger" not in [one.name for one in description.words]  # it begins to fire after it
    assert description.text.startswith("after trigger ")


def test_the_source_of_a_feature_has_its_lift(explained: dict[int, Explained]) -> None:
    description = explained[ODD].description
    (odd,) = description.sources
    assert odd.name == "odd"
    first = [number for number in range(120) if not in_second_half(np.arange(120), 0)[number]]
    n, pairs = LENGTH * sum(number % 2 for number in first), LENGTH * len(first)
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
    assert len(chosen(exclusive="shared", top=2)) == 2
    assert chosen(feature=(5, 1, 5)) == [5, 1]
    with pytest.raises(InputError, match="feature 10 does not exist"):
        chosen(feature=(10,))
    with pytest.raises(InputError, match="--feature names the features: leave out --exclusive and --shared"):
        chosen(feature=(1,), exclusive="A")


def test_a_feature_that_fires_too_seldom_is_not_described(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    documents = made_documents(12)
    made_features(workspace, documents)
    one = read_explanations(run(ExplainSettings(**OFFLINE, feature=(HERB,)), workspace))[HERB]
    assert "too seldom" in one.description.text
    assert one.texts == []


def test_activations_without_texts_are_refused(tmp_path: Path) -> None:
    from modeldiff.features.run import run as run_features
    from modeldiff.features.settings import FeaturesSettings

    workspace = Workspace(tmp_path / "ws")
    made_pair(workspace, texts=False)
    run_features(FeaturesSettings(outlier_factor=0.0, device="cpu"), workspace)
    with pytest.raises(InputError, match="without texts"):
        run(ExplainSettings(**OFFLINE), workspace)


def test_a_smaller_sample_is_whole_texts_and_neither_blocks_nor_shards_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, explained: dict[int, Explained]
) -> None:
    workspace = Workspace(tmp_path / "ws")
    made_features(workspace)
    monkeypatch.setattr(codes_module, "_DENSE_VALUES", 640)  # blocks of 64 pairs
    monkeypatch.setattr("modeldiff.features.measures.explain.sample._GROUP_ROWS", 100)
    everything = run(ExplainSettings(**OFFLINE, feature=(HERB,)), workspace)
    assert read_explanations(everything)[HERB] == explained[HERB]
    half = run(ExplainSettings(**OFFLINE, feature=(HERB,), pairs=60 * LENGTH), workspace)
    assert 50 * LENGTH < half.metrics["pairs"] < 70 * LENGTH
    (herb,) = read_explanations(half)[HERB].description.words
    assert herb.name == "herb"


def test_an_interrupted_pass_goes_on_behind_its_last_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, explained: dict[int, Explained]
) -> None:
    workspace = Workspace(tmp_path / "ws")
    features = made_features(workspace)
    shards = ActivationStore(workspace.source_of(features, "activations")).info.shards
    encoded: list[int] = []
    whole = Encoder.sparse

    def stops_at_two(self: Encoder, block: Any) -> Any:
        if block.shard == 2 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        encoded.append(block.shard)
        return whole(self, block)

    stopped: list[bool] = []
    monkeypatch.setattr(Encoder, "sparse", stops_at_two)
    settings = ExplainSettings(**OFFLINE, feature=(HERB, AFTER_TRIGGER, ODD, 3))
    with pytest.raises(KeyboardInterrupt):
        run(settings, workspace)
    assert read_explanations(run(settings, workspace)) == explained
    assert sorted(set(encoded)) == list(range(len(shards)))
    assert len(encoded) == len(shards)  # none twice


def test_words_are_shown_as_text_in_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "ws"
    made_features(Workspace(folder), herb="[red]h/[/red]")

    def printed_by(*args: str) -> str:
        with pytest.raises(SystemExit) as caught:
            run_cli(["--workspace", str(folder), "features", *args])
        assert caught.value.code == 0
        return capsys.readouterr().out

    options = ["explain", "--device", "cpu", "--texts", "8", "--top", "2"]
    printed = printed_by(*options)
    assert "'[red]h/[/red]'" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "no judge" in printed
    assert {one["partition"] for one in json.loads(printed_by(*options, "--json"))["explained"]} == {"A", "B"}
    assert "explained     on '[red]h/[/red]'" in printed_by("show", "0")
    assert json.loads(printed_by("show", "3", "--json"))["explain"] is None
