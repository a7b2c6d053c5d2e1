"""The records of single generations, the figures of each strength, and how far a model stays coherent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

FEATURE, RANDOM = "feature", "random"
"""What pushed. Unsteered generations (strength 0) count as pushed by the feature."""
COHERENT_RATIO = 2.0
"""A strength is coherent if the perplexity of what is written stays below this times that of the unsteered texts..."""
COHERENT_REPETITION = 0.2
"""...and the share of repeated 4-grams above theirs by no more than this: loops have a low perplexity."""


def record(
    model: str, direction: str, strength: float, prompt: str, measured: dict[str, Any], plain: dict[str, Any]
) -> dict[str, Any]:
    """A line of generations.jsonl.

    Args:
        direction: feature, or random and a number from 1.
        measured: text, tokens, nats (mean per token, None: not finite), repeated, kl_first, kl, kl_tokens.
        plain: the same of the unsteered generation from that prompt.
    """
    repeated, before = measured["repeated"], plain["repeated"]
    return {
        "model": model,
        "direction": direction,
        "strength": strength,
        "prompt": prompt,
        "text": measured["text"],
        "tokens": measured["tokens"],
        "nats_per_token": measured["nats"],
        "perplexity_ratio": ratio(measured["nats"], plain["nats"]),
        "repeated": repeated,
        "repeated_change": None if repeated is None or before is None else repeated - before,
        "kl_first": measured["kl_first"],
        "kl": measured["kl"],
        "kl_tokens": measured["kl_tokens"],
    }


def dose_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each model, kind of direction (random ones together) and strength, in the order of the records.

    `coherent` says whether what is written under the push stays close enough to the unsteered texts.
    """
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for one in records:
        groups.setdefault((one["model"], one["direction"].split()[0], one["strength"]), []).append(one)
    rows = [
        {"model": model, "direction": kind, "strength": strength, **pooled(group)}
        for (model, kind, strength), group in groups.items()
    ]
    plain = {row["model"]: row for row in rows if row["strength"] == 0}
    for row in rows:
        unsteered = plain[row["model"]]
        row["perplexity_ratio"] = ratio(row["nats_per_token"], unsteered["nats_per_token"])
        row["coherent"] = _is_coherent(row, unsteered)
    return rows


def pooled(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures over some generations: nats over all their tokens together, shares as means over the texts.

    What is missing (not finite; a text too short to repeat itself) is left out; None where nothing is left.
    """
    repeated = [one["repeated"] for one in records if one["repeated"] is not None]
    return {
        "generations": len(records),
        "tokens": sum(one["tokens"] for one in records),
        "nats_per_token": _weighted((one["nats_per_token"], one["tokens"]) for one in records),
        "repeated": fmean(repeated) if repeated else None,
        "repeated_generations": len(repeated),
        "kl_first": _weighted((one["kl_first"], 1) for one in records),
        "kl": _weighted((one["kl"], one["kl_tokens"]) for one in records),
        "kl_tokens": sum(one["kl_tokens"] for one in records if one["kl"] is not None),
    }


def ratio(nats: float | None, plain: float | None) -> float | None:
    """Of two perplexities, given as nats per token."""
    # Where a float ends; so far from the unsteered text the number says nothing.
    return None if nats is None or plain is None else math.exp(min(nats - plain, 700.0))


def coherent_range(rows: Sequence[dict[str, Any]], model: str) -> dict[str, float]:
    """How far from 0 the feature's strengths stay coherent on either side, without a gap: `from` and `to`.

    `least` and `most` are the strengths that were tried.
    """
    mine = {row["strength"]: row for row in rows if row["model"] == model and row["direction"] == FEATURE}
    ends = {"from": 0.0, "to": 0.0}
    for end, sign in (("from", -1), ("to", 1)):
        for strength in sorted((s for s in mine if s * sign > 0), key=abs):
            if not mine[strength]["coherent"]:
                break
            ends[end] = strength
    return {**ends, "least": min(mine), "most": max(mine)}


def _is_coherent(row: dict[str, Any], plain: dict[str, Any]) -> bool:
    repeated, perplexity = row["repeated"], row["perplexity_ratio"]
    loops = repeated is not None and repeated > (plain["repeated"] or 0.0) + COHERENT_REPETITION
    return perplexity is not None and perplexity < COHERENT_RATIO and not loops


def _weighted(values: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in values if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
