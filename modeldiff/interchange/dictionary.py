"""A dictionary of two models in the form that all libraries share: dense, on raw activations.

Legend: F features, D width of one model, Dm width of model m, N pairs.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import torch

from modeldiff.crosscoder import Crosscoder, CrosscoderConfig
from modeldiff.crosscoder.units import Measured, Units
from modeldiff.errors import DamagedError, InputError
from modeldiff.sides import OTHER, SIDES
from modeldiff.workspace.activations import ActivationStore

# Rows of a matrix that are taken to float64 at once.
_ROWS = 4096
Sided = dict[str, torch.Tensor]
"""By side, "a" and "b"."""


@dataclasses.dataclass
class Dictionary:
    """With x raw activations,

        pre = x_a E_a' + x_b E_b' + b_enc,    f = pre where pre * score > threshold, else 0,    xhat_m = f W_m + b_m

    A feature that a model does not have is a row of zeros in both matrices of that model.
    """

    encoder: Sided
    """E_m (F, D) float32."""
    decoder: Sided
    """W_m (F, D) float32."""
    b_enc: torch.Tensor
    """(F,) float64."""
    b_dec: Sided
    """(D,) float64."""
    score_F: torch.Tensor | None = None
    """(F,) float64, what `pre` is multiplied by for the selection, not negative; None: ones."""
    threshold: float = 0.0
    """Not negative."""
    k: int | None = None
    """Active features per pair that it was trained to have."""
    per_pair: bool = False
    """The file has no threshold: at inference, too, the k largest entries of each pair are active."""
    layers: dict[str, int | None] = dataclasses.field(default_factory=lambda: dict.fromkeys(SIDES))
    """What its config says about the layers of the models."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What a user should know about how it was read, a sentence each."""

    @classmethod
    def stacked(
        cls, e_LDF: torch.Tensor, w_LFD: torch.Tensor, b_F: torch.Tensor, b_LD: torch.Tensor, **more: Any
    ) -> Dictionary:
        """From the matrices of both models in one tensor; L = 2, A's first."""
        return cls(
            encoder={side: e_LDF[at].T.contiguous() for at, side in enumerate(SIDES)},
            decoder={side: w_LFD[at].contiguous() for at, side in enumerate(SIDES)},
            b_enc=b_F.double(),
            b_dec={side: b_LD[at].double() for at, side in enumerate(SIDES)},
            **more,
        )

    @property
    def n_features(self) -> int:
        return len(self.b_enc)

    def scale(self, side: str, factor: float, out: float, mean_D: torch.Tensor | None = None) -> None:
        """The dictionary was trained on (x - mean) * factor, and its reconstructions are theirs / out + mean: make it
        one of x."""
        if mean_D is not None:
            moved_F = torch.cat([rows.double() @ mean_D.double() for rows in self.encoder[side].split(_ROWS)])
            self.b_enc = self.b_enc - factor * moved_F
        self.encoder[side] = self.encoder[side] * factor
        self.decoder[side] = self.decoder[side] / out
        self.b_dec[side] = self.b_dec[side] / out + (0.0 if mean_D is None else mean_D.double())

    def has(self, side: str) -> torch.Tensor:
        """(F,) bool: the features with a weight that is not 0 in this model."""
        return (self.encoder[side] != 0).any(dim=1) | (self.decoder[side] != 0).any(dim=1)

    def crosscoder(self, store: ActivationStore) -> Imported:
        """The crosscoder with the same codes and reconstructions, in the units of these activations.

        What a feature is selected by becomes its activation: each is multiplied by its score, and its decoder rows are
        divided by it. (The norms of the decoder, on which scores depend, are others in other units.)

        Raises:
            InputError: the widths are not those of the activations.
            DamagedError: a weight is not finite.
        """
        self._check(store)
        in_a_F, in_b_F = self.has("a"), self.has("b")
        only_F = {"A": in_a_F & ~in_b_F, "B": in_b_F & ~in_a_F}
        parts = [only_F["A"], ~(only_F["A"] | only_F["B"]), only_F["B"]]
        order_F = torch.cat([part.nonzero().flatten() for part in parts])
        sizes: dict[str, Any] = dict(
            zip(("n_a_only", "n_shared", "n_b_only"), (int(part.sum()) for part in parts), strict=True)
        )
        about: dict[str, Any] = {
            f"{what}_{side}": getattr(store.info.sides[side], what) for what in ("model", "layer") for side in SIDES
        }
        k = min(self.k or 1, self.n_features)
        scale_F, threshold = self._selection()
        config = CrosscoderConfig(
            **Units.fitted(Measured.in_store(store)), **sizes, **about, k=k, combine="sum", threshold=threshold
        )
        made = Crosscoder(config)
        with torch.no_grad():
            made.b_enc.copy_((self.b_enc * scale_F)[order_F])
            for side in SIDES:
                mine_F, width = order_F[made.sees(side)], made.decoder(side).shape[1]
                scale_F1 = scale_F[mine_F].float()[:, None]
                # x_raw E = x_normalised (E / u): as activations do.
                made.encoder(side).copy_(config.raw_direction(side, self.encoder[side][mine_F, :width] * scale_F1))
                divisor_F1 = torch.where(scale_F1 > 0, scale_F1, 1.0)
                made.decoder(side).copy_(config.normalised(side, self.decoder[side][mine_F, :width] / divisor_F1))
                made.decoder_bias(side).copy_(config.normalised(side, self.b_dec[side][:width]))
        for name, tensor in made.named_parameters():
            if not bool(tensor.isfinite().all()):
                raise DamagedError(f"the dictionary's {name} holds numbers that are not finite")
        return Imported(made, order_F, scale_F[order_F].float())

    def _selection(self) -> tuple[torch.Tensor, float]:
        """((F,) by which each feature is multiplied, the threshold for all of them). With a score of 0 a feature is
        never active, unless there is no threshold; its encoder becomes 0."""
        ones_F = torch.ones(self.n_features, dtype=torch.float64)
        if self.score_F is None:
            return ones_F, self.threshold
        first = float(self.score_F[0])
        if first > 0 and bool((self.score_F == first).all()):
            return ones_F, self.threshold / first
        return self.score_F.clamp_min(0.0), self.threshold

    def _check(self, store: ActivationStore) -> None:
        for side, width in zip(SIDES, store.widths, strict=True):
            found, model = self.decoder[side].shape[1], side.upper()
            if found < width or bool((self.decoder[side][:, width:] != 0).any()):
                raise InputError(
                    f"the dictionary reads {found} numbers of model {model}, {store.artifact.ref} holds {width}: give "
                    "the activations it was trained on with --activations (what lies beyond the width of a smaller "
                    "model is left out where its decoder is 0 there)"
                )

    @classmethod
    @torch.no_grad()
    def of(cls, crosscoder: Crosscoder) -> Dictionary:
        """A crosscoder in this form, its features in their order; `score_F` is as for its own selection."""
        config, encoder, decoder, b_dec = crosscoder.config, {}, {}, {}
        for side in SIDES:
            seen = crosscoder.sees(side)
            w_enc_FD, w_dec_FD = (torch.zeros(crosscoder.n_features, crosscoder.decoder(side).shape[1]) for _ in "ed")
            w_enc_FD[seen] = config.raw_encoder(side, crosscoder.encoder(side))[0]
            w_enc_FD[crosscoder.slices["shared"]] *= crosscoder.encoder_share
            w_dec_FD[seen] = config.raw_direction(side, crosscoder.decoder(side))
            encoder[side], decoder[side] = w_enc_FD, w_dec_FD
            b_dec[side] = config.raw(side, crosscoder.decoder_bias(side).double())
        weights_F = crosscoder.score_weights()
        return cls(
            encoder=encoder, decoder=decoder, b_enc=crosscoder.b_enc.double(), b_dec=b_dec, threshold=config.threshold,
            score_F=None if weights_F is None else weights_F.double(), k=config.k,
            layers={side: getattr(config, f"layer_{side}") for side in SIDES},
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Imported:
    """A dictionary as a crosscoder, and how its features are found again."""

    crosscoder: Crosscoder
    theirs_F: torch.Tensor
    """(F,) int64: the number that each feature of the crosscoder has in the dictionary."""
    scale_F: torch.Tensor
    """(F,) float32: activations of the crosscoder are those of the dictionary times this."""

    @property
    def numbers(self) -> str:
        """For people: which of the dictionary's features are which here, where they stand one after the other in both;
        at most four such ranges."""
        starts = (self.theirs_F.diff() != 1).nonzero().flatten() + 1
        borders = list(itertools.pairwise([0, *starts.tolist(), len(self.theirs_F)]))
        shown = [f"{self.theirs_F[first]}..{self.theirs_F[stop - 1]} -> {first}..{stop - 1}" for first, stop in borders]
        return "; ".join(shown if len(shown) < 5 else [*shown[:4], f"and {len(shown) - 4} more ranges"])


def one_sided(dictionary: Dictionary) -> dict[str, int]:
    """By model, how many shared features write to it alone: they are called exclusive elsewhere, and read both."""
    written = {side: (dictionary.decoder[side] != 0).any(dim=1) for side in SIDES}
    both_F = dictionary.has("a") & dictionary.has("b")
    return {side.upper(): int((both_F & written[side] & ~written[OTHER[side]]).sum()) for side in SIDES}


def pad(tensors: Sided) -> Any:
    """(2, F, D) of both models, the narrower one filled with zeros."""
    width = max(one.shape[-1] for one in tensors.values())
    return torch.stack([torch.nn.functional.pad(tensors[side], (0, width - tensors[side].shape[-1])) for side in SIDES])
