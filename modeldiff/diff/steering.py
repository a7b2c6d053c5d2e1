"""Pushing the features of a list, so that its page can show what that does: each in the model that has it or says
more, at places where no listed difference holds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

import numpy as np

from modeldiff.catalogue.contrast import read_contrast, read_places
from modeldiff.catalogue.wording import steered_model
from modeldiff.contrast.continuations import Continuations
from modeldiff.diff.settings import DiffSettings
from modeldiff.lm.harvested import one_kept
from modeldiff.steer.run import run
from modeldiff.steer.settings import SteerSettings
from modeldiff.workspace import Artifact, Workspace

STRENGTHS = (0.5, 1.0, 2.0)
PROMPTS, TOKENS = 3, 32
# Characters before a place that a model goes on from: enough to know what it is about.
_CHARS = 200


def steer_listed(
    settings: DiffSettings, contrast: Artifact, continuations: Artifact, features: Artifact, workspace: Workspace
) -> list[Artifact]:
    """A steering for each difference that has a feature; none for a list of none. Raises InputError: as `steer`."""
    listed = read_contrast(contrast)["differences"]
    found = {one["feature"]: steered_model(one) for one in listed if one["feature"] is not None}
    if not found:
        return []
    return push_each(settings, found, continuations, read_places(contrast)[: len(listed)], features, workspace)


def push_each(
    settings: DiffSettings,
    found: Mapping[int, Literal["A", "B"]],
    continuations: Artifact,
    listed: list[np.ndarray],
    features: Artifact,
    workspace: Workspace,
) -> list[Artifact]:
    """A steering for each feature in the model that goes with it; listed: the places at which each difference holds."""
    prompts, chat = _prompts(Continuations(continuations), listed, settings.seed)
    made = []
    with one_kept():
        for feature, model in sorted(found.items(), key=lambda one: one[1]):  # each model is loaded once
            pushed = SteerSettings(
                model=model, feature=feature, strength=STRENGTHS, prompt=prompts, features=features.ref, chat=chat,
                max_new_tokens=TOKENS, device=settings.device, trust_remote_code=settings.trust_remote_code,
            )  # fmt: skip
            made.append(run(pushed, workspace))
    return made


def _prompts(
    continuations: Continuations, listed: list[np.ndarray], seed: int
) -> tuple[tuple[str, ...], Literal["yes", "no"]]:
    """Texts before random places at which no listed difference holds (or any, where there are no such), and whether
    they are a user's messages ("yes"), as they are where all texts are chats, or plain texts ("no")."""
    taken = set(np.concatenate([np.zeros(0, np.int32), *listed]).tolist())
    everywhere = range(len(continuations.places))
    places = [place for place in everywhere if place not in taken] or list(everywhere)
    records = {place: continuations.documents[continuations.places[place].document] for place in places}
    plain = [place for place in places if not records[place].messages]
    drawn = random.Random(seed).sample(plain or places, min(PROMPTS, len(plain or places)))
    if plain:
        return tuple(_end_of(continuations.before(place)) for place in drawn), "no"
    return tuple(str(records[place].messages[0]["content"]) for place in drawn), "yes"


def _end_of(text: str) -> str:
    """The last words of a text."""
    cut = text[-_CHARS:]
    return cut if len(text) <= _CHARS else cut.partition(" ")[2] or cut
