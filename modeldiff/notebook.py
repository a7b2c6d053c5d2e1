"""Lists in notebooks: as pandas frames, and as small HTML without colours of its own, so that any theme can show it."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modeldiff.console import visible
from modeldiff.errors import MachineError

if TYPE_CHECKING:
    import pandas

# Without this, pandas would take a column in which every value is missing for objects, and numbers of features, some
# of them missing, for floats.
_DTYPES = {"float | None": "float64", "int | None": "Int64"}
_LEFT = 'style="text-align: left"'


def frame(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Any], instead: str) -> pandas.DataFrame:
    """columns: their annotations, by name; instead: what gives the same without pandas. Texts are made harmless, for
    pandas prints them as they are. Raises MachineError: pandas is not installed."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise MachineError(f"a DataFrame needs `pip install pandas`; {instead} has the same as dataclasses") from None
    cells = [{name: visible(one) if isinstance(one, str) else one for name, one in row.items()} for row in rows]
    made = pandas.DataFrame.from_records(cells, columns=list(columns))
    return made.astype({name: _DTYPES[kind] for name, kind in columns.items() if kind in _DTYPES})


def escaped(text: str) -> str:
    """Text from data, harmless in HTML."""
    return html.escape(visible(text))


def shown(*parts: str) -> str:
    """What `_repr_html_` gives: HTML in which notebooks do not take what stands between two $ for a formula."""
    return f'<div class="tex2jax_ignore mathjax_ignore">{"".join(parts)}</div>'


def html_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of the same columns. Every text is escaped here."""
    lines = [_line("th", rows[0]), *(_line("td", row.values()) for row in rows)] if rows else []
    return f"<table>{''.join(lines)}</table>"


def _line(tag: str, texts: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag} {_LEFT}>{escaped(text)}</{tag}>' for text in texts)}</tr>"
