"""What a measure of features is: a command, its artifact, and how it is shown beside the features."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from modeldiff.settings import HarvestedModels, Settings, setting, settings

if TYPE_CHECKING:
    import click

    from modeldiff.catalogue.table import FeatureRow
    from modeldiff.workspace import Artifact, Workspace


@dataclass(frozen=True)
class About:
    """Names of what the features of an artifact were made from, for commands that measure them further."""

    features: str
    crosscoder: str
    activations: str
    which: str
    """Options for a command that measures on what the crosscoder was trained on unless told otherwise."""
    other_crosscoder: str
    """The newest other one of the same activations; in capitals: for the reader to fill in."""


class Measure(ABC):
    """A measure of features. To add one, make a folder with a `MEASURE` beside the others and enter it in `MEASURES`:
    the command line, the Python API, `workspace list`, `features show` and "what is missing" follow.

    Attributes:
        settings: its settings class. This is imported for every `--help`, so it must not import torch.
        made_from: which artifacts are about some features: by input of the artifact, the input of the features that it
            must be ("features": the artifact itself).
        rehearsed: for `--plan`, number of pairs of the small run that tells what a large one takes; 0: no `--plan`,
            because the judge decides; grows: beginnings of the names of what takes time in proportion to the pairs, as
            `progress` shows them.
        summary: one line of help; about: the help's text; examples: arguments of the command, one line each.
    """

    settings: ClassVar[type[Settings]]
    made_from: ClassVar[Mapping[str, str]] = {"crosscoder": "crosscoder", "activations": "activations"}
    rehearsed: ClassVar[int] = 0
    grows: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str]
    about: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str:
        """The command `modeldiff features NAME`, `modeldiff.run_NAME` and the kind of its artifacts: the folder's."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def stage(self) -> str:
        """The module with its `run(settings, workspace, *, name, force)`, imported when it runs."""
        return f"{type(self).__module__}.run"

    def run(self, settings: Any, workspace: Workspace, *, name: str | None = None, force: bool = False) -> Artifact:
        """Make the artifact, or answer with the one that is there."""
        found: Artifact = importlib.import_module(self.stage).run(settings, workspace, name=name, force=force)
        return found

    def plan(self, settings: Any, workspace: Workspace) -> dict[str, Any]:
        """For `--plan`: see `rehearse`. Raises as `run`."""
        from modeldiff.workspace.rehearsal import Size, rehearse

        if settings.activations is None and isinstance(settings, OnModels):
            there = workspace.source_of(workspace.find("crosscoder", settings.crosscoder), "activations")
        else:
            there = workspace.find("activations", settings.activations)
        pairs = min(settings.pairs, int(there.metrics["pairs"]))
        sizes = {"pairs": Size(pairs, self.rehearsed, self.grows)}
        return {"pairs": pairs, "rehearsal": rehearse(self.run, settings, sizes, workspace)}

    def options(self) -> list[click.Option]:
        """Options that only concern what is shown; they are given to `data` and `show`."""
        return []

    @abstractmethod
    def data(self, artifact: Artifact, **shown: Any) -> dict[str, Any]:
        """What `--json` prints besides the artifact itself."""

    @abstractmethod
    def show(self, artifact: Artifact, **shown: Any) -> None:
        """Print it."""

    def arguments(self, about: About) -> str:
        """Arguments of the command that measures these features."""
        return about.which

    def of_feature(self, artifact: Artifact, row: FeatureRow) -> dict[str, Any]:  # noqa: ARG002
        """What an artifact says about one feature, as JSON data; empty: nothing."""
        return {}

    def lines(self, found: dict[str, Any]) -> list[str]:  # noqa: ARG002
        """`of_feature`, with the artifact's `ref`, in lines for `features show`."""
        return []


@settings
class OnModels(HarvestedModels):
    """Settings of a measure that runs both models over windows of the texts that were harvested."""

    crosscoder: str | None = setting(default=None, result=False)
    """The crosscoder: a version, `crosscoder:2`, or a name. Default: the latest."""

    activations: str | None = setting(default=None, result=False)
    """The activations, with their texts, to measure on. Default: those the crosscoder was trained on."""

    pairs: int = setting(default=20_000, least=1)
    """Measure on about this many pairs, in whole windows of text spread evenly over the activations."""

    outlier_factor: float | None = setting(default=None, least=0)
    """Leave out pairs whose norm, on either side, exceeds this many times the median norm; 0 keeps all. Default: as in
    training, for what it never saw means nothing."""

    batch_tokens: int | None = setting(default=None, result=False, least=1)
    """Padded tokens per batch. Default: by the device and the size of the vocabulary."""
