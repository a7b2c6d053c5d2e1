"""All that is printed goes through one door, which makes visible what would act on a terminal."""

import csv
import io
import json
import re
import unicodedata
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

import modeldiff
from modeldiff.console import echo, echo_wrapped, progress, progress_as_json, say, say_error, visible, wrapped
from modeldiff.format import echo_styled, print_csv, print_json, table

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\u2066\r\x08\x00\x85\u2028\ud800[red]:smile:[/red]"
ACTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_control_characters_become_signs_and_joined_emoji_and_marks_stay() -> None:
    assert visible("a\r\nb\tc\n\x1b[31m") == "a⏎b⇥c⏎␛[31m"
    assert visible("a\r\nb\tc\n\x1b[31m", lines=True) == "a\nb⇥c\n␛[31m"
    assert visible("abc\u202etxt.exe x\ud800y") == "abc�txt.exe x�y"
    text = "👩\u200d🔬 e\u0301 東京 [red]not markup[/red]"
    assert visible(text) == text


@given(st.text(st.characters()))
def test_nothing_that_acts_remains(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(char) in ("Cc", "Cs") for char in shown)
    shown.encode()


def test_nothing_acts_whatever_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    echo(EVIL, EVIL)
    echo_wrapped(f"{EVIL} {EVIL}", 2, 4)
    echo_styled([EVIL, (EVIL, "bold")], "dim")
    table(EVIL, [(EVIL, "left"), (EVIL, {"ratio": 1})], [[EVIL, [(EVIL, "bold"), EVIL]]], show_lines=True)
    say(EVIL)
    say_error(EVIL)
    out, err = capsys.readouterr()
    assert not ACTS.search(out)
    assert not ACTS.search(err)
    assert "[red]:smile:[/red]" in out
    assert err.count("\n") == 2


def test_a_line_end_in_data_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    echo("one\nnext: rm -rf", "two")
    say("three\nmodeldiff: four")
    out, err = capsys.readouterr()
    assert out.splitlines() == ["one⏎next: rm -rf", "two"]
    assert err.splitlines() == ["three⏎modeldiff: four"]
    assert wrapped("a\nb") == ["a⏎b"]


def test_json_is_json_and_nothing_acts(capsys: pytest.CaptureFixture[str]) -> None:
    data = {EVIL: [EVIL, "東京 é \U0001f600 \U000e0001", {"a\x7f": "\xa0"}]}
    print_json(data)
    out = capsys.readouterr().out
    assert not ACTS.search(out)
    assert "東京 é 😀" in out
    assert json.loads(out) == data


def test_a_program_reads_progress_as_json_a_line_at_its_beginning_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    progress_as_json(True)
    try:
        with progress(EVIL, 4, "pairs", done=1) as bar:
            bar.advance(3)
    finally:
        progress_as_json(False)
    err = capsys.readouterr().err
    assert not ACTS.search(err)
    first, last = map(json.loads, err.splitlines())
    assert first == {
        "what": EVIL, "done": 1, "total": 4, "unit": "pairs", "rate": 0, "seconds_left": None, "note": ""
    }  # fmt: skip
    assert (last["done"], last["seconds_left"], last["rate"] > 0) == (4, 0, True)
    with progress("text", 4, "pairs"):
        pass
    assert capsys.readouterr().err == ""


def test_csv_holds_numbers_and_nothing_that_a_spreadsheet_or_a_terminal_obeys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "＝1", 'a "b", c', EVIL]
    print_csv({"number": -1.5, "nothing": None, "text": text} for text in texts)
    out = capsys.readouterr().out
    assert not ACTS.search(out)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["text"] for row in rows] == [f"'{text}" for text in texts[:6]] + [texts[6], visible(EVIL)]
    assert {(row["number"], row["nothing"]) for row in rows} == {("-1.5", "")}


# Every kind of character, and often wide ones, marks, joiners, tabs, line ends.
ANY = st.characters() | st.sampled_from("\u200d\u200b\u0301\ufe0f\t\n東😀")


@given(st.lists(st.text(ANY, max_size=60), min_size=1, max_size=3))
def test_the_borders_of_a_table_stay_whole(cells: list[str]) -> None:
    with redirect_stdout(io.StringIO()) as out:
        table("t", [(str(i), "left") for i, _ in enumerate(cells)], [cells], show_lines=True, expand=True)
    title, *rows = out.getvalue().splitlines()
    assert title.rstrip() == "t"
    assert {cell_len(row) for row in rows} == {80}
    assert all(row[0] in "┏┃┡│├└" for row in rows)


def test_nothing_else_writes_to_the_terminal() -> None:
    """console.py and format.py alone do; the edge of the command line repairs the streams."""
    package = Path(modeldiff.__file__).parent
    writes = re.compile(r"\bprint\(|click\.(secho|confirm|prompt|echo)|sys\.std(out|err)|^\s*(from|import) rich", re.M)
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if writes.search(path.read_text())}
    assert found == {"console.py", "format.py", "cli/main.py", "cli/edge.py"}
