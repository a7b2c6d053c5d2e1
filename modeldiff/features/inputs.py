"""A crosscoder and the activations it is measured on, found and checked: where features and their measures begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modeldiff.console import say
from modeldiff.errors import InputError
from modeldiff.sides import SIDES
from modeldiff.workspace import Artifact, Input, Workspace

if TYPE_CHECKING:
    from modeldiff.crosscoder import Crosscoder
    from modeldiff.lm.harvested import Harvested
    from modeldiff.settings import HarvestedModels
    from modeldiff.workspace.activations import ActivationStore


@dataclass(frozen=True)
class Found:
    """A crosscoder and what it is measured on, not opened: for that torch is imported."""

    source: Artifact
    activations: Artifact

    @property
    def inputs(self) -> dict[str, Input]:
        return {"crosscoder": self.source.as_input(), "activations": self.activations.as_input()}

    def open(self) -> Measured:
        """Load and check. Raises InputError: widths or layers do not fit; DamagedError: a file is damaged."""
        from modeldiff.crosscoder import load
        from modeldiff.workspace.activations import ActivationStore

        source, found = self.source, self.activations
        measured = Measured(source, found, load(source), ActivationStore(found))
        config, widths = measured.crosscoder.config, measured.store.widths
        if widths != (config.width_a, config.width_b):
            raise InputError(
                f"{source.ref} reads widths {config.width_a} and {config.width_b}, but {found.ref} has {widths[0]} and "
                f"{widths[1]}: give the activations it was trained on with --activations"
            )
        for side, layer in (("a", config.layer_a), ("b", config.layer_b)):
            held = measured.store.info.sides[side].layer
            if None not in (layer, held) and layer != held:
                raise InputError(
                    f"{source.ref} was trained on layer {layer} of model {side.upper()}, but {found.ref} holds layer "
                    f"{held}: give activations of the same layers with --activations"
                )
        return measured


@dataclass(frozen=True)
class Measured(Found):
    """The same, opened."""

    crosscoder: Crosscoder
    store: ActivationStore

    def models(self, settings: HarvestedModels) -> dict[str, Harvested]:
        """Both models by side, not loaded yet. Raises InputError: one is not known."""
        from modeldiff.lm.harvested import harvested

        sides = self.store.info.sides
        return {side: harvested(side, sides[side], self.activations.ref, settings) for side in SIDES}


def measured_on(workspace: Workspace, crosscoder: Artifact, named: str | None) -> Artifact:
    """The activations that are named, else those that the crosscoder was trained on."""
    return workspace.source_of(crosscoder, "activations") if named is None else workspace.find("activations", named)


def find_measured(workspace: Workspace, crosscoder: str | None, activations: str | None, *, what: str) -> Found:
    """Find both.

    Args:
        crosscoder, activations: references; None: the latest crosscoder, and what it was trained on.
        what: is made; said when the crosscoder was not named.

    Raises:
        InputError: there is no such crosscoder, or its activations are gone.
    """
    source = workspace.find("crosscoder", crosscoder)
    found = measured_on(workspace, source, activations)
    if crosscoder is None:
        say(f"{what} of {source.ref} on {found.ref}")
    return Found(source, found)


def open_measured(workspace: Workspace, crosscoder: str | None, activations: str | None, *, what: str) -> Measured:
    """`find_measured`, opened. Raises as both do."""
    return find_measured(workspace, crosscoder, activations, what=what).open()
