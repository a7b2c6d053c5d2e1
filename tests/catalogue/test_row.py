"""Features as a pandas frame and in notebooks, whatever their texts hold."""

from __future__ import annotations

import dataclasses
import re
import sys

import pytest

from modeldiff.catalogue.example import Example, Piece
from modeldiff.catalogue.row import FeatureRow, FeatureRows, Twin
from modeldiff.catalogue.words import WordShare
from modeldiff.errors import MachineError

EVIL = "<b onclick=alert(1)>\x1b"
SHOWN = "<b onclick=alert(1)>\u241b"
ROW = FeatureRow(
    id=3, partition="A", relative_norm=1.0, density=0.25, firing_count=100, mean_activation=0.5, max_activation=2.0,
    sources={EVIL: 0.75, "web": 0.25}, twins=[Twin(7, "B", 0.5, False)], r2_a=0.5, r2_b=0.1, r2_own=0.5, r2_other=0.1,
    r2_null=0.0, gap=0.4, evidence=0.3, verdict="exclusive", tokens_differ=0.2,
    words=[WordShare(EVIL, 0.5), WordShare("oak", 0.5)],
    examples=[
        Example(
            9, 2.0, source=EVIL, document=1, before="under the ", word=EVIL, after=" & on",
            pieces=[Piece("under", 0.0), Piece(" the ", 1.0), Piece(EVIL, 2.0), Piece(" & on", 0.0)], centre=2,
        )
    ],
)  # fmt: skip
BARE = dataclasses.replace(
    ROW, id=4, twins=[], sources={}, words=[], examples=[Example(9, 2.0)], verdict=None, tokens_differ=None,
    **dict.fromkeys(("r2_a", "r2_b", "r2_own", "r2_other", "r2_null", "gap", "evidence")),
)  # fmt: skip


def test_a_frame_has_plain_columns_and_the_fields_numbers() -> None:
    frame = FeatureRows([ROW, BARE]).frame()
    first, bare = frame.to_dict("records")
    same = ("id", "partition", "density", "max_activation", "r2_own", "evidence", "verdict", "tokens_differ")
    assert [first[name] for name in same] == [getattr(ROW, name) for name in same]
    assert (first["twin"], first["twin_correlation"], first["source"]) == (7, 0.5, SHOWN)
    assert (first["words"], first["example"]) == (f"{SHOWN}, oak", f"under the [{SHOWN}] & on")
    assert frame.isna().loc[1, ["twin", "twin_correlation", "source", "r2_own", "verdict", "example"]].all()
    assert bare["words"] == ""
    dtypes = FeatureRows([BARE]).frame().dtypes.astype(str)
    assert (dtypes["twin"], dtypes["evidence"], dtypes["id"]) == ("Int64", "float64", "int64")
    assert list(FeatureRows().frame().columns) == list(frame.columns)


def test_what_notebooks_show_is_escaped() -> None:
    shown = "&lt;b onclick=alert(1)&gt;\u241b"
    listed, opened = FeatureRows([ROW, BARE])._repr_html_(), ROW._repr_html_()
    assert f'<td style="text-align: left">…under the [{shown}] &amp; on</td>' in listed
    assert f"under<b> the </b><u><b>{shown}</b></u> &amp; on" in opened
    for page in (listed, opened, BARE._repr_html_()):
        tags = {tag.split()[0].strip("</>") for tag in re.findall(r"<[^>]*>", page)}
        assert tags <= {"div", "table", "tr", "th", "td", "p", "b", "u"}
        assert page.isprintable()


def test_without_pandas_one_line_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MachineError, match=r"`pip install pandas`; FeatureTable.rows\(\) has the same as dataclasses"):
        FeatureRows([ROW]).frame()
