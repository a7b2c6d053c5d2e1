"""Pictures are a decoration: no backend keeps them from being drawn, and none of them takes a result along."""

import os
import subprocess
import sys

import pytest

from modeldiff.figures import write_figure
from modeldiff.workspace import Work, Workspace

DRAWING = "from modeldiff.figures import new_figure, png; print(png(new_figure(1, 1))[1:4]); import matplotlib.pyplot"


def test_a_backend_that_is_not_there_does_not_matter() -> None:
    environment = os.environ | {"MPLBACKEND": "module://of_a_notebook.elsewhere"}
    done = subprocess.run([sys.executable, "-c", DRAWING], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "b'PNG'\n", done.stderr


def test_a_picture_that_cannot_be_drawn_is_said_in_a_line(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw() -> bytes:
        raise RuntimeError("no fonts\nat all")

    work = Work(workspace.folder)
    write_figure(work, "figures/training.png", draw)
    assert capsys.readouterr().err.splitlines() == [
        "figures/training.png cannot be drawn (no fonts): the rest is there without it"
    ]
    assert work.entries() == {}
