"""How results are printed: tables that fit the terminal, and numbers; text from data is never taken for markup."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from modeldiff.console import stdout, visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Columns = list[tuple[str, Literal["left", "right"]]]
Styled = str | Sequence[str | tuple[str, str]]
"""Text, or pieces of it, some of them with a style of rich's."""
NONE = "-"
"""What stands where there is no number."""
# Signs that begin a formula, in some spreadsheets the wide ones too.
_FORMULA = tuple("=+-@＝＋－＠")
_COLUMNS, _FEWEST_COLUMNS = 80, 40


def print_json(data: Any) -> None:
    """To stdout. What is no printable character is escaped as JSON does it, and all but ASCII where stdout has no
    UTF-8."""
    in_unicode = sys.stdout.encoding.lower().startswith("utf")
    text = json.dumps(data, indent=2, ensure_ascii=not in_unicode, allow_nan=False)
    with stdout() as out:
        out.write("".join(f"{line if line.isprintable() else _json_escaped(line)}\n" for line in text.split("\n")))


def print_csv(rows: Iterable[Mapping[str, Any]]) -> None:
    """To stdout, a line for each row below one of names, those of the first row. What a spreadsheet would take for a
    formula gets a quotation mark before it."""
    with stdout() as out:
        writer: Any = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(out, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    """A number stays one, and nothing an empty cell."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _json_escaped(line: str) -> str:
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in line)


def _console() -> Console:
    """As wide as the terminal; 80 columns where stdout is none."""
    from rich.console import Console

    console = Console()
    console.width = max(_FEWEST_COLUMNS, console.width) if console.is_terminal else _COLUMNS
    return console


def columns() -> int:
    """How many there are to print a table in."""
    return _console().width


def _print(what: Text | Table) -> None:
    console = _console()
    with stdout():
        console.print(what)


def _text(content: Styled, style: str = "") -> Text:
    """Content for rich. Nothing in it is taken for markup (in a string `crosscoder:100:` would be an emoji), acts on
    the terminal, or makes a cell wider than it is counted; it may have several lines."""
    from rich.text import Text

    pieces = [content] if isinstance(content, str) else content
    styled = (piece if isinstance(piece, tuple) else (piece, "") for piece in pieces)
    return Text.assemble(*((visible(text, lines=True), own) for text, own in styled), style=style)


def echo_styled(content: Styled, style: str = "") -> None:
    """Text to stdout, folded at the width of the terminal."""
    _print(_text(content, style))


def table(
    title: str,
    columns: Iterable[tuple[str, Literal["left", "right"] | dict[str, Any]]],
    rows: Iterable[Iterable[Styled]],
    **options: Any,
) -> None:
    """Print a table that fits the terminal.

    columns: header and justification, or other options of rich's columns; options: of rich's table, by default one
    without lines.
    """
    from rich.table import Table

    plain = {"box": None, "pad_edge": False, "header_style": "bold"}
    made = Table(title=_text(title, "table.title"), title_justify="left", **(options or plain))
    for name, how in columns:
        made.add_column(_text(name), **(how if isinstance(how, dict) else {"justify": how, "overflow": "fold"}))
    for row in rows:
        made.add_row(*map(_text, row))
    _print(made)


def flat(data: dict[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested metrics as rows of a table: name ("held_out fve a") and value."""
    rows: list[list[str]] = []
    for key, value in data.items():
        rows += flat(value, f"{prefix}{key} ") if isinstance(value, dict) else [[prefix + key, plain(value)]]
    return rows


def plain(value: Any) -> str:
    """A value for a table cell: four digits of a fraction, thousands separated."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(plain, value)) if isinstance(value, list) else str(value)


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def fixed(value: float | None, digits: int = 2) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 0) -> str:
    return NONE if value is None else f"{value:.{digits}%}"


def number(value: float | None) -> str:
    """At most seven characters, whatever the size."""
    if value is None:
        return NONE
    if not 1e-3 <= abs(value) < 1e5:
        return "0" if value == 0 else f"{value:.0e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"
