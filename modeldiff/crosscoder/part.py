"""A few features of a crosscoder as a small crosscoder of their own: their codes, without computing all the others'.

At inference a feature is active when its own score exceeds a fixed threshold, whatever the others do, so a part has the
same codes as the whole.

Legend: F features, P features of the part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from modeldiff.crosscoder.model import Crosscoder


def part_of(crosscoder: Crosscoder, features: Sequence[int]) -> Crosscoder:
    """The crosscoder that has only these features, in the order of their numbers; feature i of it is the i-th of them.

    Args:
        features: numbers, rising, each once; at least one.
    """
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
    with torch.no_grad():
        for side in ("a", "b"):
            seen = crosscoder.sees(side)
            rows_P = torch.tensor([f - seen.start for f in features if seen.start <= f < seen.stop], dtype=torch.long)
            for name in (f"w_enc_{side}", f"w_dec_{side}"):
                whole = getattr(crosscoder, name)
                getattr(part, name).copy_(whole[rows_P.to(whole.device)])
            getattr(part, f"b_dec_{side}").copy_(getattr(crosscoder, f"b_dec_{side}"))
        part.b_enc.copy_(crosscoder.b_enc[torch.tensor(features, device=crosscoder.b_enc.device)])
    return part
