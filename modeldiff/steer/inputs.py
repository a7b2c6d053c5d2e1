"""Where commands of this room begin: the features artifact that a feature's number refers to."""

from __future__ import annotations

from modeldiff.errors import InputError
from modeldiff.workspace import Artifact, Workspace


def find_features(workspace: Workspace, crosscoder: str | None, features: str | None) -> Artifact:
    """The features called `features`; without it the latest of the crosscoder, or the latest of all.

    Raises:
        InputError: there are none, or those named were made from another crosscoder than the one named.
    """
    if crosscoder is None:
        return workspace.find("features", features)
    source = workspace.find("crosscoder", crosscoder)
    if features is not None:
        named = workspace.find("features", features)
        made_from = named.manifest.inputs["crosscoder"]
        if made_from.digest != source.manifest.digest:
            raise InputError(
                f"{named.ref} was made from {made_from.label}, not from {source.ref}: leave out one of them"
            )
        return named
    for found in reversed(workspace.artifacts("features")):
        if found.manifest.inputs["crosscoder"].digest == source.manifest.digest:
            return found
    raise InputError(f"no features of {source.ref} yet: run `modeldiff features --crosscoder {source.ref}` first")
