"""`modeldiff toy` as a stage: one artifact for one benchmark, whatever happens while it is made."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import modeldiff.toy.run
from modeldiff.cli.main import run as command
from modeldiff.toy.cell import CellSpec
from modeldiff.toy.plan import plan
from modeldiff.toy.run import run
from modeldiff.workspace import Workspace
from tests.toy.made_cells import made_cell, tiny


class Computed:
    """Stands in for `run_cell`: made-up results, counted, until `most` of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.most: int | None = None
        monkeypatch.setattr(modeldiff.toy.run, "run_cell", self)

    def __call__(self, cell: CellSpec) -> dict[str, Any]:
        if self.count == self.most:
            raise KeyboardInterrupt
        self.count += 1
        return made_cell(cell)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Computed:
    """The figures, which take seconds, are replaced as well."""
    monkeypatch.setattr(modeldiff.toy.run, "figures_of", lambda *_: {"sizes": lambda: b"a picture"})
    return Computed(monkeypatch)


def test_the_artifact(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    computed = Computed(monkeypatch)
    settings = tiny(seeds=2, tables=("sizes", "dial"))
    made = run(settings, workspace, name="first")
    assert {"cells.csv", "cells.json", "summary.json", "figures/sizes.png", "figures/dial.png"} <= set(made.files())
    assert computed.count == made.metrics["cells"] == 8 + 7 * 4
    with made.file("cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = json.loads(made.file("cells.json").read_text())["cells"]
    assert len(rows) == len(cells) == computed.count
    for row, cell in zip(rows, cells, strict=True):
        assert float(row["fve_a"]) == cell["result"]["fve"]["a"]
        assert (row["tables"].split(), int(row["seed"])) == (cell["tables"], cell["spec"]["seed"])
    assert made.problems() == []
    again = run(settings, workspace)
    assert (again.ref, computed.count) == ("toy:1", 36)
    assert "toy:1 is up to date" in capsys.readouterr().err


def test_interrupted_and_continued_is_the_same_as_uninterrupted(
    tmp_path: Path, computed: Computed, capsys: pytest.CaptureFixture[str]
) -> None:
    straight = run(tiny(seeds=2), Workspace(tmp_path / "straight"))
    computed.most = computed.count + 5
    workspace = Workspace(tmp_path / "interrupted")
    with pytest.raises(KeyboardInterrupt):
        run(tiny(seeds=2), workspace)
    computed.most = None
    continued = run(tiny(seeds=2), workspace)
    assert computed.count == 8 + 8
    assert continued.manifest.digest == straight.manifest.digest
    assert "continuing what was begun" in capsys.readouterr().err


def test_force_computes_every_cell_once(workspace: Workspace, computed: Computed) -> None:
    first = run(tiny(seeds=2), workspace)
    computed.most = 8 + 3
    with pytest.raises(KeyboardInterrupt):
        run(tiny(seeds=2), workspace, force=True)
    computed.most = None
    second = run(tiny(seeds=2), workspace, force=True)
    assert second.ref == "toy:2"
    assert computed.count == 8 + 8  # the forced run went on where it was interrupted
    assert second.manifest.digest == first.manifest.digest
    run(tiny(seeds=2), workspace, force=True)
    assert computed.count == 8 + 8 + 8


def exit_code(workspace: Workspace, *args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        command(["--workspace", str(workspace.folder), *args])
    return int(str(caught.value.code))


ARGS = [
    "toy", "--preset", "quick", "--sizes", "0.5", "1", "--seeds", "2", "--steps", "2", "--batch", "64",
    "--jobs", "1", "--device", "cpu", "--tables", "sizes", "dial", "selection", "self-diff",
]  # fmt: skip


def test_the_command_prints_tables_that_fit(
    workspace: Workspace, computed: Computed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(workspace, *ARGS) == 0
    *lines, cells, figures = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for words in ("map gaussian, stitch R² 0.90", "dial, 32 features", "selection, 32 features", "self-diff, 32"):
        assert words in text
    assert "no feature should be exclusive" in text
    assert cells.startswith("cells:")
    assert figures.startswith("figures: ")
    assert exit_code(workspace, *ARGS, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    made = workspace.find("toy")
    assert printed["ref"] == made.ref
    assert printed["summary"] == json.loads(made.file("summary.json").read_text())["rows"]


def test_a_plan_counts_what_is_missing_and_grows_with_the_steps(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell whose training takes 1 s a step beside 5 s of its own; the clock is made up."""
    clock = [0.0]

    def spends(cell: CellSpec) -> dict[str, Any]:
        clock[0] += 5 + cell.train["steps"]
        return {}

    monkeypatch.setattr("modeldiff.toy.plan.run_cell", spends)
    monkeypatch.setattr("modeldiff.toy.plan.time", type("Clock", (), {"monotonic": staticmethod(lambda: clock[0])}))
    settings = tiny(seeds=2, tables=("sizes",), steps=1000, sizes=(0.5,), jobs=1)
    found = plan(settings, workspace)
    assert (found["cells"], found["kept"]) == (4, 0)
    assert found["rehearsal"]["time"]["run"] == pytest.approx(4 * 1005)
    assert found["rehearsal"]["stages"]["toy"]["time"] == found["rehearsal"]["time"]["run"]
    Computed(monkeypatch)
    run(tiny(seeds=1, tables=("sizes",), steps=1000, sizes=(0.5,), jobs=1), workspace)
    half = plan(settings, workspace)
    assert (half["kept"], half["rehearsal"]["time"]["run"]) == (2, pytest.approx(2 * 1005))
