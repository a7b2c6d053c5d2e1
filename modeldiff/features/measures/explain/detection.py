"""What a judge says about features (paper section 7): an explanation with a concern flag, and detection by it.

The judge sees the top examples of a feature with the active words marked, and explains. Shown the explanation alone, it
then tells for held-out texts whether the feature is active in them: on half of them it is.

Legend: N pairs of the sample, W windows, E excerpts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from modeldiff.console import say
from modeldiff.features.measures.explain.result import Explained, HeldOut
from modeldiff.features.measures.explain.sample import Sample
from modeldiff.judge.client import Judge, Judged
from modeldiff.judge.questions import Explanation, ask_detection, ask_explanation, read_explanation, read_flags

LENGTH = 32
"""Pairs of an excerpt at most; a longer text is cut into equal parts."""
MIN_TEXTS = 3
"""With fewer texts on which it is active, a feature is not tried."""
Ints = NDArray[np.int64]
Pieces = list[tuple[str, float]]
"""An example: pieces of text, with the activation at each."""


class Excerpts:
    """Parts of the sample's texts to detect features on, in its order.

    Attributes:
        start_E, stop_E: their pairs in the sample.
        document_E: running number of the document in the harvest.
    """

    def __init__(self, sample: Sample) -> None:
        n = len(sample.window_N)
        starts: list[int] = []
        for start, stop in itertools.pairwise([*np.flatnonzero(np.diff(sample.window_N, prepend=-1)).tolist(), n]):
            parts = math.ceil((stop - start) / LENGTH)
            starts += [start + (stop - start) * part // parts for part in range(parts)]
        self._sample = sample
        self.start_E, self.stop_E = np.array(starts), np.array([*starts[1:], n])
        self._window_E = sample.window_N[self.start_E]
        self.document_E = sample.document_W[self._window_E]
        self._excerpt_N = np.repeat(np.arange(len(starts)), self.stop_E - self.start_E)
        # Where all pairs are outliers nothing is known, and a text of the other half may stand in this one too.
        known_E = np.bincount(self._excerpt_N, sample.kept_N, minlength=len(starts)) > 0
        fresh_W = sample.second_W & ~np.isin(sample.text_W, sample.text_W[~sample.second_W])
        self._usable_E = known_E & fresh_W[self._window_E]

    def choose(self, column: int, count: int, seen: Sequence[int], seed: Sequence[int]) -> list[HeldOut]:
        """Held-out excerpts to try a feature on, mixed: those on which it is most active, and as many, drawn, on which
        it is not; each from a document of its own within its kind. `count` of each, fewer where it is active in fewer
        documents; none where those are fewer than `MIN_TEXTS`.

        Args:
            seen: numbers of documents that must not be among them, nor others with the same text.
        """
        rng, sample = np.random.default_rng(seed), self._sample
        row, value = sample.firings(column)
        activation_E = np.zeros(len(self.start_E), np.float32)
        np.maximum.at(activation_E, self._excerpt_N[row], value)
        seen_W = np.isin(sample.document_W, seen)
        seen_W |= np.isin(sample.text_W, sample.text_W[seen_W])
        usable_E = self._usable_E & ~seen_W[self._window_E]
        active = np.flatnonzero(usable_E & (activation_E > 0))
        active = self._one_per_document(active[np.lexsort((active, -activation_E[active]))])
        inactive = np.flatnonzero(usable_E & (activation_E == 0))
        inactive = np.sort(self._one_per_document(rng.permutation(inactive)))
        n = min(count, len(active), len(inactive))
        if n < MIN_TEXTS:
            return []
        chosen = np.sort(np.concatenate([active[:n], rng.permutation(inactive)[:n]]))
        return [
            HeldOut(
                document=int(self.document_E[excerpt]),
                activation=float(activation_E[excerpt]),
                text=sample.text(self.start_E[excerpt], self.stop_E[excerpt]),
            )
            # Their place says nothing about them.
            for excerpt in np.random.default_rng([*seed, 1]).permutation(chosen)
        ]

    def _one_per_document(self, excerpts: Ints) -> Ints:
        _, first = np.unique(self.document_E[excerpts], return_index=True)
        return excerpts[np.sort(first)]


def ask_judge(
    judge: Judge, features: Sequence[Explained], examples: Mapping[int, list[Pieces]], *, with_null: bool
) -> list[Explained]:
    """The features with the judge's words. What cannot be read after three tries is missing, with the reason. Raises as
    `Judge.ask`.

    Args:
        examples: the top examples of each.
        with_null: also try each feature with the explanation of another one.
    """
    shown = [one for one in features if examples[one.id]]
    prompts = [ask_explanation(f"feature {one.id}", examples[one.id]) for one in shown]
    detections = sum(bool(one.texts) for one in shown) * (2 if with_null and len(shown) > 1 else 1)
    new = judge.planned(prompts)
    say(
        f"judge {judge.name}: {new} explanations to ask for ({len(prompts) - new} are kept), then at most {detections} "
        f"detections; at most {new + detections} calls if every answer can be read"
    )
    said = dict(zip((one.id for one in shown), judge.ask(prompts, [read_explanation] * len(prompts)), strict=True))
    own = {id: found.value.text for id, found in said.items() if found.value is not None}
    texts = list(own.values())
    others = dict(zip(own, [*texts[1:], *texts[:1]], strict=True)) if with_null and len(own) > 1 else {}
    told, told_by_chance = _detect(judge, features, own), _detect(judge, features, others)
    nothing: Judged[Explanation] = Judged(None, "it has no examples: it never fires")
    too_few: Judged[float] = Judged(None, "there are too few held-out texts")
    return [
        _with(one, said.get(one.id, nothing), told.get(one.id, too_few), told_by_chance.get(one.id)) for one in features
    ]


def _detect(judge: Judge, features: Sequence[Explained], explanations: Mapping[int, str]) -> dict[int, Judged[float]]:
    """By feature, the share of its texts told right with an explanation."""
    tried = [one for one in features if one.id in explanations and one.texts]
    prompts = [
        ask_detection(f"feature {one.id}", explanations[one.id], [text.text for text in one.texts]) for one in tried
    ]
    judged = judge.ask(prompts, [partial(read_flags, count=len(one.texts)) for one in tried])
    shares = {}
    for one, found in zip(tried, judged, strict=True):
        right = [flag == (text.activation > 0) for flag, text in zip(found.value or (), one.texts, strict=False)]
        shares[one.id] = Judged(sum(right) / len(right) if right else None, found.reason)
    return shares


def _with(one: Explained, said: Judged[Explanation], own: Judged[float], null: Judged[float] | None) -> Explained:
    if said.value is None:
        return dataclasses.replace(one, missing=said.reason)
    return dataclasses.replace(
        one,
        explanation=said.value.text,
        concerning=said.value.concerning,
        reason=said.value.reason,
        detection=own.value,
        null=null.value if null else None,
        missing=own.reason,
    )
