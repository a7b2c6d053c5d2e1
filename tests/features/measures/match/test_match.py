"""The match stage and its command on hand-made crosscoders of the same pair of models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modeldiff.features.codes as codes_module
import modeldiff.features.measures.match.run as match_module
from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.errors import InputError
from modeldiff.features.measures.match import MatchSettings
from modeldiff.features.measures.match.result import read_match, rows
from modeldiff.features.measures.match.run import run
from modeldiff.workspace import Workspace
from tests.features.made_crosscoder import (
    N_A,
    N_B,
    N_SHARED,
    THRESHOLD,
    WIDTH_B,
    made_crosscoder,
    made_pair,
    publish,
    shared_only,
)

pytestmark = pytest.mark.usefixtures("small_blocks")
ALL: dict[str, Any] = {"outlier_factor": 0.0, "device": "cpu"}
BOTH = ("crosscoder:1", "crosscoder:2")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """With activations:1 and crosscoder:1, the one of made_crosscoder.py."""
    workspace = Workspace(tmp_path / "ws")
    made_pair(workspace)
    return workspace


def add(workspace: Workspace, crosscoder: Crosscoder, ref: str = "crosscoder:2") -> None:
    """Publish another crosscoder trained on the same activations."""
    assert publish(workspace, crosscoder, workspace.find("activations"), ref).ref == ref


def moved() -> Crosscoder:
    """The first crosscoder with feature 0 of A among the shared ones (read from A alone), activations three times as
    large, A's other features in reverse order, the last feature of B dead, and one feature in A of no use."""
    first = made_crosscoder()
    config = dataclasses.replace(first.config, n_shared=N_SHARED + 1, threshold=3 * THRESHOLD)
    crosscoder = Crosscoder(config)
    #            A: 2, 1, useless; shared: 0, 3, 4, ...
    from_a = [2, 1, 0, 0, *range(N_A, N_A + N_SHARED)]
    with torch.no_grad():
        for name in ("w_enc_a", "w_dec_a"):
            getattr(crosscoder, name).copy_(3 * getattr(first, name)[from_a])
        for name in ("w_enc_b", "w_dec_b"):
            getattr(crosscoder, name)[1:] = 3 * getattr(first, name)
        crosscoder.w_enc_a[2] = 0
        crosscoder.w_enc_a[3] *= 2  # the mean of two encoders, of which B's is 0
        crosscoder.w_enc_b[-1] = 0
    return crosscoder


def test_a_crosscoder_without_exclusive_features_against_itself(workspace: Workspace) -> None:
    add(workspace, shared_only())
    artifact = run(MatchSettings(crosscoders=("crosscoder:2", "crosscoder:1"), **ALL), workspace)
    info, arrays = read_match(artifact)
    np.testing.assert_array_equal(arrays["feature"], np.arange(N_SHARED))
    np.testing.assert_array_equal(arrays["match"][0], N_A + np.arange(N_SHARED))
    np.testing.assert_allclose(arrays["correlation"], 1, atol=1e-6)
    assert (arrays["came_back"] == 1).all()
    assert arrays["chance_correlation"].max() < 0.2
    for side in ("a", "b"):
        np.testing.assert_allclose(arrays[f"cosine_{side}"][0], 1, atol=1e-6)
    assert list(info["summary"]) == ["shared"]


def test_what_moved_is_found_where_it_went(workspace: Workspace) -> None:
    add(workspace, moved())
    artifact = run(MatchSettings(crosscoders=BOTH, **ALL), workspace)
    info, arrays = read_match(artifact)
    listed = {name: rows(info, arrays, name) for name in ("A", "B")}
    found = {row["id"]: row["found"][0] for name in ("A", "B") for row in listed[name]}
    first_b = N_A + N_SHARED
    went = {0: (3, "shared"), 1: (1, "A"), 2: (0, "A"), first_b: (first_b + 1, "B"), first_b + 1: (first_b + 2, "B")}
    assert len(found) == N_A + N_B
    for i, where in went.items():
        assert (found[i]["id"], found[i]["partition"]) == where
        assert found[i]["correlation"] == pytest.approx(1, abs=1e-5)
        assert found[i]["came_back"]
        assert found[i]["chance"] < 0.2
    lost = found[first_b + N_B - 1]
    assert not lost["came_back"]
    assert lost["correlation"] < 0.2
    assert (found[0]["cosine_a"], found[0]["cosine_b"]) == (pytest.approx(1), None)
    counts = {name: info["summary"][name]["against"][0]["came_back"] for name in ("A", "B")}
    assert counts["A"] == {"A": 2, "shared": 1, "B": 0, "one-sided": 0, "none": 0}
    assert counts["B"] == {"A": 0, "shared": 0, "B": 2, "one-sided": 0, "none": 1}
    assert artifact.metrics["A"] == {"alive": 3, "came_back": 2}
    # The feature that stayed in its partition comes before the one that moved.
    assert [row["id"] for row in listed["A"]][-1] == 0
    # The dead of the reference are counted apart.
    info, arrays = read_match(run(MatchSettings(crosscoders=BOTH[::-1], **ALL), workspace))
    for name, size in (("A", N_A), ("B", N_B)):
        assert (info["summary"][name]["features"], info["summary"][name]["alive"]) == (size, size - 1)
    assert 2 not in [row["id"] for row in rows(info, arrays, "A")]


def test_pairs_are_a_part_of_the_activations_and_outliers_are_left_out(workspace: Workspace) -> None:
    artifact = run(MatchSettings(crosscoders=("1", "1"), pairs=300, outlier_factor=1.2, device="cpu"), workspace)
    assert 250 < artifact.metrics["pairs"] + artifact.metrics["outliers"] < 350
    assert artifact.metrics["outliers"] > 0
    with pytest.raises(InputError, match="no pair is left"):
        run(MatchSettings(crosscoders=("1", "1"), outlier_factor=1e-6, device="cpu"), workspace)


@pytest.mark.parametrize(("what", "moment"), [("sparse", 3), ("sparse", 20), ("match", 2)])
def test_an_interrupted_run_continues_and_ends_the_same(
    what: str, moment: int, workspace: Workspace, dying: Callable[..., list[Any]]
) -> None:
    add(workspace, moved())
    settings = MatchSettings(crosscoders=(*BOTH, "crosscoder:1"), **ALL)
    straight = run(settings, workspace).manifest.files
    home: Any = {"sparse": codes_module.Encoder, "match": match_module}[what]
    calls = dying(home, what, moment)
    with pytest.raises(KeyboardInterrupt):
        run(settings, workspace, force=True)
    assert run(settings, workspace, force=True).manifest.files == straight
    # 3 times 15 blocks to encode, of which at most a shard's 5 are done twice; 2 others to match.
    assert len(calls) <= {"sparse": 50, "match": 3}[what]


def test_the_command_says_what_came_back(workspace: Workspace, printed: Callable[..., str]) -> None:
    add(workspace, moved())
    lines = printed(workspace, "match", *BOTH, "crosscoder:1", "--outlier-factor", "0").splitlines()
    assert [line.split()[-5:] for line in lines if "alike in all" in line] == [list("20000"), list("00200")]
    options = ("--outlier-factor", "0", "--exclusive", "B", "--top", "1", "--json")
    data = json.loads(printed(workspace, "match", *BOTH, *options))
    assert (data["ref"], data["reference"]) == ("match:2", "crosscoder:1")
    assert [row["partition"] for row in data["features"]] == ["B"]
    assert data["features"][0]["found"][0]["came_back"] is True


@pytest.mark.parametrize(
    ("crosscoders", "message"),
    [
        ((), "two or more crosscoders are needed, found 0"),
        (("crosscoder:1", "crosscoder:9"), "no crosscoder called 'crosscoder:9'"),
        (BOTH, "crosscoder:2 reads widths 4 and 9, but activations:1 has 8 and 9"),
    ],
)
def test_a_users_mistake_is_said(workspace: Workspace, crosscoders: tuple[str, ...], message: str) -> None:
    narrow = CrosscoderConfig(width_a=4, width_b=WIDTH_B, n_a_only=1, n_shared=2, n_b_only=1, k=1)
    add(workspace, Crosscoder(narrow))
    with pytest.raises(InputError, match=message):
        run(MatchSettings(crosscoders=crosscoders, **ALL), workspace)
