"""`modeldiff report`: one page that a colleague opens in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import stage_command
from modeldiff.console import echo
from modeldiff.report.settings import ReportSettings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


def page(artifact: Artifact, out: Path | None = None) -> Path:
    """The file to open; `out`: where it is written, too."""
    made = artifact.file("report.html")
    if out is None:
        return made.absolute()
    from modeldiff.workspace.files import write_bytes

    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, made.read_bytes())
    return out.absolute()


def show(artifact: Artifact, *, out: Path | None = None) -> None:
    echo(f"page: {page(artifact, out)} ({artifact.metrics['bytes'] / 1e6:.1f} MB, for a browser; needs no network)")


def _data(artifact: Artifact, *, out: Path | None) -> dict[str, Any]:
    return {"page": str(page(artifact, out))}


command = stage_command(
    "report",
    ReportSettings,
    "modeldiff.report.run",
    show=show,
    data=_data,
    options=[
        click.Option(["--out"], type=click.Path(path_type=Path), metavar="FILE", help="Write the page there, too."),
    ],
    help="Everything that is known about a list of differences, in one HTML file.\n\n"
    "The answer first; each difference opens to its texts, the places where its feature fires, the cause, steering and "
    "controls; then all features, how it was made, what chance gives, and what is missing. The file needs no network, "
    "loads nothing, and can be sent to a colleague.",
    lines=["modeldiff report", "modeldiff report --contrast 2 --out diff.html"],
)
