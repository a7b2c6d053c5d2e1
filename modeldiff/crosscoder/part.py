"""A few features of a crosscoder as a small crosscoder of their own: their codes, without computing all the others'.

At inference a feature is active when its own score exceeds a fixed threshold, so a part has the codes of the whole.

Legend: P features of the part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from modeldiff.crosscoder.model import Crosscoder
from modeldiff.sides import SIDES


def part_of(crosscoder: Crosscoder, features: Sequence[int]) -> Crosscoder:
    """The crosscoder that has only these features (numbers, rising, each once; at least one), in this order."""
    assert list(features) == sorted(set(features)), "features in the order of their numbers, each once"
    config = crosscoder.config
    sizes = {
        name: sum(whole.start <= feature < whole.stop for feature in features)
        for name, whole in crosscoder.slices.items()
    }
    designated = sum(feature < config.n_designated for feature in features)
    part = Crosscoder(
        dataclasses.replace(
            config,
            n_a_only=sizes["A"],
            n_shared=sizes["shared"],
            n_b_only=sizes["B"],
            n_designated=designated,
            tie=config.tie if designated else "none",
            designated_k=1.0,  # for training only
            k=min(config.k, len(features)),
        )
    ).to(crosscoder.b_enc.device)
    part.matmul_dtype = crosscoder.matmul_dtype
    features_P = torch.tensor(features, device=crosscoder.b_enc.device)
    weights = {"b_enc": crosscoder.b_enc[features_P]}
    for side in SIDES:
        seen = crosscoder.sees(side)
        rows_P = features_P[(features_P >= seen.start) & (features_P < seen.stop)] - seen.start
        weights[f"w_enc_{side}"] = crosscoder.encoder(side)[rows_P]
        weights[f"w_dec_{side}"] = crosscoder.decoder(side)[rows_P]
        weights[f"b_dec_{side}"] = crosscoder.decoder_bias(side)
    part.load_state_dict(weights)
    return part
