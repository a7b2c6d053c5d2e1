"""The stage on a hand-made crosscoder: every number equals the dense one, and interruptions leave no trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import modeldiff.features.codes as codes_module
import modeldiff.features.context as context_module
import modeldiff.features.scan as scan_module
import tests.made_activations as made_activations_module
from modeldiff.cli.feature_list import listing_json, print_feature, print_listing
from modeldiff.errors import DamagedError, InputError
from modeldiff.features.run import run
from modeldiff.features.settings import FeaturesSettings
from modeldiff.features.table import FeatureTable
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.plan import Document, Tokens
from tests.features.made_crosscoder import (
    N_A,
    N_SHARED,
    WIDTH_A,
    made_crosscoder,
    made_pair,
    publish,
    shared_only,
    sparse_pairs,
    words_of,
)
from tests.made_activations import make_activations

ALL: dict[str, Any] = {"outlier_factor": 0.0, "device": "cpu", "examples": 5, "context": 3}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 pairs, so that shards have several."""
    monkeypatch.setattr(codes_module, "_DENSE_VALUES", 640)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def test_statistics_equal_the_dense_ones(workspace: Workspace) -> None:
    _, _, f_NF = made_pair(workspace)
    artifact = run(FeaturesSettings(**ALL), workspace)
    found = load_file(artifact.file("statistics.safetensors"))
    f = f_NF.double().numpy()
    count = (f > 0).sum(0)
    np.testing.assert_array_equal(found["firing_count"], count)
    np.testing.assert_allclose(found["density"], count / len(f))
    np.testing.assert_allclose(found["mean_activation"], f.sum(0) / count, rtol=1e-6)
    np.testing.assert_allclose(found["max_activation"], f.max(0), rtol=1e-6)
    odd = (np.arange(len(f)) // 50) % 2 == 1
    np.testing.assert_allclose(found["activation_by_source"], [f[~odd].sum(0), f[odd].sum(0)], rtol=1e-6)
    # Decoder rows have norm 2 in A and 1 in B.
    np.testing.assert_allclose(found["relative_norm"], [1] * 3 + [2 / 3] * 4 + [0] * 3, rtol=1e-6)


def test_examples_show_the_place_and_where_else_the_feature_fires(workspace: Workspace) -> None:
    _, _, f_NF = made_pair(workspace)
    row = FeatureTable(run(FeaturesSettings(**ALL), workspace)).row(4)
    f_N = f_NF[:, 4].numpy()
    best = max(range(len(f_N)), key=lambda i: f_N[i])
    example = row.examples[0]
    assert (example.row, example.word, example.document) == (best, f"w{best}", best // 50)
    assert example.source == ("odd" if best // 50 % 2 else "even")
    assert [one.activation for one in row.examples] == sorted((one.activation for one in row.examples), reverse=True)
    assert example.before is not None
    assert example.pieces is not None
    assert example.centre is not None
    assert example.tokens is not None
    assert "".join(piece.text for piece in example.pieces) == f"{example.before}{example.word}{example.after}"
    assert example.pieces[example.centre].text == example.word
    low, high = max(best // 50 * 50, best - 3), min(best // 50 * 50 + 50, best + 4)
    shown = {piece.text: piece.activation for piece in example.pieces if piece.text.strip()}
    assert shown == {f"w{i}": pytest.approx(float(f_N[i])) for i in range(low, high)}
    for side in ("a", "b"):
        assert {token.text: token.activation for token in example.tokens[side]} == shown


def test_the_share_of_examples_where_the_tokens_differ(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alike = made_activations_module._document

    def half_apart(text: str, source: int, index: int, vocabulary: dict[str, int]) -> Document:
        """In documents of the source "odd", B's tokens begin one character later."""
        document = alike(text, source, index, vocabulary)
        tokens = document.tokens["b"]
        document.tokens["b"] = Tokens(tokens.ids, tokens.starts + index % 2, tokens.ends)
        return document

    monkeypatch.setattr(made_activations_module, "_document", half_apart)
    made_pair(workspace)
    table = FeatureTable(run(FeaturesSettings(**ALL), workspace))
    rows = table.rows(sort="id")
    for row in rows:
        odd = [example.source == "odd" for example in row.examples]
        assert [example.tokens_differ for example in row.examples] == odd
        assert row.tokens_differ == pytest.approx(sum(odd) / len(odd))
        assert table.mostly_differ_F[row.id] == (sum(odd) > len(odd) / 2)
    assert {bool(one) for one in table.mostly_differ_F} == {False, True}
    print_listing(table, partition=None, top=20, sort="id", min_density=0.0)
    listed = capsys.readouterr().out
    for row in rows:
        line = next(line for line in listed.splitlines() if line.split()[:1] == [str(row.id)])
        assert f" {row.tokens_differ:.0%} " in line
        assert ("*" in line) == table.mostly_differ_F[row.id]
    marked = int(table.mostly_differ_F.argmax())
    print_feature(table, table.row(marked))
    shown = capsys.readouterr().out
    assert f"tokens differ at {rows[marked].tokens_differ:.0%} of its examples" in shown
    assert shown.count(", odd, tokens differ)") == sum(one.source == "odd" for one in rows[marked].examples)


def test_windows_cross_blocks_but_not_documents(workspace: Workspace) -> None:
    made_pair(workspace, per_document=90)
    table = FeatureTable(run(FeaturesSettings(**{**ALL, "examples": 40, "context": 20}), workspace))
    for feature in range(table.n_features):
        for example in table.row(feature).examples:
            assert example.pieces is not None
            shown = [int(piece.text[1:]) for piece in example.pieces if piece.text.strip()]
            document = example.row // 90
            # A document's part in the next shard (from row 300 on) is not shown.
            shard = example.row // 300
            low = max(document * 90, shard * 300, example.row - 20)
            high = min(document * 90 + 90, shard * 300 + 300, example.row + 21)
            assert shown == list(range(low, high))


class KilledError(Exception):
    """Stands for kill -9."""


def files_of(artifact: Artifact) -> dict[str, bytes]:
    return {name: (artifact.folder / name).read_bytes() for name in artifact.manifest.files}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """What an uninterrupted run makes."""
    workspace = Workspace(tmp_path_factory.mktemp("straight") / "ws")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codes_module, "_DENSE_VALUES", 640)
        made_pair(workspace)
        yield run(FeaturesSettings(**ALL), workspace)


@pytest.mark.parametrize("moment", [2, 7, 13, 17, 24, 30])
def test_an_interrupted_run_continues_and_ends_the_same(
    moment: int, workspace: Workspace, straight: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_pair(workspace)
    calls = 0
    encoded = 0
    keeps = codes_module.Encoder.keeps

    def dying(self: Any, *x: Any) -> Any:
        nonlocal calls, encoded
        calls += 1
        if calls == moment:
            raise KilledError
        encoded += 1
        return keeps(self, *x)

    # Called for every block, in the pass over all and for the examples' surroundings.
    monkeypatch.setattr(codes_module.Encoder, "keeps", dying)
    with pytest.raises(KilledError):
        run(FeaturesSettings(**ALL), workspace)
    done = run(FeaturesSettings(**ALL), workspace)
    assert done.manifest.digest == straight.manifest.digest
    assert files_of(done) == files_of(straight)
    assert run(FeaturesSettings(crosscoder="crosscoder:1", **ALL), workspace).ref == done.ref, "it is up to date"
    # 900 pairs in shards of 300, blocks of 64: 15 blocks in each of two passes; at most one shard is done twice.
    assert encoded - 30 <= 5


def test_a_kill_between_the_checkpoint_and_the_next_shard(
    workspace: Workspace, straight: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_pair(workspace)
    checkpoint = scan_module._checkpoint

    def dying(path: Path, state: Any, shards: int) -> None:
        if shards == 2:
            raise KilledError
        checkpoint(path, state, shards)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "_checkpoint", dying)
        with pytest.raises(KilledError):
            run(FeaturesSettings(**ALL), workspace)
    with monkeypatch.context() as patch:
        patch.setattr(context_module, "gather", lambda *_: (_ for _ in ()).throw(KilledError))
        patch.setattr("modeldiff.features.run.gather", context_module.gather)
        with pytest.raises(KilledError):
            run(FeaturesSettings(**ALL), workspace)
    assert files_of(run(FeaturesSettings(**ALL), workspace)) == files_of(straight)


def test_without_texts_examples_are_rows(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, f_NF = made_pair(workspace, texts=False)
    row = FeatureTable(run(FeaturesSettings(**ALL), workspace)).row(0)
    assert [one.row for one in row.examples] == f_NF[:, 0].topk(5).indices.tolist()
    assert row.examples[0].word is None
    assert row.sources == {}
    assert row.words == []
    assert row.tokens_differ is row.examples[0].tokens_differ is None
    assert "no texts" in capsys.readouterr().err


def test_outliers_are_left_out_everywhere(workspace: Workspace) -> None:
    x_a, x_b = sparse_pairs(300)
    x_a[17, 0] = 100.0
    activations = make_activations(workspace, x_a, x_b, 300)
    publish(workspace, made_crosscoder(), activations)
    table = FeatureTable(run(FeaturesSettings(**{**ALL, "outlier_factor": 10.0}), workspace))
    assert table.info["outliers"] == 1
    assert table.info["pairs"] == 299
    assert table.row(0).max_activation < 2
    assert 17 not in [one.row for one in table.row(0).examples]


def test_a_part_of_the_pairs_is_spread_over_all(workspace: Workspace) -> None:
    made_pair(workspace)
    table = FeatureTable(run(FeaturesSettings(**{**ALL, "pairs": 256, "examples": 50}), workspace))
    assert 192 <= table.info["pairs"] <= 320
    rows = [one.row for feature in range(10) for one in table.row(feature).examples]
    assert min(rows) < 300
    assert max(rows) >= 600


def test_inputs_that_cannot_be_measured_are_named_in_one_line(workspace: Workspace) -> None:
    made_pair(workspace)
    x_a, x_b = sparse_pairs(100)
    other = make_activations(workspace, x_a[:, :5].contiguous(), x_b, 100)
    with pytest.raises(InputError, match=rf"widths {WIDTH_A} and 9, but {other.ref} has 5 and 9.*--activations"):
        run(FeaturesSettings(activations=other.ref, **ALL), workspace)
    with pytest.raises(InputError, match="--outlier-factor"):
        run(FeaturesSettings(**{**ALL, "outlier_factor": 0.001}), workspace)
    publish(workspace, made_crosscoder(), None, "of activations that are gone")
    with pytest.raises(InputError, match=r"activations:7.*--activations"):
        run(FeaturesSettings(**ALL), workspace)


def test_a_feature_that_never_fires_is_counted(workspace: Workspace) -> None:
    x_a, x_b = sparse_pairs(300)
    x_a[:, 1] = 0.0
    publish(workspace, made_crosscoder(), make_activations(workspace, x_a, x_b, 300, words_of(300, 50)))
    artifact = run(FeaturesSettings(**ALL), workspace)
    table = FeatureTable(artifact)
    assert table.info["dead"] == {"A": 1, "shared": 0, "B": 0}
    assert table.row(1).examples == []
    assert (table.row(0).tokens_differ, table.row(1).tokens_differ) == (0.0, None)
    assert table.select(partition="A").dead == 1
    assert 1 not in table.select(partition="A").ids
    path = artifact.folder / "examples.h5"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"examples\.h5"):
        FeatureTable(artifact)


def test_exclusive_features_are_explained_by_their_own_model_only(workspace: Workspace) -> None:
    made_pair(workspace, 3000, shard_pairs=1100)
    table = FeatureTable(run(FeaturesSettings(**ALL), workspace))
    for row in table.rows():
        assert row.r2_own is not None
        assert row.r2_other is not None
        assert row.r2_own > 0.9
        if row.partition == "shared":
            assert row.r2_other > 0.9
        else:
            assert row.r2_other < 0.02
    assert [row.partition for row in table.rows(top=6)].count("shared") == 0


def test_predictability_can_be_left_out(workspace: Workspace) -> None:
    made_pair(workspace)
    table = FeatureTable(run(FeaturesSettings(predictability=False, **ALL), workspace))
    assert (table.baselines, table.row(N_A).gap) == ({}, None)
    assert table.select().without_evidence == 10
    strongest = [row.max_activation for row in table.rows()]
    assert strongest == sorted(strongest, reverse=True)


def test_a_crosscoder_without_exclusive_features(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    activations = make_activations(workspace, *sparse_pairs(900), 300)
    publish(workspace, shared_only(), activations)
    table = FeatureTable(run(FeaturesSettings(**ALL), workspace))
    assert table.n_features == N_SHARED
    assert table.info["dead"] == {"A": 0, "shared": 0, "B": 0}
    assert {row.partition for row in table.rows()} == {"shared"}
    assert all(row.twins == [] for row in table.rows()), "there is no other partition"
    for side in ("A", "B"):
        selection = table.select(partition=side)  # type: ignore[arg-type]
        assert (selection.ids, selection.candidates) == ([], 0)
        capsys.readouterr()
        print_listing(table, partition=side, top=20, sort="evidence", min_density=0.0)
        assert capsys.readouterr().out == f"features:1: crosscoder:1 has no {side}-exclusive features\n"
        assert listing_json(table, partition=side, sort="evidence")["features"] == []


def test_activations_of_another_layer_are_refused(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    crosscoder = made_crosscoder()
    crosscoder.config = dataclasses.replace(crosscoder.config, layer_a=2, layer_b=1)
    x_a, x_b = sparse_pairs(200)
    right = make_activations(workspace, x_a, x_b, layers=(2, None))
    wrong = make_activations(workspace, x_a, x_b, layers=(3, 1))
    publish(workspace, crosscoder, right)
    with pytest.raises(InputError, match=f"layer 2 of model A, but {wrong.ref} holds layer 3"):
        run(FeaturesSettings(activations=wrong.ref, device="cpu"), workspace)
    assert run(FeaturesSettings(activations=right.ref, device="cpu", outlier_factor=0.0), workspace).ref == "features:1"


def test_differences_of_activations_are_kept_and_shown(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    made_pair(workspace, 3000, shard_pairs=1100)
    artifact = run(FeaturesSettings(**ALL), workspace)
    assert "10 features, 8 shared ones read from one model, 128 differences" in capsys.readouterr().err
    statistics = load_file(artifact.file("statistics.safetensors"))
    table = FeatureTable(artifact)
    for side, baseline in table.baselines.items():
        own, other, null = (statistics[f"difference_{side}_{name}"] for name in ("own", "other", "null"))
        assert len(own) == 64
        known = ~np.isnan(own)  # the made activations have plateaus: what ties with too many others fires too rarely
        assert baseline.directions == known.sum() > 20
        for value, of in ((baseline.own, own), (baseline.other, other), (baseline.null, null)):
            assert value == pytest.approx(np.median(of[known]), abs=1e-6)
        assert sum(baseline.verdicts.values()) == baseline.directions
    data = listing_json(table, partition="A", sort="evidence")
    assert data["differences"]["a"]["ratio_median"] == table.baselines["a"].ratio_median
    assert data["scales"]["b"]["references"] == table.scales["b"].references
    print_listing(table, partition="A", top=20, sort="evidence", min_density=0.0)
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 80
    one = table.baselines["a"]
    line = f"{one.own:.2f}, {one.other:.2f}, {one.null:.2f}; {one.ratio_median:.2f} [{one.ratio_low:.2f} to "
    assert f"  A: {line}" in listed
    calls = table.calls["a"]
    assert data["calls"]["a"] == {**vars(calls), "beyond_chance": calls.beyond_chance}
    assert data["scales"]["a"]["false_exclusive"] == calls.false_exclusive
    said = " ".join(listed.split())
    assert f"A: {calls.exclusive} of {calls.judged} are called excl. (" in said
    assert said.count("are called excl.") == 1, "of the side that is listed"


def test_a_strong_twin_is_marked(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Feature 0 of A and feature 7 of B fire on the same pairs; 1 and 8 on some."""
    x_a, x_b = sparse_pairs(900)
    x_b[:, N_SHARED] = x_a[:, 0]
    often = torch.arange(900) % 2 == 0
    x_b[often, N_SHARED + 1] = x_a[often, 1]
    publish(workspace, made_crosscoder(), make_activations(workspace, x_a, x_b, 300))
    table = FeatureTable(run(FeaturesSettings(**ALL), workspace))
    strong, weak = table.row(0).twins[0], table.row(1).twins[0]
    assert (strong.id, strong.partition, strong.strong) == (7, "B", True)
    assert (weak.id, weak.strong) == (8, False)
    assert 0.2 < weak.correlation < 0.7
    print_listing(table, partition="A", top=20, sort="id", min_density=0.0)
    listed = capsys.readouterr().out
    assert "1.00!" in listed
    assert f"{weak.correlation:.2f}!" not in listed
    assert "! from 0.7 on" in listed
