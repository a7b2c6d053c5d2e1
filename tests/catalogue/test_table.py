"""Listing: partitions, orders, what is left out, and plain JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from modeldiff.catalogue.stored import FORMAT
from modeldiff.catalogue.table import FeatureTable, Sort
from modeldiff.errors import InputError
from modeldiff.features.run import run
from modeldiff.features.settings import FeaturesSettings
from modeldiff.workspace import Workspace
from tests.features.made_crosscoder import made_pair


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> FeatureTable:
    workspace = Workspace(tmp_path_factory.mktemp("table") / "ws")
    made_pair(workspace)
    return FeatureTable(run(FeaturesSettings(outlier_factor=0.0, device="cpu", examples=5), workspace))


def test_partitions_and_every_order_lists_every_feature_once(table: FeatureTable) -> None:
    assert sorted(table.select(partition="A").ids) == [0, 1, 2]
    assert sorted(table.select(partition="shared").ids) == [3, 4, 5, 6]
    assert sorted(table.select(partition="B").ids) == [7, 8, 9]
    for sort in get_args(Sort):
        assert sorted(table.select(sort=sort).ids) == list(range(10))


def test_orders(table: FeatureTable) -> None:
    def values(sort: Sort, field: str) -> list[float]:
        return [getattr(row, field) for row in table.rows(sort=sort)]

    orders: list[tuple[Sort, str]] = [
        ("evidence", "evidence"), ("gap", "gap"), ("density", "density"), ("max", "max_activation"),
    ]  # fmt: skip
    for sort, field in orders:
        found = values(sort, field)
        assert found == sorted(found, reverse=True)
    assert values("id", "id") == list(range(10))
    highest = [row.twins[0].correlation if row.twins else 0 for row in table.rows(sort="twin")]
    assert highest == sorted(highest)
    assert sorted(table.select(sort="relative_norm").ids[:3]) == [0, 1, 2]  # only in A's decoder
    assert sorted(table.select(sort="relative_norm").ids[-3:]) == [7, 8, 9]


def test_shared_features_that_one_model_explains_better_are_listed_with_its_own(table: FeatureTable) -> None:
    listed = {side: set(table.select(partition=side, anywhere=True).ids) for side in ("A", "B")}
    assert listed["A"] & listed["B"] == set()
    assert listed["A"] | listed["B"] == set(range(10))
    assert {0, 1, 2} <= listed["A"]
    assert {7, 8, 9} <= listed["B"]
    for row in (table.row(feature) for feature in (3, 4, 5, 6)):
        assert row.r2_a is not None
        assert row.r2_b is not None
        assert (row.r2_a >= row.r2_b) is (row.id in listed["A"])
        assert row.verdict in ("predictable", "undecided"), "both models have it"
    evidence = [row.evidence for row in table.rows(partition="A", anywhere=True)]
    assert evidence == sorted(evidence, reverse=True)
    with pytest.raises(InputError, match="--anywhere goes with"):
        table.select(anywhere=True)


def test_rare_features_are_left_out_and_counted_and_rows_are_bounded_and_json(table: FeatureTable) -> None:
    densities = sorted(row.density for row in table.rows())
    selection = table.select(min_density=densities[4])
    assert (len(selection.ids), selection.rare, selection.dead, selection.candidates) == (6, 4, 0, 10)
    assert [len(row.examples) for row in table.rows(top=2, examples=3)] == [3, 3]
    assert all(sum(row.sources.values()) == pytest.approx(1) for row in table.rows())
    data = json.loads(json.dumps([row.to_json() for row in table.rows()], allow_nan=False))
    required = {"id", "partition", "relative_norm", "density", "max_activation", "sources", "twins", "examples"}
    assert required <= data[0].keys()
    assert {row["partition"] for row in data} == {"A", "shared", "B"}
    assert {"before", "word", "after", "tokens", "activation"} <= data[0]["examples"][0].keys()


def test_the_frame_and_what_notebooks_show_are_the_list(table: FeatureTable) -> None:
    frame = table.frame(partition="A", sort="id")
    assert frame["id"].tolist() == [0, 1, 2]
    assert frame["evidence"].tolist() == [row.evidence for row in table.rows(partition="A", sort="id")]
    first = table.rows(top=1, examples=1)
    assert f"[{first[0].examples[0].word}]" in first.frame()["example"][0]
    assert table._repr_html_().count("<tr>") == 1 + 10
    assert "features:1 (crosscoder:1): 10 of 10 features, by evidence" in table._repr_html_()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"partition": "C"}, "A, B or shared"),
        ({"sort": "beauty"}, "one of evidence, gap, density"),
        ({"top": 0}, "--top"),
    ],
)
def test_wrong_choices_are_one_line(table: FeatureTable, chosen: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        table.select(**chosen)  # type: ignore[arg-type]
    for feature in (-1, 10):
        with pytest.raises(InputError, match="0 to 9"):
            table.row(feature)


@pytest.mark.parametrize(
    ("version", "message"), [(FORMAT + 1, "upgrade modeldiff"), (FORMAT - 1, "modeldiff features --crosscoder")]
)
def test_an_artifact_of_another_version(
    version: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "ws")
    made_pair(workspace, 200)
    artifact = run(FeaturesSettings(outlier_factor=0.0, device="cpu"), workspace)
    info = json.loads((artifact.folder / "features.json").read_text()) | {"format": version}
    monkeypatch.setattr("modeldiff.catalogue.stored.read_json", lambda _: info)
    with pytest.raises(InputError, match=message):
        FeatureTable(artifact)
