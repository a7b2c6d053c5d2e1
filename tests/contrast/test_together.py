"""`torchrun ... -m modeldiff contrast`: several processes continue the texts and come to the bytes of one."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from modeldiff.contrast.continuations import run
from modeldiff.contrast.run import run as run_contrast
from modeldiff.contrast.settings import ContinuationsSettings, ContrastSettings
from modeldiff.workspace import Artifact, Workspace
from tests.processes import two

# Two parts of each model.
CHANGES = {"places": 280, "tokens": 2}


@pytest.fixture(scope="module")
def straight(
    tmp_path_factory: pytest.TempPathFactory, make_settings: Callable[..., ContinuationsSettings]
) -> tuple[Artifact, Artifact]:
    """What one process makes."""
    workspace = Workspace(tmp_path_factory.mktemp("straight") / "ws")
    return run(make_settings(**CHANGES), workspace), run_contrast(ContrastSettings(device="cpu"), workspace)


@pytest.mark.parametrize(("victim", "file"), [(None, 0), (1, 2)])
def test_two_processes_make_the_bytes_of_one(
    workspace: Workspace,
    straight: tuple[Artifact, Artifact],
    make_settings: Callable[..., ContinuationsSettings],
    tmp_path: Path,
    victim: int | None,
    file: int,
) -> None:
    """Also where one is killed with the first of its parts, and the same command continues."""
    settings = make_settings(**CHANGES)
    names = ("model_a", "model_b", "places", "tokens", "device")
    options = [text for name in names for text in ("--" + name.replace("_", "-"), str(getattr(settings, name)))]
    args = ["--workspace", str(workspace.folder), "contrast", *options, "--texts", *settings.texts]
    if victim is not None:
        results = two(args, tmp_path, {victim: file})
        assert (results[victim][0], results[1 - victim][0]) == (-signal.SIGKILL, 1)
        assert results[1 - victim][1][-1].startswith("modeldiff: another process of this run ended")
    (code, lines), other = two(args, tmp_path, {})
    assert (code, other) == (0, (0, []))
    for kind, expected in zip(("continuations", "contrast"), straight, strict=True):
        made = workspace.find(kind)
        assert made.manifest.digest == expected.manifest.digest
        assert made.metrics == expected.metrics
        assert sum(f"{kind}:1 is ready" in line for line in lines) == 1
    assert workspace.partials() == []
