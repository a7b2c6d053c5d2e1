"""What a transfer is made from: the crosscoder with its features, a stitch, and both models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.numpy import load_file

from modeldiff.console import say
from modeldiff.crosscoder import Crosscoder, load
from modeldiff.crosscoder.direction import STATISTICS_NAME
from modeldiff.errors import DamagedError, InputError
from modeldiff.linear.stitch import Stitch, find_stitch, load_stitch
from modeldiff.lm.harvested import Harvested, harvested, side_info
from modeldiff.steer.inputs import find_features
from modeldiff.steer.transfer_settings import TransferSettings
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.activations import SideInfo
from modeldiff.workspace.files import read_json


@dataclass(frozen=True)
class TransferInputs:
    """Found and opened; no model is loaded."""

    features: Artifact
    crosscoder: Artifact
    stitch: Artifact
    dictionary: Crosscoder
    maps: Stitch
    alive_F: torch.Tensor
    """bool: features that fire somewhere in the activations."""
    info: dict[str, SideInfo]
    """By side."""

    def model(self, side: str, settings: TransferSettings) -> Harvested:
        """The model of a side, not loaded yet. Raises InputError when it is not known."""
        path = settings.model_path_a if side == "a" else settings.model_path_b
        return harvested(side, self.info[side], self.features.ref, path)


def find_inputs(settings: TransferSettings, workspace: Workspace) -> TransferInputs:
    """The artifacts that the settings mean.

    Raises:
        InputError: one is missing (the command that makes it is named), they are of different pairs of models, or the
            crosscoder has no shared features.
        DamagedError: a file of theirs is damaged.
    """
    features = find_features(workspace, settings.crosscoder, settings.features)
    source = workspace.source_of(features, "crosscoder")
    dictionary = load(source)
    if not dictionary.sizes["shared"]:
        raise InputError(f"{source.ref} has no shared features, and only those are in both models")
    count_F = torch.from_numpy(load_file(features.file(STATISTICS_NAME))["firing_count"])
    if len(count_F) != dictionary.n_features:
        raise DamagedError(
            f"{features.ref}: has {len(count_F)} features, {source.ref} {dictionary.n_features}; {features.mend}"
        )
    sides = read_json(features.file("features.json"))["sides"]
    info = {side: side_info(sides[side]) for side in ("a", "b")}
    stitch = find_stitch(workspace, features.manifest.inputs["activations"], settings.stitch, of_others=True)
    maps = load_stitch(stitch)
    _check_fit(stitch, maps, features, info)
    if settings.features is None:
        say(f"shared features of {source.ref}, as measured in {features.ref}; maps of {stitch.ref}")
    return TransferInputs(features, source, stitch, dictionary, maps, count_F > 0, info)


def _check_fit(stitch: Artifact, maps: Stitch, features: Artifact, info: dict[str, SideInfo]) -> None:
    """A stitch of other activations will do, if they are of the same layers."""
    for side, mine in info.items():
        theirs = side_info(maps.info["sides"][side])
        for what in ("width", "layer"):
            wanted, found = getattr(mine, what), getattr(theirs, what)
            if wanted != found and None not in (wanted, found):
                raise InputError(
                    f"{stitch.ref} maps activations of {what} {found} of model {side.upper()}, {features.ref} has "
                    f"{what} {wanted}: run `modeldiff features stitch --activations "
                    f"{features.manifest.inputs['activations'].label}`"
                )
