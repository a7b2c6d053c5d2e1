"""What `modeldiff features` says about evidence that other commands made: which is there, which is missing, and, for
one feature, what it says."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from modeldiff.console import say
from modeldiff.errors import ModeldiffError

if TYPE_CHECKING:
    from modeldiff.features.missing import Evidence
    from modeldiff.features.table import FeatureRow
    from modeldiff.workspace import Artifact, Workspace

_MOST_LINES = 5


def print_evidence(found: Sequence[Evidence]) -> None:
    """Which evidence is there, which is missing, and the commands that make that, in at most five lines."""
    there = [one.kind if one.kind == "predictability" else one.ref or "" for one in found if one.ref]
    missing = [one.kind for one in found if not one.ref]
    lines = wrapped(f"evidence: {', '.join(there) or 'none'}")
    if missing:
        lines += wrapped(f"missing: {', '.join(missing)}; to have it:")
        commands = [one.command for one in found if not one.ref]
        room = _MOST_LINES - len(lines)
        lines += [f"  {command}" for command in (commands if len(commands) <= room else commands[: room - 1])]
        if len(commands) > room:
            lines.append(f"  and {len(commands) - room + 1} more commands (--json has all)")
    for line in lines:
        click.echo(line)


def wrapped(line: str) -> list[str]:
    """In 80 columns, what follows the first line indented."""
    return textwrap.wrap(line, 80, subsequent_indent="  ", break_on_hyphens=False)


def known_about(workspace: Workspace, features: Artifact, row: FeatureRow) -> dict[str, dict[str, Any] | None]:
    """What impact and score say about one feature, each with its `ref`; None: there is none that does."""
    readers: dict[str, Callable[[Artifact, FeatureRow], dict[str, Any]]] = {
        "impact": _impact,
        "score": _score,
    }
    return {kind: _newest(workspace, features, row, kind, read) for kind, read in readers.items()}


def _newest(
    workspace: Workspace,
    features: Artifact,
    row: FeatureRow,
    kind: str,
    read: Callable[[Artifact, FeatureRow], dict[str, Any]],
) -> dict[str, Any] | None:
    from modeldiff.features.missing import made_about

    for one in made_about(workspace, features, kind):
        try:
            found = read(one, row)
        except ModeldiffError as error:  # what is shown beside it is sound
            say(str(error))
            continue
        if found:
            return {"ref": one.ref, **found}
    return None


def _sides(row: FeatureRow) -> tuple[str, ...]:
    """The models that have it."""
    return ("A", "B") if row.partition == "shared" else (row.partition,)


def _impact(artifact: Artifact, row: FeatureRow) -> dict[str, Any]:
    from modeldiff.features.impact.result import read_impact

    impact = read_impact(artifact)
    if impact.arrays["windows"][row.id] == 0:
        return {}
    surface = _number(impact.surface()[row.id])
    found: dict[str, Any] = {"surface": surface}
    for side in _sides(row):
        found[side] = {
            "own": _number(impact.own(side)[row.id]),
            "other": _number(impact.other(side)[row.id]),
            "asymmetry": _number(impact.asymmetry(side)[row.id]),
            "asymmetry_of_random": impact.info["controls"][side.lower()]["asymmetry"]["50%"],
        }
    return found


def _score(artifact: Artifact, row: FeatureRow) -> dict[str, Any]:
    from modeldiff.features.score.result import read_score, read_scores

    found = read_scores(artifact).get(row.id, {})
    random = {one["source"]: one["median"] for one in read_score(artifact)["groups"] if one["partition"] == "random"}
    return {
        source: {
            "direction": f"{source} -> {'B' if source == 'A' else 'A'}",
            "score": one.score,
            "missing": one.missing,
            "of_random": random.get(source),
        }
        for source, one in found.items()
    }


def print_known(known: dict[str, dict[str, Any] | None]) -> None:
    """A line or two for each kind that there is."""
    if impact := known["impact"]:
        for side in filter(impact.__contains__, ("A", "B")):
            one, other = impact[side], "B" if side == "A" else "A"
            click.echo(
                f"impact {side}      nats per window if removed: {side} {_nats(one['own'])}, {other} "
                f"{_nats(one['other'])}; asymmetry {_two(one['asymmetry'])}\n"
                f"              (random directions {_two(one['asymmetry_of_random'])}); surface R² "
                f"{_two(impact['surface'])} ({impact['ref']})"
            )
    if score := known["score"]:
        for side in filter(score.__contains__, ("A", "B")):
            one = score[side]
            said = f"{_two(one['score'])} of 5 (random directions {_two(one['of_random'])}; {score['ref']})"
            if one["score"] is None:
                said = f"none ({score['ref']}): {'; '.join(one['missing'])}"
            indent = " " * 14
            click.echo(textwrap.fill(f"{'score ' + one['direction']:<14}{said}", 80, subsequent_indent=indent))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
