"""The two models: A and B in words, "a" and "b" in code. What is kept by side is a dict with these two keys."""

from __future__ import annotations

SIDES = ("a", "b")
OTHER = {"a": "b", "b": "a"}
"""By side, the other one."""
EXCLUSIVE = {"a": "A", "b": "B"}
"""By side, the partition of the features that only this model has; it is called as the model is."""
