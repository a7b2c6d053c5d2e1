"""Settings of the stitch stage."""

from __future__ import annotations

from modeldiff.settings import OnDevice, setting, settings


@settings
class StitchSettings(OnDevice):
    """Which pairs the maps between the two models are fitted on."""

    activations: str | None = setting(default=None, result=False)
    """The activations: a version, `activations:2`, or a name. Default: the latest."""

    pairs: int = setting(default=1_000_000, least=100)
    """Read about this many pairs, in blocks spread evenly over the activations. Eight tenths are fitted on, one tenth
    chooses the regularisation, and one tenth gives the R² reported."""

    outlier_factor: float = setting(default=2.0, least=0)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm (paper B.1.4: 2); 0 keeps
    all."""
