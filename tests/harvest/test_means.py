"""Means along texts: what they are, that texts do not mix, and that the other commands know them for what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import modeldiff.harvest.means as means_module
from modeldiff.cli.main import run as run_cli
from modeldiff.errors import InputError
from modeldiff.features.evaluate import run as run_evaluate
from modeldiff.features.evaluate_settings import EvaluateSettings
from modeldiff.features.impact.run import run as run_impact
from modeldiff.features.impact.settings import ImpactSettings
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.harvest.means import means_of, run
from modeldiff.harvest.means_settings import MeansSettings
from modeldiff.stitch.run import run as run_stitch
from modeldiff.stitch.settings import StitchSettings
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.activations import ActivationStore, Block
from modeldiff.workspace.files import read_json
from modeldiff.workspace.means import running_mean
from tests.features.made_crosscoder import publish
from tests.features.made_pair import Made, crosscoder, make_pair
from tests.made_activations import make_activations

TEXTS = ("one two three four five", "six seven", "eight nine ten")


def made(folder: Path, *, shard_pairs: int = 7, encoding: str = "float32") -> tuple[Workspace, Artifact, torch.Tensor]:
    """A store of ten pairs in three texts."""
    workspace = Workspace(folder)
    x_ND = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    artifact = make_activations(workspace, x_ND, 2 * x_ND[:, :2], shard_pairs, TEXTS, encoding=encoding)
    return workspace, artifact, x_ND


def rows(store: ActivationStore, side: str) -> torch.Tensor:
    return torch.cat([store.read_side(side, Block(i, 0, n)) for i, n in enumerate(store.info.shards)])


def test_a_running_mean_by_hand() -> None:
    x_ND = torch.tensor([[1.0], [3.0], [5.0], [9.0]])
    assert running_mean(x_ND, 2).flatten().tolist() == [1.0, 2.0, 4.0, 7.0]
    assert running_mean(x_ND, 10).flatten().tolist() == [1.0, 2.0, 3.0, 4.5]


@given(st.integers(1, 30), st.integers(2, 12), st.integers(0, 1000))
def test_a_running_mean_is_the_mean_of_the_last_rows(n: int, over: int, seed: int) -> None:
    x_ND = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 2)))
    expected = torch.stack([x_ND[max(0, i - over + 1) : i + 1].mean(dim=0) for i in range(n)])
    torch.testing.assert_close(running_mean(x_ND, over), expected)


def test_texts_do_not_mix() -> None:
    x_ND = torch.tensor([[1.0], [3.0], [100.0], [200.0], [5.0]])
    document_N = torch.tensor([4, 4, 5, 5, 9])
    assert means_of(x_ND, document_N, 3).flatten().tolist() == [1.0, 2.0, 100.0, 150.0, 5.0]


def test_the_store_holds_the_means_of_each_text_and_says_so(tmp_path: Path) -> None:
    workspace, source, x_ND = made(tmp_path, shard_pairs=20)
    store = ActivationStore(run(MeansSettings(activations=source.ref, over=2), workspace))
    expected = torch.cat([running_mean(part, 2).float() for part in x_ND.split([5, 2, 3])])
    torch.testing.assert_close(rows(store, "a"), expected)
    torch.testing.assert_close(rows(store, "b"), 2 * expected[:, :2])
    assert store.info.mean_over == 2
    assert store.info.sides["a"].median_norm == pytest.approx(float(expected.double().norm(dim=1).median()), rel=0.3)
    torch.testing.assert_close(store.mean["a"], expected.double().mean(dim=0))
    assert [d.text for d in store.plan(0).documents] == list(TEXTS)


def test_activations_are_not_called_means_in_their_file(tmp_path: Path) -> None:
    _, source, _ = made(tmp_path)
    assert "mean_over" not in read_json(source.file("store.json"))
    assert ActivationStore(source).info.mean_over == 1


def test_the_same_again_is_up_to_date_and_another_length_is_not(tmp_path: Path) -> None:
    workspace, source, _ = made(tmp_path)
    first = run(MeansSettings(over=2, activations=source.ref), workspace)
    assert run(MeansSettings(over=2, activations=source.ref), workspace).ref == first.ref
    assert run(MeansSettings(over=3, activations=source.ref), workspace).ref != first.ref


def test_an_interrupted_run_goes_on_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = MeansSettings(over=2, activations="activations:1")
    straight = run(settings, made(tmp_path / "straight", shard_pairs=5)[0])
    workspace, _, _ = made(tmp_path / "cut", shard_pairs=5)
    whole, calls = means_module.means_of, []

    def dying(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(means_module, "means_of", dying)
    with pytest.raises(KeyboardInterrupt):
        run(settings, workspace)
    again = run(settings, workspace)
    assert len(calls) == 5, "the two that were written are not made again"
    assert {f: e.digest for f, e in again.manifest.files.items()} == {
        f: e.digest for f, e in straight.manifest.files.items()
    }


def test_means_of_means_and_of_rows_without_texts_are_refused(tmp_path: Path) -> None:
    workspace, source, x_ND = made(tmp_path)
    means = run(MeansSettings(over=2, activations=source.ref), workspace)
    with pytest.raises(InputError, match="holds means over 2 pairs already"):
        run(MeansSettings(over=2, activations=means.ref), workspace)
    bare = make_activations(workspace, x_ND, x_ND, 10)
    with pytest.raises(InputError, match="imported without texts"):
        run(MeansSettings(over=2, activations=bare.ref), workspace)


def test_over_one_pair_is_no_mean() -> None:
    with pytest.raises(InputError, match="--over must be at least 2"):
        MeansSettings(over=1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_cli(["harvest", "means", "--over", "3", "--workspace", str(tmp_path)])
    assert ended.value.code == 0
    assert "next: modeldiff train --activations activations:2" in capsys.readouterr().out


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two tiny models, harvested, and means of it."""
    found = make_pair(tmp_path_factory.mktemp("means"))
    run(MeansSettings(over=4, activations=found.activations.ref), found.workspace)
    return found


def test_impact_is_measured_with_a_crosscoder_of_means(pair: Made) -> None:
    """The check that the model is the harvested one compares means with means."""
    workspace = pair.workspace
    means = workspace.find("activations", "activations:2")
    source = publish(workspace, crosscoder(), means, "of means")
    run_stitch(StitchSettings(activations=means.ref), workspace)
    impact = run_impact(ImpactSettings(crosscoder=source.ref, pairs=200, samples=1, device="cpu"), workspace)
    assert impact.manifest.inputs["activations"].digest == means.manifest.digest


def test_means_cannot_be_spliced_into_a_model(pair: Made) -> None:
    source = publish(pair.workspace, crosscoder(), pair.workspace.find("activations", "activations:2"), "to splice")
    with pytest.raises(InputError, match="means over 4 pairs, which cannot stand in the place of single activations"):
        run_evaluate(EvaluateSettings(crosscoder=source.ref), pair.workspace)


def test_a_crosscoder_of_means_is_not_read_on_single_activations(pair: Made) -> None:
    source = publish(pair.workspace, crosscoder(), pair.workspace.find("activations", "activations:2"), "to mix")
    with pytest.raises(InputError, match="was trained on means over 4 pairs, but activations:1 holds single"):
        run_features(FeaturesSettings(crosscoder=source.ref, activations="activations:1"), pair.workspace)
