"""modeldiff: what does this language model do or represent that the other one does not?

All of it, or the stages one by one, as functions with the settings the command line has:

    import modeldiff

    workspace = modeldiff.Workspace("my-workspace")
    done = modeldiff.run_diff(modeldiff.DiffSettings(model_a=..., model_b=..., texts=(...,)), workspace)
    differences = modeldiff.read_contrast(done.contrast)["differences"]

    modeldiff.run_harvest(modeldiff.HarvestSettings(model_a=..., model_b=..., texts=(...,)), workspace)
    modeldiff.run_train(modeldiff.TrainSettings(features=4096), workspace)
    features = modeldiff.run_features(modeldiff.FeaturesSettings(), workspace)
    modeldiff.run_steer(modeldiff.SteerSettings(model="A", feature=17, prompt=("I think",)), workspace)

Each stage returns an `Artifact`. Everything is imported on first use: `import modeldiff` alone loads nothing heavy.
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
    "EvaluateSettings": "modeldiff.features.evaluate_settings",
    "MatchSettings": "modeldiff.features.match_settings",
    "ExplainSettings": "modeldiff.features.explain.settings",
    "StitchSettings": "modeldiff.stitch.settings",
    "ScoreSettings": "modeldiff.features.score.settings",
    "ImpactSettings": "modeldiff.features.impact.settings",
    "SteerSettings": "modeldiff.steer.settings",
    "TransferSettings": "modeldiff.steer.transfer_settings",
    "ToySettings": "modeldiff.toy.settings",
    "Crosscoder": "modeldiff.crosscoder",
    "FeatureTable": "modeldiff.features.table",
    "read_explanations": "modeldiff.features.explain.stored",
    "load_stitch": "modeldiff.crosscoder.stitch",
    "read_scores": "modeldiff.features.score.result",
    "Continuations": "modeldiff.contrast.continuations",
    "read_contrast": "modeldiff.contrast.stored",
    "read_impact": "modeldiff.features.impact.result",
}
_STAGES = {
    "run_harvest": "modeldiff.harvest.run",
    "run_train": "modeldiff.crosscoder.run",
    "run_features": "modeldiff.features.run",
    "run_evaluate": "modeldiff.features.evaluate",
    "run_continuations": "modeldiff.contrast.continuations",
    "run_contrast": "modeldiff.contrast.run",
    "run_diff": "modeldiff.diff.run",
    "run_match": "modeldiff.features.match",
    "run_explain": "modeldiff.features.explain.run",
    "run_stitch": "modeldiff.stitch.run",
    "run_score": "modeldiff.features.score.run",
    "run_impact": "modeldiff.features.impact.run",
    "run_steer": "modeldiff.steer.run",
    "run_transfer": "modeldiff.steer.transfer",
    "run_toy": "modeldiff.toy.run",
}

__all__ = ["__version__", *_HOMES, *_STAGES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _STAGES:
        return importlib.import_module(_STAGES[name]).run
    raise AttributeError(f"module 'modeldiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
