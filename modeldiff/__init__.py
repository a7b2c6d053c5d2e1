"""modeldiff: what does this language model do or represent that the other one does not?

All of it, or the stages one by one, as functions with the settings the command line has:

    import modeldiff

    workspace = modeldiff.Workspace("my-workspace")
    done = modeldiff.run_diff(modeldiff.DiffSettings(model_a=..., model_b=..., texts=(...,)), workspace)
    differences = modeldiff.Differences(done.contrast)

    modeldiff.run_harvest(modeldiff.HarvestSettings(model_a=..., model_b=..., texts=(...,)), workspace)
    modeldiff.run_train(modeldiff.TrainSettings(features=4096), workspace)
    table = modeldiff.FeatureTable(modeldiff.run_features(modeldiff.FeaturesSettings(), workspace))
    with modeldiff.steered(model, modeldiff.direction(workspace, 17, "A"), strength=2.0):
        model.generate(...)

Each stage returns an `Artifact`. Everything is imported on first use: `import modeldiff` alone loads nothing heavy.
README.md beside this file has a line about every name.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "modeldiff.workspace",
    "Workspace": "modeldiff.workspace",
    "ActivationStore": "modeldiff.workspace.activations",
    "ModeldiffError": "modeldiff.errors",
    "InputError": "modeldiff.errors",
    "DamagedError": "modeldiff.errors",
    "MachineError": "modeldiff.errors",
    "HarvestSettings": "modeldiff.harvest.settings",
    "ContinuationsSettings": "modeldiff.contrast.settings",
    "ContrastSettings": "modeldiff.contrast.settings",
    "DiffSettings": "modeldiff.diff.settings",
    "TrainSettings": "modeldiff.crosscoder.settings",
    "FeaturesSettings": "modeldiff.features.settings",
    "ImportSettings": "modeldiff.interchange.settings",
    "ReportSettings": "modeldiff.report.settings",
    "SteerSettings": "modeldiff.steer.settings",
    "TransferSettings": "modeldiff.steer.settings",
    "ToySettings": "modeldiff.toy.settings",
    "Crosscoder": "modeldiff.crosscoder",
    "FeatureRow": "modeldiff.catalogue.row",
    "FeatureTable": "modeldiff.catalogue.table",
    "read_explanations": "modeldiff.features.measures.explain.result",
    "load_stitch": "modeldiff.linear.stitch",
    "read_scores": "modeldiff.features.measures.score.result",
    "Continuations": "modeldiff.contrast.continuations",
    "read_contrast": "modeldiff.catalogue.contrast",
    "Difference": "modeldiff.catalogue.differences",
    "Differences": "modeldiff.catalogue.differences",
    "Direction": "modeldiff.catalogue.direction",
    "direction": "modeldiff.steer.steered",
    "steered": "modeldiff.steer.steered",
    "read_impact": "modeldiff.features.measures.impact.result",
    "read_match": "modeldiff.features.measures.match.result",
}
_STAGES = {
    "run_harvest": "modeldiff.harvest.run",
    "run_train": "modeldiff.crosscoder.training.run",
    "run_sweep": "modeldiff.crosscoder.training.sweep",
    "run_features": "modeldiff.features.run",
    "run_import": "modeldiff.interchange.run",
    "run_continuations": "modeldiff.contrast.continuations",
    "run_contrast": "modeldiff.contrast.run",
    "run_diff": "modeldiff.diff.run",
    "run_report": "modeldiff.report.run",
    "run_steer": "modeldiff.steer.run",
    "run_transfer": "modeldiff.steer.transfer",
    "run_toy": "modeldiff.toy.run",
}

# The settings and the `run_NAME` of every measure of features come on top.
__all__ = ["__version__", *_HOMES, *_STAGES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _STAGES:
        return importlib.import_module(_STAGES[name]).run
    if name.endswith("Settings") or name.startswith("run_"):
        found = _of_measures()
        if name in found:
            return found[name]
    raise AttributeError(f"module 'modeldiff' has no attribute {name!r}")


def _of_measures() -> dict[str, Any]:
    from modeldiff.features.measures import measures

    runs = {f"run_{one.name}": one.run for one in measures()}
    return runs | {one.settings.__name__: one.settings for one in measures()}


def __dir__() -> list[str]:
    return sorted([*__all__, *_of_measures()])
