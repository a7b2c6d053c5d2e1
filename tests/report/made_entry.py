"""A difference as contrast.json holds it."""

from __future__ import annotations

from typing import Any

FEATURE = 3


def entry(evil: str) -> dict[str, Any]:
    """A verified difference, as contrast.json holds it, whose words and texts are hostile."""
    word = {"word": evil, "a": 0.1, "b": 0.6, "a_elsewhere": 0.0, "b_elsewhere": 0.125}
    rates = {"unchanged": 0.6, "removed_together": 0.05, "removed_together_random": 0.55}
    share = {"value": 0.9, "low": 0.5, "high": 1.2}
    return {
        "rank": 1, "context": {"kind": "word", "name": evil}, "also": [], "feature": FEATURE, "verified": True,
        "side": "B", "effect": 0.4, "low": 0.2, "high": 0.6, "p": 0.001, "places": 20, "documents": 9,
        "any_word": {"a": 0.1, "b": 0.6, "a_elsewhere": 0.0, "b_elsewhere": 0.125}, "a_says": [], "b_says": [word],
        "sources": {evil: 1.0}, "words_there": [], "texts": [{"before": evil, "a": evil, "b": evil}],
        "represented": {
            "partition": "shared", "r2_a": 0.5, "r2_b": 0.6, "owner": "B", "verdict": "predictable", "twin": None,
            "where": "in both models, used differently",
        },
        "cause": {
            "side": "b", "places": 12, "rates": {"a": {"unchanged": 0.1}, "b": rates},
            "together": {
                "features": [FEATURE, 4], "verdict": "cause", "settled": True, "closed": share, "closed_random": share,
            },
        },
    }  # fmt: skip
