"""Settings of `features match`."""

from __future__ import annotations

from modeldiff.errors import InputError
from modeldiff.settings import OnDevice, setting, settings


@settings
class MatchSettings(OnDevice):
    """Which crosscoders are compared, on which pairs, and when a feature counts as found again."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    crosscoders: tuple[str, ...] = setting(default=(), result=False, argument=True)
    """Two or more crosscoders that read the same two models. The first is the reference: its exclusive features (all,
    where it has none) are looked for in the others."""

    activations: str | None = setting(default=None, result=False)
    """The activations to compare on. Default: those the first crosscoder was trained on."""

    pairs: int = setting(default=200_000, least=2)
    """Compare on about this many pairs, in blocks spread evenly over the activations."""

    threshold: float = setting(default=0.7, above=0, most=1)
    """A feature comes back when its best match is mutual and correlates at least this much."""

    outlier_factor: float | None = setting(default=None, least=0)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm; 0 keeps all. Default: as in
    the training of the first crosscoder."""

    def check(self) -> None:
        """There is something to compare."""
        if len(self.crosscoders) < 2:
            raise InputError(
                f"two or more crosscoders are needed, found {len(self.crosscoders)}: "
                "`modeldiff features match crosscoder:1 crosscoder:2`"
            )
