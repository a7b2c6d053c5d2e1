"""Several trainings, one after the other: each is the artifact that `train` makes of its settings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from modeldiff.console import say
from modeldiff.crosscoder.settings import TrainSettings
from modeldiff.crosscoder.training.run import prepare
from modeldiff.crosscoder.training.run import run as train
from modeldiff.errors import ModeldiffError
from modeldiff.workspace import Artifact, Workspace
from modeldiff.workspace.ranks import ranks


def combined(values: Mapping[str, Sequence[Any]], **common: Any) -> list[TrainSettings]:
    """The settings of every combination of one value for each field, the last field changing fastest, each once; a
    field without values keeps its default. Raises InputError: values that do not fit, or not together."""
    given = {name: several for name, several in values.items() if several}
    every = (dict(zip(given, chosen, strict=True)) for chosen in itertools.product(*given.values()))
    return list(dict.fromkeys(TrainSettings(**chosen, **common) for chosen in every))


def differing(trainings: Sequence[TrainSettings]) -> list[str]:
    """The fields in which they are not all the same."""
    names = [field.name for field in dataclasses.fields(TrainSettings)]
    return [name for name in names if len({getattr(one, name) for one in trainings}) > 1]


def run(trainings: Sequence[TrainSettings], workspace: Workspace, *, force: bool = False) -> list[Artifact | str]:
    """Make, or find, the crosscoder of each; in the place of one that fails, why, for it does not stop the others.
    Raises InputError: settings that do not fit the activations, before anything is trained."""
    ours = ranks()
    # What is the latest now may be no more when the last one begins.
    sources = {one.activations: workspace.find("activations", one.activations).ref for one in trainings}
    named = [dataclasses.replace(one, activations=sources[one.activations]) for one in trainings]
    if ours.first:
        for one in named:
            prepare(one, workspace, ours)
    made: list[Artifact | str] = []
    for number, one in enumerate(named, 1):
        told = ", ".join(f"{name} {getattr(one, name)}" for name in differing(named))
        say(f"{number}/{len(named)}: {told or 'train'} on {one.activations}")
        try:
            made.append(train(one, workspace, force=force))
        except ModeldiffError as error:
            if ours.world > 1:  # the others may be elsewhere in their work
                raise
            say(f"failed: {error}")
            made.append(str(error))
    return made
