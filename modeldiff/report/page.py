"""The page as HTML. It is safe to open whatever the models and texts say: every text is made visible (console.py) and
escaped, the page's policy allows no script or style but its own, known by their digests, and nothing from elsewhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from modeldiff import __version__
from modeldiff.console import visible
from modeldiff.report import charts

_LEVELS = 4


def page(content: dict[str, Any]) -> bytes:
    """The page, from what content.py says. The same content gives the same bytes."""
    style, script, template = (
        files(__package__).joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js", "html")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_harmless, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "level": _level}
    made = environment.from_string(template).render(
        **content,
        charts=charts,
        policy="default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'",
        style=Markup(style),
        script=Markup(script),
        data=_packed(content["browse"]) if content["browse"] else "",
        version=__version__,
    )
    return made.encode()


def _harmless(value: Any) -> Any:
    """Every text that the template prints."""
    return visible(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _packed(data: Any) -> str:
    """JSON, compressed, in letters that mean nothing in HTML."""
    text = json.dumps(_visible(data), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _visible(data: Any) -> Any:
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, dict):
        return {key: _visible(value) for key, value in data.items()}
    return [_visible(value) for value in data] if isinstance(data, list | tuple) else data


def _percent(share: float, digits: int = 0) -> str:
    return f"{share:.{digits}%}"


def _level(activation: float, largest: float) -> int:
    """How strongly a part is marked: 0 (it does not fire) to 4."""
    return 0 if activation <= 0 else min(_LEVELS, 1 + int(_LEVELS * activation / max(largest, activation)))
