"""Which features of a crosscoder come back in others: other seeds, sizes, partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.errors import InputError
from modeldiff.features.measures.match.settings import KIND, MatchSettings
from modeldiff.features.measures.measure import About, Measure

if TYPE_CHECKING:
    from modeldiff.features.measures.match.table import MatchTable
    from modeldiff.workspace import Artifact


class MatchMeasure(Measure):
    """See the stage."""

    name = KIND
    settings = MatchSettings
    stage = "modeldiff.features.measures.match.run"
    made_from = {"reference": "crosscoder"}  # noqa: RUF012
    summary = "Which features come back in other crosscoders."
    about = (
        "Which features of the first crosscoder come back in the others: other seeds, sizes, partitions.\n\n"
        "Features are compared by the correlation of their activations on the same pairs, beside what permuted pairs "
        "give."
    )
    examples = (
        "crosscoder:1 crosscoder:2 crosscoder:3",
        "crosscoder:1 crosscoder:2 --exclusive A --top 10",
        "seed-0 seed-1 --all-features --json",
    )

    def options(self) -> list[click.Option]:
        """Of the list."""
        return [
            click.Option(["--exclusive"], type=click.Choice(["A", "B"]), help="List the features of this model alone."),
            click.Option(["--shared"], is_flag=True, help="List the shared features; needs --all-features."),
            click.Option(["--top"], type=click.IntRange(1), default=20, show_default=True, help="Listed of each part."),
        ]

    def data(self, artifact: Artifact, **shown: Any) -> dict[str, Any]:
        """match.json, and one object per feature listed."""
        found, partitions = _listed(artifact, **shown)
        rows = [row.to_json() for partition in partitions for row in found.rows(partition, shown["top"])]
        return {**found.info, "features": rows}

    def show(self, artifact: Artifact, **shown: Any) -> None:
        """For each partition how many features came back where, then the features, the most stable first."""
        from modeldiff.features.measures.match.show import print_match

        print_match(*_listed(artifact, **shown), shown["top"])

    def arguments(self, about: About) -> str:
        """Of the command that compares with another crosscoder."""
        return f"{about.crosscoder} {about.other_crosscoder}"


def _listed(artifact: Artifact, *, exclusive: str | None, shared: bool, **_: Any) -> tuple[MatchTable, list[str]]:
    from modeldiff.features.measures.match.table import MatchTable

    found = MatchTable(artifact)
    if exclusive and shared:
        raise InputError("--exclusive and --shared name two parts: give one of them")
    if shared and not artifact.settings["all_features"]:
        raise InputError("--shared needs --all-features: by default only exclusive features are looked for")
    partition = "shared" if shared else exclusive
    return found, [partition] if partition else list(found.info["summary"])


MEASURE = MatchMeasure()
