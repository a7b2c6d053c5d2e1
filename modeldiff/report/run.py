"""The report stage: a list of differences and all that is known about it in, a `report` artifact out.

Layout (normative):
    report.html    one page for a browser: style, script and data inside, nothing from elsewhere
"""

from __future__ import annotations

from typing import Any

from modeldiff.report.content import content
from modeldiff.report.page import page
from modeldiff.report.settings import ReportSettings
from modeldiff.report.sources import Sources
from modeldiff.workspace import Artifact, Order, Work, Workspace
from modeldiff.workspace.ranks import produce_by_first

SCHEMA = 1
NAME = "report.html"


def run(settings: ReportSettings, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
    """Write the page. The same artifacts give the same bytes. Raises InputError: there is no list of differences;
    DamagedError: a file of what it speaks of is damaged."""
    sources = Sources.of(workspace, workspace.find("contrast", settings.contrast))

    def build(work: Work) -> dict[str, Any]:
        made = page(content(sources, settings))
        work.write_bytes(NAME, made)
        return {"bytes": len(made), "differences": sources.contrast.metrics["found"]}

    inputs = {one.ref: one.as_input() for one in sources.artifacts}
    return produce_by_first(workspace, Order("report", settings, inputs, SCHEMA), build, name=name, force=force)
