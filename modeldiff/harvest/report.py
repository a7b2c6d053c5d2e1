"""What the alignment kept and lost, counted per side and per script.

Layout (normative):
    alignment.json?                 absent when activations were imported
        align, pair_at              how it was aligned, and which pairs were kept (`modeldiff harvest --help`)
        pairs                       harvested
        pairs_by_source             of the texts that were read, by label
        shares_kept.*               by side, 0 to 1, of what was read
            tokens, characters      white space and tokens that are no part of a text do not count
            by_script.*             by script; numbers, punctuation, symbols and the rest count as scripts
                tokens, characters
        characters                  number read, by script
        documents, documents_without_pairs    number read, and of those that gave none
        chats_cut                   chats longer than a model's context, of which the rest is not read
        left_out                    records that could not be used
            records                 number
            reasons                 number by reason
            first                   the first ones by name
        lost_tails                  documents whose end no pair reaches, and tokens behind the last one
            documents, tokens_a, tokens_b
        sides.*                     by side, numbers by script: tokens; of them kept; characters kept
            tokens, kept, characters_kept
            windows                 number of pairs by their window (`PairTable`, workspace/plan.py), "32+" the longest
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeldiff.sides import SIDES
from modeldiff.texts.align import Alignment
from modeldiff.texts.sources import LeftOut
from modeldiff.texts.words import CharTable, is_space

ALIGNMENT_NAME = "alignment.json"
# Longer windows are counted together.
MAX_WINDOW = 32
_SCRIPTS: list[str] = []


class Counts:
    """Running sums over documents; `data` is JSON, so that an interrupted harvest goes on counting."""

    def __init__(self, data: Mapping[str, Any] | None = None) -> None:
        self.data: dict[str, Any] = dict(data or {}) or {
            "documents": 0,
            "documents_without_pairs": 0,
            "chats_cut": 0,
            "left_out": LeftOut().data,
            "characters": {},
            "sides": {side: {"tokens": {}, "kept": {}, "characters_kept": {}, "windows": {}} for side in SIDES},
            "lost_tails": {"documents": 0, "tokens_a": 0, "tokens_b": 0},
        }

    def add(self, text: str, alignment: Alignment, matches: int) -> None:
        """Count one document, of whose alignment the first `matches` are in pieces."""
        data = self.data
        kept = alignment.kept & (np.arange(len(alignment.kept)) < matches)
        data["documents"] += 1
        data["documents_without_pairs"] += int(not kept.any())
        scripts = _scripts(text)
        visible = ~is_space(text)
        _count(data["characters"], scripts[visible])
        lost_any = False
        for side in SIDES:
            content, counts = alignment.content[side], data["sides"][side]
            chosen = alignment.ordinal[side][kept]
            _count(counts["tokens"], scripts[content.end - 1])
            _count(counts["kept"], scripts[content.end[chosen] - 1])
            covered = np.zeros(len(text) + 1, np.int64)
            np.add.at(covered, content.start[chosen], 1)
            np.add.at(covered, content.end[chosen], -1)
            _count(counts["characters_kept"], scripts[(np.cumsum(covered)[:-1] > 0) & visible])
            lengths, numbers = np.unique(np.minimum(alignment.window[side][kept], MAX_WINDOW), return_counts=True)
            for length, number in zip(lengths.tolist(), numbers.tolist(), strict=True):
                _more(counts["windows"], str(length) if length < MAX_WINDOW else f"{MAX_WINDOW}+", number)
            lost = len(content.token) - 1 - (int(alignment.ordinal[side][matches - 1]) if matches else -1)
            data["lost_tails"][f"tokens_{side}"] += lost
            lost_any |= lost > 0
        data["lost_tails"]["documents"] += int(lost_any)

    def merge(self, data: Mapping[str, Any]) -> None:
        """Add what was counted of another document. Reasons why documents are left out are not among it."""
        _merge(self.data, data)

    def shares(self) -> dict[str, Any]:
        """Share of tokens and of characters kept, by side: over all and by script."""
        characters = self.data["characters"]
        found = {}
        for side in SIDES:
            counts = self.data["sides"][side]
            found[side] = {
                "tokens": _share(sum(counts["kept"].values()), sum(counts["tokens"].values())),
                "characters": _share(sum(counts["characters_kept"].values()), sum(characters.values())),
                "by_script": {
                    script: {
                        "tokens": _share(counts["kept"].get(script, 0), counts["tokens"].get(script, 0)),
                        "characters": _share(counts["characters_kept"].get(script, 0), number),
                    }
                    for script, number in sorted(characters.items(), key=lambda item: (-item[1], item[0]))
                },
            }
        return found


def alignment_report(
    align: str, pair_at: str, pairs: int, pairs_by_source: dict[str, int], counts: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "align": align,
        "pair_at": pair_at,
        "pairs": pairs,
        "pairs_by_source": _sorted(pairs_by_source),
        "shares_kept": Counts(counts).shares(),
        **_sorted(counts),
    }


def _sorted(value: Any) -> Any:
    """The same data with sorted keys, so that the file does not depend on which character came first."""
    return {key: _sorted(value[key]) for key in sorted(value)} if isinstance(value, Mapping) else value


def _count(counts: dict[str, int], scripts: NDArray[np.int16]) -> None:
    for number, count in enumerate(np.bincount(scripts).tolist()):
        if count:
            _more(counts, _SCRIPTS[number], count)


def _more(counts: dict[str, int], key: str, number: int) -> None:
    counts[key] = counts.get(key, 0) + number


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        elif isinstance(value, int):
            _more(into, key, value)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _script(char: str) -> int:
    """Index into _SCRIPTS of a character's script: letters and marks by the first word of their Unicode name."""
    category = unicodedata.category(char)[0]
    if category in "LM":
        name = unicodedata.name(char, "OTHER").split()[0].split("-")[0].capitalize()
        name = "CJK" if name == "Cjk" else name
    else:
        name = {"N": "number", "P": "punctuation", "S": "symbol"}.get(category, "other")
    if name not in _SCRIPTS:
        _SCRIPTS.append(name)
    return _SCRIPTS.index(name)


_scripts = CharTable(_script)
