"""The stage on pairs whose relation is known, and on its interruptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import modeldiff.features.measures.stitch.run as run_module
import modeldiff.features.measures.stitch.scan as scan_module
from modeldiff.errors import DamagedError, InputError
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run
from modeldiff.linear.stitch import Stitch, load_stitch
from modeldiff.workspace import Workspace
from modeldiff.workspace.activations import ActivationStore
from tests.made_activations import make_activations

N, WIDTH = 3000, 6
ALL: dict[str, Any] = {"outlier_factor": 0.0, "device": "cpu"}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks per shard."""
    monkeypatch.setattr(run_module, "_BLOCK_ROWS", 128)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotated() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x_a, x_b, R, shift): x_b = x_a R + shift, R a rotation times 5: other units."""
    x_a = normal(N, WIDTH, seed=0) * torch.tensor([3.0, 2, 1, 1, 0.5, 0.3]) + 4
    rotation, _ = torch.linalg.qr(normal(WIDTH, WIDTH, seed=1))
    shift = 10 * normal(WIDTH, seed=2)
    return x_a, x_a @ (5 * rotation) + shift, 5 * rotation, shift


def noisy(width_b: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """Half of B's variance follows A, and more of it where A's activations are large."""
    x_a = normal(N, WIDTH, seed=3) * normal(N, 1, seed=4).abs() + 1
    return x_a, x_a @ normal(WIDTH, width_b, seed=5) + 2 * normal(N, width_b, seed=6) - 3


def stitched(workspace: Workspace, x_a: torch.Tensor, x_b: torch.Tensor, **settings: Any) -> Stitch:
    make_activations(workspace, x_a, x_b, 700)
    return load_stitch(run(StitchSettings(**{**ALL, **settings}), workspace))


def test_a_rotation_in_other_units_is_recovered(workspace: Workspace) -> None:
    x_a, x_b, rotation, shift = rotated()
    found = stitched(workspace, x_a, x_b)
    torch.testing.assert_close(found.a_to_b.w_DD, rotation, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.a_to_b.bias_D, shift, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.b_to_a.w_DD, torch.linalg.inv(rotation), rtol=1e-4, atol=1e-5)
    assert found.a_to_b.r2 == pytest.approx(1, abs=1e-6)
    assert found.b_to_a.r2 == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(found.a_to_b.w_DD @ found.b_to_a.w_DD, torch.eye(WIDTH), rtol=0, atol=1e-4)
    assert found.info["round_trip"] == pytest.approx({"a": 1, "b": 1}, abs=1e-6)
    d_D = normal(WIDTH, seed=7)
    torch.testing.assert_close(found.from_side("a").direction(d_D), d_D @ rotation, rtol=1e-4, atol=1e-4)


def direct(x: torch.Tensor, y: torch.Tensor, found: Stitch, direction: str) -> tuple[Any, Any]:
    """(target, prediction) of the reported pairs by scikit-learn, fitted on the pairs that were fitted on."""
    fit, held = (found.stretches.rows(part) for part in ("fit", "report"))
    ridge = found.info["maps"][direction]["ridge"]
    x64, y64 = x.double().numpy(), y.double().numpy()
    alpha = ridge * ((x64[fit] - x64[fit].mean(0)) ** 2).sum() / x64.shape[1]
    return y64[held], Ridge(alpha=alpha).fit(x64[fit], y64[fit]).predict(x64[held])


def test_every_number_equals_scikit_learn(workspace: Workspace) -> None:
    x_a, x_b = noisy()
    found = stitched(workspace, x_a, x_b)
    assert found.info["pairs"] == {part: len(found.stretches.rows(part)) for part in ("fit", "choose", "report")}
    for direction, x, y in (("a_to_b", x_a, x_b), ("b_to_a", x_b, x_a)):
        target, predicted = direct(x, y, found, direction)
        one = found.info["maps"][direction]
        assert one["r2"] == pytest.approx(r2_score(target, predicted, multioutput="variance_weighted"), abs=1e-6)
        assert one["r2"] > 0.3
        # A map of permuted pairs explains nothing.
        assert one["null_r2"] == pytest.approx(0, abs=0.03)
    assert (found.a_to_b.widths, found.b_to_a.widths) == ((6, 9), (9, 6))
    assert found.info["identity"] is None


def test_unrelated_models_are_not_stitched_and_a_model_and_itself_need_no_map(
    workspace: Workspace, printed: Callable[..., str]
) -> None:
    x_a, x_b = normal(N, 5, seed=8), normal(N, 5, seed=9)
    found = stitched(workspace, x_a, x_b)
    for one in found.info["maps"].values():
        assert one["r2"] == pytest.approx(0, abs=0.02)
    assert found.info["identity"]["a_to_b"] == pytest.approx(-1, abs=0.2)
    shown = printed(workspace, "stitch", "--device", "cpu", "--outlier-factor", "0")
    assert "Without a map (widths are equal): R² -" in shown
    assert stitched(workspace, x_a, x_a).info["identity"] == {"a_to_b": 1.0, "b_to_a": 1.0}


def test_what_the_held_out_pairs_hold_does_not_change_the_maps(workspace: Workspace) -> None:
    x_a, x_b = noisy()
    before = stitched(workspace, x_a, x_b)
    changed, held = x_b.clone(), before.stretches.rows("report")
    changed[held] += 5 * normal(len(held), 9, seed=11)
    after = stitched(workspace, x_a, changed)
    torch.testing.assert_close(after.a_to_b.w_DD, before.a_to_b.w_DD, rtol=1e-5, atol=1e-6)
    assert after.a_to_b.ridge == before.a_to_b.ridge
    assert after.info["maps"]["a_to_b"]["r2"] < before.info["maps"]["a_to_b"]["r2"] - 0.2


def test_outliers_are_left_out_on_either_side(workspace: Workspace) -> None:
    x_a, x_b, rotation, _ = rotated()
    x_a[::50] = 1000 * normal(len(x_a[::50]), WIDTH, seed=12)
    x_b[25::50] = 10_000 * normal(len(x_b[25::50]), WIDTH, seed=13)
    found = stitched(workspace, x_a, x_b, outlier_factor=3.0)
    assert found.info["outliers"] == pytest.approx(N / 25, abs=N / 250)
    torch.testing.assert_close(found.a_to_b.w_DD, rotation, rtol=1e-3, atol=1e-3)
    assert stitched(workspace, x_a, x_b, outlier_factor=0.0).info["maps"]["a_to_b"]["r2"] < 0.5


def test_an_interrupted_pass_goes_on_to_the_same_bytes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, dying: Callable[..., list[Any]]
) -> None:
    make_activations(workspace, *noisy(), 700)
    monkeypatch.setattr(scan_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr("modeldiff.workspace.stage._WRITING_SHARE", float("inf"))
    monkeypatch.setattr("modeldiff.features.measures.stitch.scan.Permuted.__init__.__defaults__", (300,))
    whole = run(StitchSettings(**ALL), workspace)
    calls = dying(ActivationStore, "read_side", 31)
    with pytest.raises(KeyboardInterrupt):
        run(StitchSettings(**ALL), workspace, force=True)
    again = run(StitchSettings(**ALL), workspace, force=True)
    _, _, first_again = calls[31]
    assert (first_again.shard, first_again.start) > (0, 0)
    assert again.manifest.files == whole.manifest.files


def test_bad_activations(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no activations in"):
        run(StitchSettings(**ALL), workspace)
    make_activations(workspace, *noisy(), 700)
    with pytest.raises(InputError, match=r"too few pairs are left.*raise --outlier-factor"):
        run(StitchSettings(device="cpu", outlier_factor=1e-3), workspace)
    read = ActivationStore.read_side

    def broken(self: ActivationStore, side: str, block: Any) -> torch.Tensor:
        x_ND = read(self, side, block)
        if side == "a":
            x_ND[0, 2] = torch.nan
        return x_ND

    monkeypatch.setattr(ActivationStore, "read_side", broken)
    with pytest.raises(DamagedError, match="values of model A that are not finite"):
        run(StitchSettings(**ALL), workspace)
