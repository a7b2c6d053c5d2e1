"""What the audits of a training run did, in words and in numbers, from the lines of its log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_SIDES = ("A", "B")
_WORDS = {"moved": "moved to shared", "gone": "gone", "promoted": "taken from shared", "planted": "planted"}
_TOTALS = ("moved", "promoted", "planted")
_LAST = ("kept", "unjudged")


def audit_note(line: dict[str, Any]) -> str:
    """A line of training.jsonl with an audit, as "audit at step 475: A 5 kept, 3 moved to shared; B 4 kept"."""
    parts = []
    for side in _SIDES:
        report = line["audit"][side]
        done = [f", {report[what]} {words}" for what, words in _WORDS.items() if report[what]]
        parts.append(f"{side} {report['kept']} kept{''.join(done)}")
    return f"audit at step {line['step']}: {'; '.join(parts)}"


def audit_metrics(lines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """From all lines of training.jsonl: by exclusive partition, features moved to the shared part, promoted from it and
    planted in the whole run, and how many the last audit kept, and kept without a judgement. None without audits."""
    reports = [line["audit"] for line in lines if line["audit"]]
    if not reports:
        return None
    metrics: dict[str, Any] = {"audits": len(reports)}
    for side in _SIDES:
        totals = {what: sum(report[side][what] for report in reports) for what in _TOTALS}
        metrics[side] = totals | {what: reports[-1][side][what] for what in _LAST}
    return metrics
