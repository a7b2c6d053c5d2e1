"""The crosscoder: two models' activations through one sparse code, partitioned by slices.

Features are ordered A-exclusive | shared | B-exclusive, so each model's encoder and decoder is one contiguous slice:
A has `[: nA + nS]`, B has `[nA :]`. Weights that the partition forbids do not exist: there is nothing to mask, to
check or to drift.

Legend: B pairs, F features, Da, Db widths of the models, nA, nS, nB sizes of the partitions. Suffix `Fa` / `Fb`: the
features that A / B has (nA + nS / nS + nB). Weights are feature-major: row i belongs to one feature.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import nn

from modeldiff.crosscoder.config import CrosscoderConfig
from modeldiff.crosscoder.saving import Saved, Spans, overlap
from modeldiff.crosscoder.units import Measured
from modeldiff.errors import InputError
from modeldiff.sides import EXCLUSIVE, OTHER, SIDES

_DECODER_NORM = 0.4  # of the decoder's rows at the start (paper B.1)
Both = tuple[torch.Tensor, torch.Tensor]
"""One of A, one of B."""
# The encoder's product is made about so many shared columns at a time: they are still in a CPU's cache when the second
# model's part is added (1.2 times as fast).
_SHARED_COLUMNS, _ALIGNED = 1024, 64
# Rows that are drawn at once. A multiple of 16, torch's own step: then the numbers are those of all rows in one draw.
_DRAWN_ROWS = 1024


class Crosscoder(Saved):
    """Dedicated Feature Crosscoder (paper 2.2); without exclusive features the standard one (2.1), with designated
    ones the DSF crosscoder (5.2).

    In normalised units (see units.py):

        pre = x_a W_ea (+) x_b W_eb + b_enc     shared features take the mean (or sum) of the two encoders
        f   = pre where it is selected, else 0
        xhat_m = f_m W_dm + b_dm

    No method has a gradient: training writes them out (fast/sparse.py).

    Attributes:
        matmul_dtype: what matrices are multiplied in; the weights stay float32.
    """

    def __init__(self, config: CrosscoderConfig) -> None:
        super().__init__()
        self.config = config
        self.matmul_dtype = torch.float32
        self.w_enc_a = nn.Parameter(torch.zeros(config.n_a, config.width_a))
        self.w_enc_b = nn.Parameter(torch.zeros(config.n_b, config.width_b))
        self.w_dec_a = nn.Parameter(torch.zeros(config.n_a, config.width_a))
        self.w_dec_b = nn.Parameter(torch.zeros(config.n_b, config.width_b))
        self.b_enc = nn.Parameter(torch.zeros(config.n_features))
        self.b_dec_a = nn.Parameter(torch.zeros(config.width_a))
        self.b_dec_b = nn.Parameter(torch.zeros(config.width_b))

    @classmethod
    @torch.no_grad()
    def initialised(
        cls,
        config: CrosscoderConfig,
        measured: Mapping[str, Measured],
        *,
        seed: int,
        part: CrosscoderConfig | None = None,
        spans: Callable[[str], Spans | None] = lambda _: None,
    ) -> Self:
        """A crosscoder to train from; or a `part` of it, with the rows that `spans` gives for each parameter's name,
        without ever holding the whole: the same rows, the encoder's biases up to the order of sums.

        Decoder rows are random directions; the encoder starts as the decoder of its side (paper B.1). The decoder's
        biases start at the mean of the data and the encoder's at minus what the encoder makes of that mean: the first
        pre-activations are centred, so that no feature starts as always on or never on.
        """
        self = cls(part or config)
        generator = torch.Generator().manual_seed(seed)
        for side, rows in zip(SIDES, (config.n_a, config.n_b), strict=True):
            wanted = spans(f"w_dec_{side}") or [(0, 0, rows)]
            edges = [*range(0, max(1, rows - _DRAWN_ROWS + 1), _DRAWN_ROWS), rows]  # the last block is a larger one
            for start, stop in itertools.pairwise(edges):
                drawn = torch.randn(stop - start, self.decoder(side).shape[1], generator=generator)
                for first, at, n in overlap([(start, 0, stop - start)], wanted):
                    direction = drawn[first : first + n]
                    direction *= _DECODER_NORM / direction.norm(dim=1, keepdim=True)
                    self.decoder(side)[at : at + n] = self.encoder(side)[at : at + n] = direction
        if config.tie == "vectors":
            n = config.n_designated
            self.w_enc_b[:n], self.w_dec_b[:n] = self.w_enc_a[:n], self.w_dec_a[:n]
        for side in SIDES:
            self.decoder_bias(side).copy_(config.normalised(side, measured[side].mean_D.double()))
        self.b_enc.copy_(-self.pre_activations(self.b_dec_a[None], self.b_dec_b[None])[0])
        return self

    # What belongs to whom

    @property
    def n_features(self) -> int:
        return self.b_enc.shape[0]  # len() of a tensor takes as long as small operations

    @property
    def slices(self) -> dict[str, slice]:
        """The features of each partition: "A", "shared", "B"."""
        a, b = self.sees("a"), self.sees("b")
        return {"A": slice(0, b.start), "shared": slice(b.start, a.stop), "B": slice(a.stop, b.stop)}

    @property
    def sizes(self) -> dict[str, int]:
        return {name: features.stop - features.start for name, features in self.slices.items()}

    @property
    def encoder_share(self) -> float:
        """Weight of each of the two encoders in a shared feature."""
        return 0.5 if self.config.combine == "mean" else 1.0

    def sees(self, side: str) -> slice:
        """The features that a model ("a" or "b") has."""
        n_all, n_seen = self.n_features, self.encoder(side).shape[0]
        return slice(0, n_seen) if side == "a" else slice(n_all - n_seen, n_all)

    def encoder(self, side: str) -> torch.Tensor:
        """(Fm, D) weights of a model ("a" or "b"); row i belongs to feature `sees(side).start + i`."""
        return self.w_enc_a if side == "a" else self.w_enc_b

    def decoder(self, side: str) -> torch.Tensor:
        """(Fm, D), likewise."""
        return self.w_dec_a if side == "a" else self.w_dec_b

    def decoder_bias(self, side: str) -> torch.Tensor:
        """(D,) of a model."""
        return self.b_dec_a if side == "a" else self.b_dec_b

    def partition_of(self, feature: int) -> str:
        """ "A", "shared" or "B". Raises InputError: there is no such feature."""
        if not 0 <= feature < self.n_features:
            raise InputError(f"feature {feature} does not exist: this crosscoder has 0 to {self.n_features - 1}")
        return "A" if feature < self.config.n_a_only else "shared" if feature < self.config.n_a else "B"

    # From activations to a code and back

    def normalise(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> Both:
        """Raw activations of any dtype and device in the crosscoder's units, float32, on its device."""
        x_a, x_b = (x.to(self.b_enc.device, torch.float32, copy=True) for x in (x_a_BDa, x_b_BDb))
        return self.config.normalised("a", x_a, out=x_a), self.config.normalised("b", x_b, out=x_b)

    @torch.no_grad()
    def pre_activations(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> torch.Tensor:
        """pre_BF of normalised activations."""
        tensors = (tensor.to(self.matmul_dtype) for tensor in (x_a_BDa, x_b_BDb, self.w_enc_a, self.w_enc_b))
        out_BF = torch.empty(len(x_a_BDa), self.n_features, dtype=self.matmul_dtype, device=self.b_enc.device)
        encode_into(out_BF, *tensors, share=self.encoder_share).add_(self.b_enc.to(self.matmul_dtype))
        return out_BF.float()

    @torch.no_grad()
    def encode(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor, *, raw: bool = True) -> torch.Tensor:
        """f_BF, dense float32, 0 where the score does not exceed the inference threshold.

        Args:
            raw: the activations are as harvested (any dtype); otherwise they are in normalised units.
        """
        if raw:
            x_a_BDa, x_b_BDb = self.normalise(x_a_BDa, x_b_BDb)
        return self.active(self.pre_activations(x_a_BDa, x_b_BDb))

    def active(self, pre_BF: torch.Tensor) -> torch.Tensor:
        """f_BF: pre-activations, 0 where the score does not exceed the inference threshold."""
        weights_F = self.score_weights()
        score_BF = pre_BF if weights_F is None else pre_BF * weights_F
        return torch.where(score_BF > self.thresholds(), pre_BF, 0.0)

    @torch.no_grad()
    def decode(self, f_BF: torch.Tensor, *, raw: bool = True) -> Both:
        """(xhat_a (B, Da), xhat_b (B, Db)) of a code; in raw units, or in normalised ones with `raw=False`."""
        f_BF, dtype = f_BF.to(self.matmul_dtype), self.matmul_dtype
        xhat_a = (f_BF[:, self.sees("a")] @ self.w_dec_a.to(dtype)).float().add_(self.b_dec_a)
        xhat_b = (f_BF[:, self.sees("b")] @ self.w_dec_b.to(dtype)).float().add_(self.b_dec_b)
        return (self.config.raw("a", xhat_a), self.config.raw("b", xhat_b)) if raw else (xhat_a, xhat_b)

    def forward(self, x_a_BDa: torch.Tensor, x_b_BDb: torch.Tensor) -> Both:
        """Raw activations to their reconstructions, as at inference."""
        return self.decode(self.encode(x_a_BDa, x_b_BDb))

    def thresholds(self) -> torch.Tensor:
        """(F,) float32: the score that each feature's must exceed to be active at inference."""
        config = self.config
        threshold_F = torch.full((config.n_features,), config.threshold, device=self.b_enc.device)
        threshold_F[: config.n_designated] = config.threshold_designated
        return threshold_F

    def set_threshold(self, threshold: float, designated: float | None = None) -> None:
        """Set the score above which a feature is active at inference; `designated`: another one for those features."""
        if designated is None:
            designated = threshold if self.config.n_designated else 0.0
        self.config = dataclasses.replace(self.config, threshold=threshold, threshold_designated=designated)

    @torch.no_grad()
    def score_weights(self) -> torch.Tensor | None:
        """s_F, by which activations are multiplied to rank them; None stands for ones.

        activation: 1. l2: norm of the concatenated decoder. sum: ‖d_a‖ + ‖d_b‖, the public code's rule, which gives a
        feature of one model half the weight of a shared one. mean: mean of the norms over the sides that the feature
        has.
        """
        if self.config.selection == "activation":
            return None
        a_F, b_F = self.decoder_norms().values()
        match self.config.selection:
            case "l2":
                return torch.hypot(a_F, b_F)
            case "sum":
                return a_F + b_F
            case "mean":
                total_F = a_F + b_F
                total_F[self.slices["shared"]] /= 2
                return total_F

    @torch.no_grad()
    def decoder_norms(self) -> dict[str, torch.Tensor]:
        """Norms (F,) of the decoder rows by side, normalised units; 0 where a feature does not exist on that side."""
        norms = {side: torch.zeros(self.n_features, device=self.b_enc.device) for side in SIDES}
        for side, norm_F in norms.items():
            norm_F[self.sees(side)] = torch.linalg.vector_norm(self.decoder(side), dim=1)
        return norms

    def relative_norm(self) -> torch.Tensor:
        """R_F (paper eq. 1): 1 = only in A's decoder, 0.5 = equally in both (or zero in both), 0 = only in B's."""
        norms = self.decoder_norms()
        total_F = norms["a"] + norms["b"]
        return torch.where(total_F > 0, norms["a"] / total_F.clamp_min(torch.finfo(total_F.dtype).tiny), 0.5)

    @torch.no_grad()
    def direction(self, feature: int, side: str) -> torch.Tensor:
        """The decoder row (D,) of a feature in a model ("a" or "b"), in the model's own units.

        Raises:
            InputError: there is no such feature, or that model does not have it.
        """
        partition = self.partition_of(feature)
        if partition == EXCLUSIVE[OTHER[side]]:
            raise InputError(
                f"feature {feature} is {partition}-exclusive: model {side.upper()} has no direction for it; "
                f"ask for model {partition} or for a shared feature"
            )
        return self.config.raw_direction(side, self.decoder(side)[feature - self.sees(side).start].detach())


load = Crosscoder.from_pretrained


@torch.no_grad()
def encode_into(
    out_BF: torch.Tensor,
    x_a_BDa: torch.Tensor,
    x_b_BDb: torch.Tensor,
    w_a_FaDa: torch.Tensor,
    w_b_FbDb: torch.Tensor,
    *,
    share: float,
) -> torch.Tensor:
    """`out_BF` = [x_a W_a' | share (x_a W_a' + x_b W_b') | x_b W_b'], in the dtype of all the arguments."""
    n_a, n_a_only = len(w_a_FaDa), out_BF.shape[1] - len(w_b_FbDb)
    n_shared = n_a - n_a_only
    if n_a_only:
        torch.mm(x_a_BDa, w_a_FaDa[:n_a_only].T, out=out_BF[:, :n_a_only])
    # About equal parts: a narrow last one would be slow, and rounded otherwise.
    parts = max(1, round(n_shared / _SHARED_COLUMNS)) if out_BF.device.type == "cpu" else 1
    step = max(1, -(-n_shared // (parts * _ALIGNED)) * _ALIGNED)
    for first in range(0, n_shared, step):
        last = min(first + step, n_shared)
        shared = out_BF[:, n_a_only + first : n_a_only + last]
        torch.addmm(shared, x_a_BDa, w_a_FaDa[n_a_only + first : n_a_only + last].T, beta=0, alpha=share, out=shared)
        shared.addmm_(x_b_BDb, w_b_FbDb[first:last].T, alpha=share)
    if n_shared < len(w_b_FbDb):
        torch.mm(x_b_BDb, w_b_FbDb[n_shared:].T, out=out_BF[:, n_a:])
    return out_BF
