"""What a push does to a model's predictions (teacher-forced, in nats), and what becomes of its texts: without a judge.

Legend: B texts of a batch, T tokens, P predictions of a batch (one for each token of the continuations), V vocabulary,
S vectors, D width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch

from modeldiff.lm.batches import chunks, padded
from modeldiff.lm.generate import Generated
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual

# Two sets of a batch's logits are in memory, each of at most 2^27 values (512 MiB in float32) unless one text has more.
_LOGIT_VALUES = 1 << 27
_RUN = 4
# Chinese and Japanese are written without blanks: there every character is a unit.
_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+|[^\w\s]")


def repeated_share(text: str) -> float | None:
    """Share (0 to 1) of the text's 4-grams that stood in it before: 1 - distinct 4-grams / 4-grams ("distinct-4").

    What perplexity does not show, as a loop is easy to predict. Over words and punctuation marks, case ignored, rather
    than tokens: the texts of models with different tokenizers compare. None: the text has less than four of them.
    """
    units = _UNIT.findall(text.casefold())
    runs = [tuple(units[i : i + _RUN]) for i in range(len(units) - _RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else None


def surprisal(lm: LanguageModel, texts: Sequence[Generated]) -> list[list[float]]:
    """For each text, -log p of every token of its continuation; the exponential of the mean is its perplexity."""
    found: list[list[float]] = []
    for batch in _batches(lm, texts):
        logits_PV = _predictions(lm, batch)
        next_P = torch.tensor([token for one in batch for token in one.new_ids], device=logits_PV.device)
        parts = chunks(*logits_PV.shape)
        nats = [-logits_PV[part].float().log_softmax(dim=-1).gather(1, next_P[part, None])[:, 0] for part in parts]
        found += _by_text(torch.cat(nats), batch)
    return found


def divergence(
    lm: LanguageModel, layer: int, texts: Sequence[Generated], vectors_SD: torch.Tensor
) -> list[list[list[float]]]:
    """KL(steered || unsteered) of the next token at every place of the continuations, by vector and text; in nats.

    The first place of a text is the end of its prompt. Both distributions are given the same tokens, so that the
    figure is about the push alone and not about what was written because of it. The zero vector gives exactly 0.

    texts: the continuations that the unsteered model wrote; vectors_SD: each is added to the residual stream after
    block `layer` at every position.
    """
    found: list[list[list[float]]] = [[] for _ in vectors_SD]
    for batch in _batches(lm, texts):
        plain_PV = _predictions(lm, batch)
        for vector_D, mine in zip(vectors_SD, found, strict=True):
            with add_to_residual(lm, layer, vector_D):
                steered_PV = _predictions(lm, batch)
            kl = []
            for part in chunks(*plain_PV.shape):
                log_s_PV, log_p_PV = (logits[part].float().log_softmax(dim=-1) for logits in (steered_PV, plain_PV))
                kl.append((log_s_PV.exp() * (log_s_PV - log_p_PV)).sum(dim=-1))
            mine += _by_text(torch.cat(kl), batch)
    return found


@torch.inference_mode()
def _predictions(lm: LanguageModel, batch: Sequence[Generated]) -> torch.Tensor:
    """The logits (P, V) that predict the continuations' tokens, text after text."""
    # Nothing is predicted from the last token.
    rows = [torch.tensor((one.prompt_ids + one.new_ids)[:-1]) for one in batch]
    ids_BT, mask_BT = padded(rows)
    lm.check_length(ids_BT.shape[1])
    logits_BTV = lm.logits(ids_BT, mask_BT)
    of_texts = zip(logits_BTV, rows, batch, strict=True)
    # A copy: views would keep the logits of the prompts in memory.
    return torch.cat([logits_TV[len(one.prompt_ids) - 1 : len(row)] for logits_TV, row, one in of_texts])


def _batches(lm: LanguageModel, texts: Sequence[Generated]) -> Iterator[list[Generated]]:
    """The texts in their order, as many at a time as the logits' budget allows."""
    batch: list[Generated] = []
    longest = 0
    for one in texts:
        longest = max(longest, len(one.prompt_ids) + len(one.new_ids))
        if batch and (len(batch) + 1) * longest * lm.vocabulary > _LOGIT_VALUES:
            yield batch
            batch, longest = [], len(one.prompt_ids) + len(one.new_ids)
        batch.append(one)
    if batch:
        yield batch


def _by_text(values_P: torch.Tensor, batch: Sequence[Generated]) -> list[list[float]]:
    return [part.tolist() for part in values_P.cpu().split([len(one.new_ids) for one in batch])]
