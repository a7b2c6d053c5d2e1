"""A stitch from disk: exactly what was written, or an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeldiff.errors import DamagedError, InputError
from modeldiff.features.measures.stitch import StitchSettings
from modeldiff.features.measures.stitch.run import run
from modeldiff.linear.stitch import FORMAT, MAPS_NAME, STITCH_NAME, load_stitch
from modeldiff.workspace import Artifact, Workspace
from tests.made_activations import make_activations


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    workspace = Workspace(tmp_path / "ws")
    x = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    make_activations(workspace, x[:, :4], x[:, 1:])
    return run(StitchSettings(device="cpu"), workspace)


def test_what_was_written_is_read_and_what_another_version_wrote_is_refused(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load_stitch(artifact)
    written = load_file(artifact.folder / MAPS_NAME)
    assert (found.a_to_b.widths, found.b_to_a.widths) == ((4, 6), (6, 4))
    assert torch.equal(found.a_to_b.w_DD, written["a_to_b.w"])
    assert torch.equal(found.b_to_a.bias_D, written["b_to_a.bias"])
    assert torch.equal(torch.from_numpy(found.stretches.part_S), written["stretch.part"])
    assert found.a_to_b.r2 == found.info["maps"]["a_to_b"]["r2"] == artifact.metrics["a_to_b"]["r2"]
    newer = json.loads((artifact.folder / STITCH_NAME).read_text()) | {"format": FORMAT + 1}
    monkeypatch.setattr("modeldiff.linear.stitch.read_json", lambda _: newer)
    with pytest.raises(InputError, match="upgrade modeldiff"):
        load_stitch(artifact)


@pytest.mark.parametrize("name", [STITCH_NAME, MAPS_NAME])
def test_damage_is_named(artifact: Artifact, name: str) -> None:
    content = (artifact.folder / name).read_bytes()
    (artifact.folder / name).unlink()
    (artifact.folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedError, match=name):
        load_stitch(artifact)
