"""Texts in which it is known what each feature responds to, for the tests of explanations.

Documents of 32 words of a small vocabulary. In every second one stands "herb" (feature 0 of A fires on it alone), in
every third "trigger" (feature 1 of A fires on every word after it); feature 2 of A fires on random words of the source
"odd" alone. The shared features and those of B fire on random words everywhere.
"""

from __future__ import annotations

import random

import torch

from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.workspace import Artifact, Workspace
from tests.features.made_crosscoder import N_A, N_SHARED, WIDTH_A, WIDTH_B, made_crosscoder, publish
from tests.made_activations import make_activations

LENGTH = 32
ON, OFF = 1.0, 0.1
HERB, AFTER_TRIGGER, ODD = 0, 1, 2


def made_documents(count: int = 120, *, herb: str = "herb", seed: int = 0) -> list[list[str]]:
    draw = random.Random(seed)
    documents = []
    for number in range(count):
        words = [f"w{draw.randrange(40)}" for _ in range(LENGTH)]
        if number % 3 == 0:
            words[draw.randrange(4, 12)] = "trigger"
        if number % 2 == 0:
            words[draw.randrange(12, LENGTH)] = herb
        documents.append(words)
    return documents


def made_codes(documents: list[list[str]], herb: str = "herb", seed: int = 1) -> torch.Tensor:
    """(N, A's features + shared + B's) True where a feature fires."""
    draw = random.Random(seed)
    rows = []
    for number, words in enumerate(documents):
        for place, word in enumerate(words):
            odd = number % 4 in (1, 3) and draw.random() < 0.2
            rest = [draw.random() < 0.05 for _ in range(WIDTH_B)]
            rows.append([word == herb, "trigger" in words[:place], odd, *rest])
    return torch.tensor(rows)


def made_features(
    workspace: Workspace, documents: list[list[str]] | None = None, *, herb: str = "herb", examples: int = 5
) -> Artifact:
    """The features artifact of a crosscoder whose features fire as the module says."""
    documents = made_documents(herb=herb) if documents is None else documents
    fires = made_codes(documents, herb)
    n = len(fires)
    x_a, x_b = torch.full((n, WIDTH_A), OFF), torch.full((n, WIDTH_B), OFF)
    x_a[:, : N_A + N_SHARED][fires[:, : N_A + N_SHARED]] = ON
    x_b[:, :N_SHARED] = x_a[:, N_A : N_A + N_SHARED]
    x_b[:, N_SHARED : WIDTH_B - 1][fires[:, N_A + N_SHARED : N_A + WIDTH_B - 1]] = ON
    x_a[:, -1], x_b[:, -1] = 1.0, 1.0
    texts = [" ".join(words) for words in documents]
    sources = ["odd" if number % 2 else "even" for number in range(len(documents))]
    activations = make_activations(workspace, x_a, x_b, 1000, texts, sources=sources)
    publish(workspace, made_crosscoder(), activations)
    return run_features(
        FeaturesSettings(outlier_factor=0.0, device="cpu", examples=examples, predictability=False), workspace
    )
