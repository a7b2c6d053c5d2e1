"""Settings of the stitch stage."""

from __future__ import annotations

from modeldiff.errors import InputError
from modeldiff.settings import Settings, setting, settings


@settings
class StitchSettings(Settings):
    """Which pairs the maps between the two models are fitted on."""

    # References are only a way to say which artifact: its digest decides whether the result is the same.
    activations: str | None = setting(default=None, result=False)
    """The activations: a version, `activations:2`, or a name. Default: the latest."""

    pairs: int = setting(default=1_000_000)
    """Read at most this many pairs, in blocks spread evenly over the activations. Eight tenths are fitted on, one tenth
    chooses the regularisation, and one tenth gives the R² reported."""

    outlier_factor: float = setting(default=2.0)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm (paper B.1.4: 2); 0 keeps
    all."""

    device: str = setting(default="auto", result=False)
    """auto, cpu, cuda or mps (mps computes on the processor: it has no float64)."""

    def __post_init__(self) -> None:
        if self.pairs < 100:
            raise InputError(f"--pairs must be at least 100, found {self.pairs}")
        if not 0 <= self.outlier_factor < float("inf"):
            raise InputError(f"--outlier-factor must be 0 (keep all) or more, found {self.outlier_factor}")
