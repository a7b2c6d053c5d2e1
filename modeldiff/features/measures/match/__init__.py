"""Which features of a crosscoder come back in others: other seeds, sizes, partitions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from modeldiff.console import echo
from modeldiff.errors import InputError
from modeldiff.features.measures.measure import About, Measure
from modeldiff.format import fixed, table
from modeldiff.settings import OnDevice, setting, settings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact


@settings
class MatchSettings(OnDevice):
    """Which crosscoders are compared, on which pairs, and when a feature counts as found again."""

    crosscoders: tuple[str, ...] = setting(default=(), result=False, argument=True)
    """Two or more crosscoders that read the same two models. The first is the reference: its exclusive features (all,
    where it has none) are looked for in the others."""

    activations: str | None = setting(default=None, result=False)
    """The activations to compare on. Default: those the first crosscoder was trained on."""

    pairs: int = setting(default=200_000, least=2)
    """Compare on about this many pairs, in blocks spread evenly over the activations."""

    threshold: float = setting(default=0.7, above=0, most=1)
    """A feature comes back when its best match is mutual and correlates at least this much."""

    outlier_factor: float | None = setting(default=None, least=0)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm; 0 keeps all. Default: as in
    the training of the first crosscoder."""

    def check(self) -> None:
        if len(self.crosscoders) < 2:
            raise InputError(
                f"two or more crosscoders are needed, found {len(self.crosscoders)}: "
                "`modeldiff features match crosscoder:1 crosscoder:2`"
            )


class MatchMeasure(Measure):
    settings = MatchSettings
    made_from = {"reference": "crosscoder"}  # noqa: RUF012
    rehearsed, grows = 20_000, ("match: codes",)
    summary = "Which features come back in other crosscoders."
    about = (
        "Which features of the first crosscoder come back in the others: other seeds, sizes, partitions.\n\n"
        "Features are compared by the correlation of their activations on the same pairs, beside what permuted pairs "
        "give."
    )
    examples = ("crosscoder:1 crosscoder:2 crosscoder:3", "seed-0 seed-1 --exclusive A --top 10 --json")

    def options(self) -> list[click.Option]:
        return [
            click.Option(["--exclusive"], type=click.Choice(["A", "B"]), help="List this part."),
            click.Option(["--top"], type=int, default=20, show_default=True, help="Features listed of each part."),
        ]

    def data(self, artifact: Artifact, **shown: Any) -> dict[str, Any]:
        info, listed = _listed(artifact, **shown)
        return {**info, "features": listed}

    def show(self, artifact: Artifact, **shown: Any) -> None:
        info, listed = _listed(artifact, **shown)
        echo(f"{artifact.ref}: the features of {info['reference']} in others, on {info['pairs']:,} pairs", "")
        where = ("A", "shared", "B", "one-sided", "none")
        table(
            "how many are back where",
            [("of", "left"), ("in", "left"), *((name, "right") for name in where), ("median r", "right")],
            [cells for partition, one in info["summary"].items() for cells in _counted(partition, one, where)],
        )
        echo()
        table(
            "alive features, the most stable first",
            [
                ("id", "right"), ("part", "left"), ("fires", "right"), ("in", "left"), ("best match", "left"),
                ("r", "right"), ("cosine", "right"), ("back", "left"),
            ],
            [cells for row in listed for cells in _matches(row, info["threshold"])],
        )  # fmt: skip
        echo(
            "",
            f"back: the best match correlates (r) {info['threshold']:g} or more, and is mutual. one-sided: it",
            "prefers another feature. (In brackets): with the pairs permuted, by chance.",
            "cosine: of the decoder rows, of a shared feature in A and in B.",
        )

    def arguments(self, about: About) -> str:
        return f"{about.crosscoder} {about.other_crosscoder}"


def _listed(artifact: Artifact, *, exclusive: str | None, top: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from modeldiff.features.measures.match.result import read_match, rows

    info, arrays = read_match(artifact)
    partitions = [exclusive] if exclusive else list(info["summary"])
    return info, [row for partition in partitions for row in rows(info, arrays, partition, top)]


def _counted(partition: str, summary: dict[str, Any], where: tuple[str, ...]) -> list[list[str]]:
    """The cells of one partition: a line for each other crosscoder, and one for all together."""
    lines = [
        [
            one["crosscoder"],
            *(str(one["came_back"][name]) for name in where),
            f"{fixed(one['correlation'])} ({fixed(one['chance'])})",
        ]
        for one in summary["against"]
    ]
    if len(lines) > 1:
        lines.append(["alike in all", *(str(summary["in_all"][name]) for name in where), ""])
    first = f"{summary['alive']} alive of {summary['features']} {partition}"
    return [["" if index else first, *line] for index, line in enumerate(lines)]


def _matches(row: dict[str, Any], threshold: float) -> list[list[str]]:
    """The cells of one feature: a line for each other crosscoder."""
    lines = []
    for index, one in enumerate(row["found"]):
        first = ["", "", ""] if index else [str(row["id"]), row["partition"], f"{row['density']:.2%}"]
        match = "none" if one["id"] is None else f"{one['partition']} {one['id']}"
        cosines = [fixed(one[name]) for name in ("cosine_a", "cosine_b") if one[name] is not None]
        back = "yes" if one["came_back"] else "one-sided" if one["correlation"] >= threshold else "no"
        r = f"{one['correlation']:.2f} ({one['chance']:.2f})"
        lines.append([*first, one["crosscoder"], match, r, " ".join(cosines), back])
    return lines


MEASURE = MatchMeasure()
