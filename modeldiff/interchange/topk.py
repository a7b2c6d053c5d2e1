"""Crosscoders of model_diffing_crosscoders (Antebe; `antebe1/...` on the hub): the k largest entries of each pair.

Tensors: W_enc (2, D, F), b_enc (F,), W_dec (F, 2, D), b_dec (2, D); with dedicated features dec_mask (F, 2), 0 where a
feature does not write to a model. It may read that model all the same: there is an enc_mask, which is not applied.
"""

from __future__ import annotations

from modeldiff.errors import DamagedError
from modeldiff.interchange.dictionary import Dictionary
from modeldiff.interchange.files import Source
from modeldiff.sides import SIDES


def fits(source: Source) -> bool:
    return "W_enc" in source.tensors and source.tensors["W_enc"].dim() == 3


def read(source: Source) -> Dictionary:
    source.only("W_enc", "b_enc", "W_dec", "b_dec", "enc_mask", "dec_mask")
    e_LDF = source.take("W_enc", 2, None, None)
    _, width, n_features = e_LDF.shape
    w_FLD = source.take("W_dec", n_features, 2, width)
    if "dec_mask" in source.tensors:
        w_FLD = w_FLD * (source.take("dec_mask", n_features, 2) != 0)[:, :, None]
    b_F, b_LD = source.take("b_enc", n_features), source.take("b_dec", 2, width)
    k = source.setting("k", int)
    if k is None or not 1 <= k <= n_features:
        raise DamagedError(f"the config beside {source.path}: 'k' must be 1 to {n_features}, found {k}")
    layers = dict.fromkeys(SIDES, source.setting("layer", int))
    return Dictionary.stacked(e_LDF, w_FLD.transpose(0, 1), b_F, b_LD, k=k, per_pair=True, layers=layers)
