"""How much a text repeats itself: what perplexity does not show, as a loop is easy to predict."""

from __future__ import annotations

import re

N = 4
"""Length of the runs of words that are compared."""
# Chinese and Japanese are written without blanks: there every character is a unit.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")


def repeated_share(text: str) -> float | None:
    """Share (0 to 1) of the text's 4-grams that stood in it before: 1 - distinct 4-grams / 4-grams ("distinct-4").

    Over words and punctuation marks, case ignored, rather than tokens: the texts of models with different tokenizers
    compare. None: the text has less than four of them.
    """
    units = _UNIT.findall(text.casefold())
    runs = [tuple(units[i : i + N]) for i in range(len(units) - N + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else None
