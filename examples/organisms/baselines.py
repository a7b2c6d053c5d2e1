"""What other methods list for the same two models and texts.

- **Diff Mining** (arXiv 2608.26462), on strings that both models say in one token, so that it works across tokenizers,
  at the places of the continuations. At each place, how much more likely each string is to one model than to the
  other; non-negative matrix factorisation over places x strings makes sets of strings that rise together: five for
  each model, of the hundred strings that rise most on average; largest first, and the first five of all are the list.
  With log-probabilities, of which a place keeps the hundred largest differences (the recipe of its authors' code);
  with probabilities; and with the words of the continuations in place of next strings, since the small models' tokens
  are often single letters that say little. A set is true when three of its first ten strings begin words of the habit.
  It knows no contexts, and nothing is verified.
- **Perplexity differencing** (arXiv 2605.00994): the texts that one model finds much likelier than the other, by the
  difference of log-likelihoods per character; the five most extreme in either direction. A direction has found the
  trigger when the share of its five that have it is at least (1 + base) / 2, base being the share of all texts: the
  same rule as for the places of an entry. Found: by either direction. Precision: the share within the better direction
  (which a user would not know: the method is given that much). Without a trigger (kinds 6 and 7) texts that hold words
  of the habit stand for it.
- **The exclusive list**: the first five features of either model that the verdict calls exclusive, by evidence; of the
  exclusive partitions, or (`anywhere`) of shared features as well. One is true when it is B's and its examples lie, by
  activation, on the trigger by the same rule. It says no words.

Legend: D documents, P places, K strings, S sets, T tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from modeldiff.catalogue.table import FeatureTable
from modeldiff.contrast.continuations import Continuations
from modeldiff.contrast.words import said_words
from modeldiff.lm.batches import CHUNK_VALUES, batches, chunks, padded, token_budget
from modeldiff.lm.buckets import Buckets, common_buckets, token_strings
from modeldiff.lm.load import load_model
from modeldiff.lm.model import LanguageModel
from modeldiff.texts.align import align
from modeldiff.texts.tokenize import Reader

from .scoring import OWNER, SET_SHOWN, Truth, enough, judge_set

SETS, FIRST = 5, 5
# Strings that the factorisation sees: those that rise most on average. Differences of a place that count (logits).
STRINGS, STRINGS_OF_PLACE = 100, 100
# Features looked through for those that are called exclusive.
LOOK_THROUGH = 60
Floats = NDArray[np.float32]
SIDES = ("a", "b")


@dataclass(frozen=True)
class Readings:
    """What both models make of the texts of the continuations."""

    names: tuple[str, ...]
    """(K,) the strings."""
    p: dict[str, Floats]
    """By side (P, K), probability of each string to come next."""
    score: dict[str, Floats]
    """By side (D,), log-likelihood per character."""


def read_texts(continuations: Continuations, device: torch.device) -> Readings:
    """One pass of both models over the documents, in the number format that the stages use."""
    from modeldiff.lm.device import resolve_dtype

    refs = continuations.refs()
    models = {side: load_model(refs[side], device, resolve_dtype("auto", device)) for side in SIDES}
    buckets = common_buckets({side: token_strings(models[side].tokenizer) for side in SIDES})
    readers = {side: Reader(models[side].tokenizer) for side in SIDES}
    of_document: list[list[int]] = [[] for _ in continuations.documents]
    for i, place in enumerate(continuations.places):
        of_document[place.document].append(i)
    ids: dict[str, list[torch.Tensor]] = {side: [] for side in SIDES}
    chars: dict[str, list[int]] = {side: [] for side in SIDES}
    cut = {side: np.zeros(len(continuations.places), np.int64) for side in SIDES}
    for number, record in enumerate(continuations.documents):
        tokens = {side: readers[side].read(record) for side in SIDES}
        alignment = align(record.text, tokens)
        at = [int(np.searchsorted(alignment.char_end, continuations.places[i].end)) for i in of_document[number]]
        for side in SIDES:
            most = models[side].max_positions or 1 << 30
            cut[side][of_document[number]] = np.minimum(alignment.token[side][at], most - 1)
            ids[side].append(torch.from_numpy(tokens[side].ids[:most].astype(np.int64)))
            chars[side].append(max(1, int(tokens[side].ends[:most].max())))
    found = {side: _read(models[side], side, ids[side], of_document, cut[side], buckets) for side in SIDES}
    return Readings(
        buckets.names,
        {side: found[side][0] for side in SIDES},
        {side: (found[side][1] / np.array(chars[side])).astype(np.float32) for side in SIDES},
    )


def _read(
    lm: LanguageModel,
    side: str,
    ids: list[torch.Tensor],
    of_document: list[list[int]],
    cut_P: NDArray[np.int64],
    buckets: Buckets,
) -> tuple[Floats, Floats]:
    """(probabilities (P, K), log-likelihood of each document (D,))."""
    p_PK = np.zeros((len(cut_P), len(buckets.names)), np.float32)
    score_D = np.zeros(len(ids), np.float32)
    for batch in batches([len(one) for one in ids], token_budget(lm, logit_values=CHUNK_VALUES)):
        ids_BT, mask_BT = padded([ids[i] for i in batch])
        with torch.inference_mode():
            logits_BTV = lm.logits(ids_BT, mask_BT)
            for b, i in enumerate(batch):
                log_TV = logits_BTV[b, : len(ids[i]) - 1].float().log_softmax(dim=-1)
                score_D[i] = log_TV.gather(1, ids[i][1:, None].to(lm.device)).sum().item()
            places = [place for i in batch for place in of_document[i]]
            row = torch.tensor([b for b, i in enumerate(batch) for _ in of_document[i]], device=lm.device)
            logits_NV = logits_BTV[row, torch.from_numpy(cut_P[places]).to(lm.device)]
            for part in chunks(*logits_NV.shape):
                p_PK[places[part]] = buckets.gather(side, logits_NV[part].float().softmax(dim=1)).cpu().numpy()
    return p_PK, score_D


def differences(readings: Readings, side: str, *, logits: bool) -> Floats:
    """(P, K) how much more likely each string is to this model than to the other one; negative where it is less."""
    mine, theirs = (readings.p[one] for one in (side, "a" if side == "b" else "b"))
    return np.log(mine + 1e-9) - np.log(theirs + 1e-9) if logits else mine - theirs


def largest_of_place(difference_PK: Floats, kept: int = STRINGS_OF_PLACE) -> Floats:
    """The same, and 0 for all but the largest of each place."""
    if difference_PK.shape[1] <= kept:
        return difference_PK
    least_P = np.partition(difference_PK, -kept, axis=1)[:, -kept]
    return np.where(difference_PK >= least_P[:, None], difference_PK, 0).astype(np.float32)


def mined_sets(difference_PK: Floats, names: Sequence[str], count: int = SETS) -> list[tuple[float, list[str]]]:
    """At most `count` sets of the strings that rise most on average, the largest first: (how much of the rise the set
    explains, its strings, strongest first)."""
    wordy = [k for k, name in enumerate(names) if any(c.isalpha() for c in name) and not name.startswith("\ufffd")]
    mean_K = difference_PK[:, wordy].mean(axis=0)
    kept = [wordy[i] for i in np.argsort(-mean_K, kind="stable")[:STRINGS] if mean_K[i] > 0]
    rise_PK = np.maximum(difference_PK[:, kept], 0)
    if not rise_PK.any():
        return []
    model = NMF(min(count, len(kept)), init="nndsvd", max_iter=150, tol=1e-3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # close enough for a list of strings
        weight_PS = model.fit_transform(rise_PK)
    mass_S = weight_PS.sum(axis=0) * model.components_.sum(axis=1)
    found = []
    for s in np.argsort(-mass_S, kind="stable").tolist():
        best = np.argsort(-model.components_[s], kind="stable")[:SET_SHOWN]
        strings = [names[kept[k]] for k in best.tolist() if model.components_[s][k] > 0]
        if strings:
            found.append((float(mass_S[s]), strings))
    return found


def list_of_sets(difference: dict[str, Floats], names: Sequence[str], truth: Truth) -> list[dict[str, Any]]:
    """The first sets of both models together, largest first.

    Args:
        difference: by side (P, K).
    """
    entries: list[dict[str, Any]] = []
    for side in SIDES:
        for mass, strings in mined_sets(difference[side], names):
            match = judge_set(strings, side, truth)
            entries.append(
                {"side": side.upper(), "strings": strings, "mass": round(mass, 3), "words_match": match}
                | {"is_true": match, "whole": match}
            )
    return sorted(entries, key=lambda one: -one["mass"])[:SETS]


def diff_mining(readings: Readings, truth: Truth, *, logits: bool) -> list[dict[str, Any]]:
    """Of next strings."""
    found = {side: differences(readings, side, logits=logits) for side in SIDES}
    if logits:
        found = {side: largest_of_place(found[side]) for side in SIDES}
    return list_of_sets(found, readings.names, truth)


def said_mining(continuations: Continuations, truth: Truth) -> list[dict[str, Any]]:
    """Of the words that are said in the continuations."""
    said = said_words(continuations.places)
    more_PV = said.difference.toarray()
    return list_of_sets({"a": more_PV, "b": -more_PV}, said.names, truth)


def perplexity(difference_D: Floats, about_D: NDArray[np.bool_], planted: bool) -> dict[str, Any]:
    """A row: the entries, found or not, and the share within the better direction.

    Args:
        difference_D: log-likelihood per character, B's minus A's.
    """
    order = np.argsort(-difference_D, kind="stable")
    base = float(about_D.mean())
    right: dict[str, int] = {}
    entries: list[dict[str, Any]] = []
    for side, at in (("B", order[:FIRST]), ("A", order[::-1][:FIRST])):
        right[side] = int(about_D[at].sum())
        entries += [
            {"side": side, "document": int(d), "difference": round(float(difference_D[d]), 4)}
            | {"about": bool(about_D[d])}
            for d in at
        ]
    best = max(right.values())
    found = planted and enough(best / FIRST, base)
    counts = {"listed": FIRST, "true": best if planted else 0, "words_match": 0}
    return {"entries": entries, "hit": found, "hit_unverified": found, **counts, "base": round(base, 4)}


def exclusive_list(table: FeatureTable, truth: Truth, *, anywhere: bool) -> dict[str, Any]:
    """A row: the first exclusive features of both models."""
    entries: list[dict[str, Any]] = []
    found = 0
    base = float(truth.about.mean())
    for side in ("B", "A"):
        ids = table.select(partition=side, anywhere=anywhere).ids[:LOOK_THROUGH]
        rows = [row for row in map(table.row, ids) if row.verdict == "exclusive"]
        found += len(rows)
        for row in rows[:FIRST]:
            mass = sum(one.activation for one in row.examples)
            on = sum(one.activation for one in row.examples if one.document is not None and truth.about[one.document])
            is_true = truth.planted and side == OWNER.upper() and mass > 0 and enough(on / mass, base)
            entries.append(
                {"side": side, "feature": row.id, "partition": row.partition, "share": round(on / max(mass, 1e-9), 4)}
                | {"words_match": False, "is_true": is_true, "whole": is_true}
            )
    counts = {"listed": len(entries), "true": sum(one["is_true"] for one in entries), "words_match": 0}
    hit = counts["true"] > 0
    return {"entries": entries, "hit": hit, "hit_unverified": hit, **counts, "found": found, "base": round(base, 4)}
