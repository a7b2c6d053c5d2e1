"""Settings of `modeldiff report`. Imports nothing heavy."""

from __future__ import annotations

from modeldiff.settings import Settings, setting, settings


@settings
class ReportSettings(Settings):
    """One list of differences, and what lies beside it in the workspace."""

    contrast: str | None = setting(default=None, result=False)
    """The list of differences: a version, `contrast:2`, or a name. Default: the latest."""
    evidence: int = setting(default=500, least=0)
    """Features whose examples are in the page, the strongest evidence first; of the others, it has the numbers."""
    examples: int = setting(default=4, least=1)
    """Examples of each of them. Features of differences have twice as many."""
