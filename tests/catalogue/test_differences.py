"""The list of a contrast in Python: records, a frame, and what notebooks show, whatever the texts hold."""

from __future__ import annotations

import re
import sys

import pytest

import modeldiff
from modeldiff.catalogue.contrast import read_contrast
from modeldiff.cli.differences import print_differences
from modeldiff.contrast.run import run
from modeldiff.contrast.settings import ContrastSettings
from modeldiff.errors import MachineError
from modeldiff.workspace import Artifact, Workspace
from tests.contrast.made_continuations import made_continuations, planted

EVIL = "<img src=x onerror=alert(1)>\x1b[31m"
TAG = "<script>alert(2)</script> "


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A difference in the texts of a source called EVIL; every text begins with TAG."""
    workspace, made = Workspace(tmp_path_factory.mktemp("hostile") / "ws"), planted()
    read = enumerate(made["documents"])
    made["documents"] = [(TAG + text, EVIL if "oak" in text else f"web {i % 3}") for i, (text, _) in read]
    made["places"] = [(document, end + len(TAG), a, b) for document, end, a, b in made["places"]]
    made_continuations(workspace, **made)
    return run(ContrastSettings(cause=False, device="cpu", contexts=("source",)), workspace)


def test_an_entry_says_what_the_terminal_and_the_file_say(
    artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    differences, stored = modeldiff.Differences(artifact), read_contrast(artifact)
    (one,) = differences
    assert [one.entry] == stored["differences"]
    assert [other.entry for other in differences.not_verified] == stored["not_verified"]
    assert (one.rank, one.side, one.a_says, one.b_says, one.kind) == (1, "A", ["indeed"], [], "source")
    assert (one.rate_a, one.rate_b) == (one.entry["any_word"]["a"], 0.0)
    assert (one.feature, one.represented, one.cause) == (None, None, None)
    print_differences(stored, artifact.ref, numbers=False, everything=False)
    printed = " ".join(capsys.readouterr().out.split())
    where = one.where.replace("\x1b", "\u241b")
    assert differences.verdict in printed
    assert f"1. {where}" in printed
    assert repr(differences).splitlines() == [f"{artifact.ref}: {differences.verdict}", f"1. {where}"]


def test_the_frame_has_one_row_of_plain_columns_for_each(artifact: Artifact) -> None:
    differences = modeldiff.Differences(artifact)
    frame = differences.frame()
    (row,) = frame.to_dict("records")
    assert (row["where"], row["a_says"]) == (differences[0].where.replace("\x1b", "\u241b"), "indeed")
    assert row["effect"] == differences[0].effect
    assert not {"entry", "texts"} & set(frame.columns)
    assert (str(frame.dtypes["feature"]), str(frame.dtypes["effect"])) == ("Int64", "float64")
    differences.clear()
    assert list(differences.frame().columns) == list(frame.columns)


def test_what_notebooks_show_is_escaped(artifact: Artifact) -> None:
    differences = modeldiff.Differences(artifact)
    shown = differences._repr_html_()
    assert "in texts of &lt;img src=x onerror=alert(1)&gt;\u241b[31m" in shown
    assert "A says indeed" in shown
    opened = differences[0]._repr_html_()
    assert "&lt;script&gt;alert(2)&lt;/script&gt;" in opened
    for page in (shown, opened):
        tags = {tag.split()[0].strip("</>") for tag in re.findall(r"<[^>]*>", page)}
        assert tags <= {"div", "p", "ol", "li", "b", "br"}
        assert page.isprintable()


def test_without_pandas_one_line_says_what_there_is(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MachineError, match=r"`pip install pandas`; the list itself has the same as dataclasses"):
        modeldiff.Differences(artifact).frame()
