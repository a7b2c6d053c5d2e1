"""The stage on a hand-made crosscoder: every number equals the dense one, and interruptions leave no trace."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import modeldiff.features.codes as codes_module
import modeldiff.features.scan as scan_module
import tests.made_activations as made_activations_module
from modeldiff.catalogue import stored
from modeldiff.catalogue.table import FeatureTable
from modeldiff.cli.feature_list import listing_json, print_listing
from modeldiff.cli.feature_one import print_feature
from modeldiff.crosscoder import load
from modeldiff.errors import DamagedError, InputError
from modeldiff.features.codes import Encoder
from modeldiff.features.run import run
from modeldiff.features.settings import FeaturesSettings
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.activations import ActivationStore
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

pytestmark = pytest.mark.usefixtures("small_blocks")
ALL: dict[str, Any] = {"outlier_factor": 0.0, "device": "cpu", "examples": 5, "context": 3}


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
    edges = stored.bin_edges()
    assert edges[[0, 8, 10]].tolist() == [1 / 16, 1, 2]
    edges[0], edges[-1] = 0, np.inf  # the first and the last bin are open
    firings = load_file(artifact.file("histogram.safetensors"))["firings"]
    for feature in range(f.shape[1]):
        for source, of_source in enumerate((f[~odd, feature], f[odd, feature])):
            expected, _ = np.histogram(of_source[of_source > 0].astype(np.float32), edges)
            np.testing.assert_array_equal(firings[feature, source], expected)
    # Decoder rows have norm 2 in A and 1 in B.
    np.testing.assert_allclose(found["relative_norm"], [1] * 3 + [2 / 3] * 4 + [0] * 3, rtol=1e-6)


def test_sums_of_activations_are_exact(workspace: Workspace) -> None:
    activations, crosscoder, _ = made_pair(workspace, texts=False)
    statistics = load_file(run(FeaturesSettings(**ALL), workspace).file("statistics.safetensors"))
    store = ActivationStore(activations)
    encoder = Encoder(load(crosscoder), store, torch.device("cpu"), 0.0)
    codes_NF, _ = encoder.matrix(store.blocks(900))
    value_NF = codes_NF.toarray().astype(np.float64)
    exact_F = [math.fsum(value_N) for value_N in value_NF.T]
    np.testing.assert_array_equal(statistics["mean_activation"], np.float32(exact_F / (value_NF > 0).sum(axis=0)))
    np.testing.assert_array_equal(statistics["max_activation"], value_NF.max(axis=0))
    assert not statistics["activation_by_source"].any(), "without texts there are no sources"
    assert max(exact_F) / encoder.unit() < 2**62


def test_examples_show_the_place_and_where_else_the_feature_fires(workspace: Workspace) -> None:
    _, _, f_NF = made_pair(workspace)
    row = FeatureTable(run(FeaturesSettings(**ALL), workspace)).row(4)
    f_N = f_NF[:, 4].numpy()
    best = max(range(len(f_N)), key=lambda i: f_N[i])
    example = row.examples[0]
    assert (example.row, example.word, example.document) == (best, f"w{best}", best // 50)
    assert example.source == ("odd" if best // 50 % 2 else "even")
    assert [one.activation for one in row.examples] == sorted((one.activation for one in row.examples), reverse=True)
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
    marked = int(table.mostly_differ_F.argmax())
    print_feature(table, table.row(marked))
    assert f"tokens differ at {rows[marked].tokens_differ:.0%} of its examples" in capsys.readouterr().out


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


@pytest.mark.parametrize("moment", [2, 13, 17, 30])
def test_an_interrupted_run_continues_and_ends_the_same(
    moment: int, workspace: Workspace, straight: Artifact, dying: Callable[..., list[Any]]
) -> None:
    made_pair(workspace)
    # Called for every block, in the pass over all and for the examples' surroundings.
    calls = dying(codes_module.Encoder, "keeps", moment)
    with pytest.raises(KeyboardInterrupt):
        run(FeaturesSettings(**ALL), workspace)
    done = run(FeaturesSettings(**ALL), workspace)
    assert done.manifest.digest == straight.manifest.digest
    assert files_of(done) == files_of(straight)
    assert run(FeaturesSettings(crosscoder="crosscoder:1", **ALL), workspace).ref == done.ref, "it is up to date"
    # 900 pairs in shards of 300, blocks of 64: 15 blocks in each of two passes; at most one shard is done twice.
    assert len(calls) - 1 - 30 <= 5


def test_a_kill_between_the_checkpoint_and_the_next_shard(
    workspace: Workspace, straight: Artifact, dying: Callable[..., list[Any]]
) -> None:
    made_pair(workspace)
    dying(scan_module, "_checkpoint", 2)
    with pytest.raises(KeyboardInterrupt):
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


def test_a_part_of_the_pairs_is_spread_over_all_and_predictability_can_be_left_out(workspace: Workspace) -> None:
    made_pair(workspace)
    parts = {**ALL, "pairs": 256, "examples": 50, "predictability": False}
    table = FeatureTable(run(FeaturesSettings(**parts), workspace))
    assert 192 <= table.info["pairs"] <= 320
    rows = [one.row for feature in range(10) for one in table.row(feature).examples]
    assert min(rows) < 300
    assert max(rows) >= 600
    assert (table.scales, table.baselines, table.row(N_A).gap) == ({}, {}, None)
    assert {row.verdict for row in table.rows()} == {None}
    strongest = [row.max_activation for row in table.rows()]
    assert strongest == sorted(strongest, reverse=True)
    with pytest.raises(InputError, match="measure again with --predictability"):
        table.select(partition="A", anywhere=True)


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
    right, wrong = (make_activations(workspace, x_a, x_b, layers=layers) for layers in ((2, None), (3, 1)))
    crosscoder = made_crosscoder()
    crosscoder.config = dataclasses.replace(crosscoder.config, layer_a=2, layer_b=1)
    publish(workspace, crosscoder, right, "of layers 2 and 1")
    with pytest.raises(InputError, match=f"layer 2 of model A, but {wrong.ref} holds layer 3"):
        run(FeaturesSettings(activations=wrong.ref, **ALL), workspace)
    assert run(FeaturesSettings(activations=right.ref, **ALL), workspace).ref == "features:1"


def test_outliers_are_left_out_everywhere_and_a_feature_that_never_fires_is_counted(workspace: Workspace) -> None:
    x_a, x_b = sparse_pairs(300)
    x_a[:, 1] = 0.0
    x_a[17, 0] = 100.0
    publish(workspace, made_crosscoder(), make_activations(workspace, x_a, x_b, 300, words_of(300, 50)))
    artifact = run(FeaturesSettings(**{**ALL, "outlier_factor": 10.0}), workspace)
    table = FeatureTable(artifact)
    assert (table.info["outliers"], table.info["pairs"]) == (1, 299)
    assert table.row(0).max_activation < 2
    assert 17 not in [one.row for one in table.row(0).examples]
    assert table.info["dead"] == {"A": 1, "shared": 0, "B": 0}
    assert table.row(1).examples == []
    assert (table.row(0).tokens_differ, table.row(1).tokens_differ) == (0.0, None)
    assert table.select(partition="A").dead == 1
    assert 1 not in table.select(partition="A").ids
    path = artifact.folder / "examples.h5"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedError, match=r"examples\.h5"):
        FeatureTable(artifact)


def test_a_crosscoder_without_exclusive_features(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    activations = make_activations(workspace, *sparse_pairs(900), 300)
    publish(workspace, shared_only(), activations)
    table = FeatureTable(run(FeaturesSettings(**ALL), workspace))
    assert table.n_features == N_SHARED
    assert table.info["dead"] == {"A": 0, "shared": 0, "B": 0}
    assert {row.partition for row in table.rows()} == {"shared"}
    assert all(row.twins == [] for row in table.rows()), "there is no other partition"
    capsys.readouterr()
    print_listing(table, partition="A", top=20, sort="evidence", min_density=0.0)
    assert capsys.readouterr().out == "features:1: crosscoder:1 has no A-exclusive features\n"
    assert listing_json(table, partition="A", sort="evidence")["features"] == []


def test_exclusive_features_and_differences_of_activations_are_explained_by_their_own_model(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    made_pair(workspace, 3000, shard_pairs=1100)
    artifact = run(FeaturesSettings(**ALL), workspace)
    statistics = load_file(artifact.file("statistics.safetensors"))
    table = FeatureTable(artifact)
    for row in table.rows():
        assert row.r2_own is not None
        assert row.r2_other is not None
        assert row.r2_own > 0.9
        assert row.r2_other > 0.9 if row.partition == "shared" else row.r2_other < 0.02
    assert [row.partition for row in table.rows(top=6)].count("shared") == 0
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
    print_listing(table, partition="A", top=20, sort="evidence", min_density=0.0, numbers=True)
    listed = capsys.readouterr().out
    assert max(map(len, listed.splitlines())) <= 80
    calls = table.calls["a"]
    assert data["calls"]["a"] == {**vars(calls), "beyond_chance": calls.beyond_chance}
    assert data["scales"]["a"]["false_exclusive"] == calls.false_exclusive
    assert f"to A beyond chance: {calls.exclusive} of {calls.judged} called so" in " ".join(listed.split())
