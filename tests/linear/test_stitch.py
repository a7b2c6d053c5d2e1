"""A stitch from disk: exactly what was written, or an error that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeldiff.errors import DamagedError, InputError
from modeldiff.features.measures.stitch.run import run
from modeldiff.features.measures.stitch.settings import StitchSettings
from modeldiff.linear.stitch import FORMAT, MAPS_NAME, STITCH_NAME, load_stitch
from modeldiff.workspace import Artifact, Workspace
from tests.made_activations import make_activations


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    workspace = Workspace(tmp_path / "ws")
    x = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    make_activations(workspace, x[:, :4], x[:, 1:])
    return run(StitchSettings(device="cpu"), workspace)


def test_from_an_artifact_and_from_its_folder(artifact: Artifact) -> None:
    found = load_stitch(artifact)
    again = load_stitch(artifact.folder)
    written = load_file(artifact.folder / MAPS_NAME)
    assert found.a_to_b.widths == (4, 6)
    assert found.b_to_a.widths == (6, 4)
    for one in (found, again):
        assert torch.equal(one.a_to_b.w_DD, written["a_to_b.w"])
        assert torch.equal(one.b_to_a.bias_D, written["b_to_a.bias"])
        assert torch.equal(torch.from_numpy(one.stretches.part_S), written["stretch.part"])
    assert found.a_to_b.r2 == found.info["maps"]["a_to_b"]["r2"] == artifact.metrics["a_to_b"]["r2"]
    assert found.b_to_a.ridge == artifact.metrics["b_to_a"]["ridge"]


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        info = json.loads((folder / STITCH_NAME).read_text())
        change(info)
        (folder / STITCH_NAME).write_text(json.dumps(info))

    return edit


def _edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / MAPS_NAME)
        change(tensors)
        save_file(tensors, folder / MAPS_NAME)

    return edit


def _truncate(folder: Path) -> None:
    content = (folder / MAPS_NAME).read_bytes()
    (folder / MAPS_NAME).write_bytes(content[: len(content) // 2])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda folder: (folder / STITCH_NAME).write_text("{"), STITCH_NAME),
    "a field is missing": (_edit(lambda info: info.pop("pairs")), "field 'pairs' is missing"),
    "a field is unknown": (_edit(lambda info: info.update(extra=1)), "field 'extra' is unknown"),
    "a format that is no number": (_edit(lambda info: info.update(format="1")), "'format' is missing or not a number"),
    "a width is missing": (_edit(lambda info: info["sides"]["a"].pop("width")), "is missing or wrong"),
    "a width that is no number": (_edit(lambda info: info["sides"]["a"].update(width="4")), "is missing or wrong"),
    "a map is missing": (_edit(lambda info: info["maps"].pop("b_to_a")), "is missing or wrong"),
    "a ridge that is no number": (_edit(lambda info: info["maps"]["a_to_b"].update(ridge=None)), "is missing or wrong"),
    "other widths": (_edit(lambda info: info["sides"]["a"].update(width=5)), r"'a_to_b.w' should be .*\(5, 6\)"),
    "truncated": (_truncate, MAPS_NAME),
    "gone": (lambda folder: (folder / MAPS_NAME).unlink(), MAPS_NAME),
    "a tensor is missing": (_edit_tensors(lambda all_: all_.pop("a_to_b.bias")), "'a_to_b.bias' is missing"),
    "a tensor is not finite": (_edit_tensors(lambda all_: all_["b_to_a.w"].fill_(torch.nan)), "not finite"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(artifact: Artifact, what: str) -> None:
    damage, message = DAMAGE[what]
    damage(artifact.folder)
    with pytest.raises(DamagedError, match=message) as caught:
        load_stitch(artifact.folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(DamagedError, match=r"stitch\.json|maps\.safetensors"):
        load_stitch(artifact)


def test_a_newer_format(artifact: Artifact) -> None:
    _edit(lambda info: info.update(format=FORMAT + 1))(artifact.folder)
    with pytest.raises(InputError, match="upgrade modeldiff"):
        load_stitch(artifact.folder)
