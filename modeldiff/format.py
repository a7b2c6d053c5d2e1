"""How results are printed: tables that fit the terminal, and numbers; text from data is never taken for markup."""

from __future__ import annotations

import functools
import json
import textwrap
from typing import Any, Literal

import click

Columns = list[tuple[str, Literal["left", "right"]]]
NONE = "-"
"""What stands where there is no number."""


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


@functools.cache
def console() -> Any:
    """The rich console of stdout, 80 columns wide where there is no terminal."""
    from rich.console import Console

    plain = Console()
    return plain if plain.is_terminal else Console(width=80)


def table(title: str, columns: Columns, rows: list[list[str]]) -> None:
    """Print a table that fits the terminal. Cells are plain text: nothing in them is taken for markup."""
    from rich.table import Table
    from rich.text import Text

    # A Text: in a string `crosscoder:100:` would be taken for an emoji.
    made = Table(
        title=Text(title, style="table.title"), title_justify="left", box=None, pad_edge=False, header_style="bold"
    )
    for name, justify in columns:
        made.add_column(Text(name), justify=justify, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    console().print(made)


def wrapped(line: str) -> list[str]:
    """In 80 columns, what follows the first line indented."""
    return textwrap.wrap(line, 80, subsequent_indent="  ", break_on_hyphens=False)


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
