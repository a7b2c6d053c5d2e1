"""Keeping transformers' warnings off the terminal where this package checks for itself what they would say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import transformers

from modeldiff.console import muted


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """No warnings of transformers inside, and no progress bars unless `bars` (nor where the console is muted)."""
    log = transformers.logging
    verbosity, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if not bars or muted():
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if had_bars:
            log.enable_progress_bar()
