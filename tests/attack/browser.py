"""Hostile text in the page, opened in a real browser (Chromium): nothing of it runs, and nothing is fetched."""

from __future__ import annotations

import html
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from modeldiff.catalogue.contrast import read_contrast
from modeldiff.report.content import content
from modeldiff.report.page import page
from modeldiff.report.settings import ReportSettings
from modeldiff.report.sources import Sources
from modeldiff.sides import SIDES
from modeldiff.workspace import Workspace
from tests.attack.child import Outcome
from tests.attack.terminal import build_hostile
from tests.attack.world import World
from tests.report.made_entry import FEATURE, entry

_SECONDS = 60
# Each would set the page's title, or ask another machine for something.
PAYLOADS = {
    "a script": "<script>document.title='owned'</script>",
    "the end of a script": "</script><script>document.title='owned'</script>",
    "a comment": "<!--<script>document.title='owned'//-->",
    "an attribute": "\"' onmouseover=document.title='owned' onfocus=document.title='owned' autofocus x=\"",
    "a picture": "<img src=x onerror=\"document.title='owned'\">",
    "a drawing": "<svg onload=\"document.title='owned'\"><title>owned</title></svg>",
    "an address": '<a href="javascript:document.title=\'owned\'">x</a><iframe src="javascript:alert(1)"></iframe>',
    "a style": "</style><style>body{background:url(http://127.0.0.1:9/owned)}</style>",
    "a template": "{{ ''.__class__ }}{% raw %}${document.title='owned'}`",
    "an element": "<base href=http://127.0.0.1:9/><meta http-equiv=refresh content=0;url=http://127.0.0.1:9/>",
}


def attack(world: World, folder: Path, _count: int, _seed: int) -> Iterator[tuple[Outcome, str | None]]:
    """A page of hostile words, texts, labels and names for each payload."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise RuntimeError("a browser is needed: Debian's package `chromium`")
    for name, payload in PAYLOADS.items():
        made = folder / "browser"
        shutil.rmtree(made, ignore_errors=True)
        workspace = Workspace(build_hostile(world, made, payload))
        sources = Sources.of(workspace, workspace.find("contrast", None))
        hostile = {"differences": [entry(payload)], "found": 1, "models": dict.fromkeys(SIDES, payload)}
        found = read_contrast(sources.contrast) | hostile
        with patch("modeldiff.report.content.read_contrast", lambda _, found=found: found):
            file = made / "page.html"
            file.write_bytes(page(content(sources, ReportSettings())))
        began = time.monotonic()
        seen = opened(browser, file, f"#feature-{FEATURE}") + opened(browser, file, "#difference-1")
        yield Outcome((str(file),), 0, seen, "", time.monotonic() - began, name), fault(seen, payload)


def opened(browser: str, file: Path, place: str) -> str:
    """What the browser made of a page, after its scripts have run."""
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        command = [browser, *options, "--virtual-time-budget=4000", "--dump-dom", f"file://{file}{place}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout


def fault(seen: str, payload: str) -> str | None:
    """What of the payload acted, or that the page is not whole."""
    if "<title>owned" in seen or seen.count("<title>") < 2:
        return "its script ran"
    if html.escape(payload, quote=False) not in seen:
        return "the text is not shown as it is"
    if 'id="loading" hidden' not in seen or 'aria-expanded="true"' not in seen:
        return "the page's own script did not run"
    return None
