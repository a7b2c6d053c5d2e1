"""Measures of features beyond what `modeldiff features` itself measures: one folder each, entered here."""

from __future__ import annotations

import functools
import importlib

from modeldiff.features.measures.measure import About, Measure

MEASURES = ("stitch", "impact", "explain", "score", "match", "evaluate")

__all__ = ["MEASURES", "About", "Measure", "measures"]


@functools.cache
def measures() -> tuple[Measure, ...]:
    """Every measure, in the order in which they are listed."""
    return tuple(importlib.import_module(f"{__name__}.{name}").MEASURE for name in MEASURES)
