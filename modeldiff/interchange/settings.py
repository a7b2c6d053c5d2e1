"""Settings of `modeldiff import`."""

from __future__ import annotations

from modeldiff.errors import InputError
from modeldiff.settings import OnDevice, setting, settings


@settings
class ImportSettings(OnDevice):
    """Which dictionary becomes a crosscoder of this workspace."""

    # What the files hold is an input with a digest: where they lie makes no difference.
    source: tuple[str, ...] = setting(result=False, argument=True)
    """A folder, a file of weights or a repository of the hub; of single-model dictionaries, A's and then B's."""
    activations: str | None = setting(default=None, result=False)
    """Activations of the two models and layers that it was trained on: a version, a name, or the latest if left out."""
    fit_threshold: bool = setting(default=False)
    """Replace a selection of the k largest entries of each token, which a crosscoder here does not have, by a threshold
    that keeps k on average; how many active entries stay the same is measured."""

    def check(self) -> None:
        if len(self.source) not in (1, 2):
            raise InputError(f"give one dictionary, or two of single models (A's, B's); found {len(self.source)}")
