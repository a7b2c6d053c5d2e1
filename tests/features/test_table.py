"""Listing: partitions, orders, what is left out, and plain JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from modeldiff.errors import InputError
from modeldiff.features.run import FORMAT, run
from modeldiff.features.settings import FeaturesSettings
from modeldiff.features.table import FeatureTable, Sort
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

    for sort, field in (
        ("evidence", "evidence"),
        ("gap", "gap"),
        ("density", "density"),
        ("max", "max_activation"),
    ):
        found = values(sort, field)  # type: ignore[arg-type]
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
    for side, ids in listed.items():
        for row in (table.row(feature) for feature in ids & {3, 4, 5, 6}):
            assert row.r2_a is not None
            assert row.r2_b is not None
            assert (row.r2_a >= row.r2_b) is (side == "A")
            assert row.verdict in ("predictable", "undecided"), "both models have it"
    evidence = [row.evidence for row in table.rows(partition="A", anywhere=True)]
    assert evidence == sorted(evidence, reverse=True)
    with pytest.raises(InputError, match="--anywhere goes with"):
        table.select(anywhere=True)


def test_what_was_measured_without_evidence_cannot_be_listed_by_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    made_pair(workspace, 200)
    table = FeatureTable(run(FeaturesSettings(outlier_factor=0.0, device="cpu", predictability=False), workspace))
    assert table.scales == {}
    assert {row.verdict for row in table.rows()} == {None}
    with pytest.raises(InputError, match="measure again with --predictability"):
        table.select(partition="A", anywhere=True)


def test_rare_features_are_left_out_and_counted(table: FeatureTable) -> None:
    densities = sorted(row.density for row in table.rows())
    selection = table.select(min_density=densities[4])
    assert len(selection.ids) == 6
    assert (selection.rare, selection.dead, selection.candidates) == (4, 0, 10)


def test_rows_are_bounded_and_json(table: FeatureTable) -> None:
    assert [len(row.examples) for row in table.rows(top=2, examples=3)] == [3, 3]
    assert all(sum(row.sources.values()) == pytest.approx(1) for row in table.rows())
    data = json.loads(json.dumps([row.to_json() for row in table.rows()], allow_nan=False))
    required = {"id", "partition", "relative_norm", "density", "max_activation", "sources", "twins", "examples"}
    assert required <= data[0].keys()
    assert {row["partition"] for row in data} == {"A", "shared", "B"}
    assert {"before", "word", "after", "tokens", "activation"} <= data[0]["examples"][0].keys()


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


def test_a_feature_that_does_not_exist(table: FeatureTable) -> None:
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
    monkeypatch.setattr("modeldiff.features.stored.read_json", lambda _: info)
    with pytest.raises(InputError, match=message):
        FeatureTable(artifact)
