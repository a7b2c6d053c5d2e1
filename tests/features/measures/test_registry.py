"""A measure is one folder and its name in `MEASURES`: the command line, Python and the lists follow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.workspace import Workspace
from tests.features.made_crosscoder import made_pair

MEASURE = '''
from modeldiff.features.measures.measure import Measure
from modeldiff.settings import Settings, setting, settings


@settings
class PeakSettings(Settings):
    """Of which features."""

    features: str | None = setting(default=None, result=False)
    """The features. Default: the latest."""

    times: float = setting(default=1.0, above=0)
    """Multiply by this."""


class PeakMeasure(Measure):
    settings = PeakSettings
    made_from = {"features": "features"}
    summary = "How high each feature reaches."
    about = "Features -> peak."
    examples = ("", "--times 2")

    def data(self, artifact, **shown):
        return {"peaks": artifact.manifest.metrics["peaks"]}

    def show(self, artifact, **shown):
        print("peaks of", len(artifact.manifest.metrics["peaks"]), "features")

    def of_feature(self, artifact, row):
        return {"peak": artifact.manifest.metrics["peaks"][row.id]}

    def lines(self, found):
        return [f"peak          {found['peak']:.3f} ({found['ref']})"]


MEASURE = PeakMeasure()
'''
RUN = """
from modeldiff.catalogue.table import FeatureTable
from modeldiff.workspace import Order, produce


def run(settings, workspace, *, name=None, force=False):
    features = workspace.find("features", settings.features)
    def build(work):
        top = FeatureTable(features).statistics["max_activation"]
        return {"peaks": [settings.times * float(one) for one in top]}
    order = Order("peak", settings, {"features": features.as_input()}, 1)
    return produce(workspace, order, build, name=name, force=force)
"""
ENTERED = """
import sys
import modeldiff.features.measures as registry
registry.__path__.append(sys.argv.pop(1))
registry.MEASURES += ("peak",)
"""
COMMAND = ENTERED + "from modeldiff.cli.main import run\nrun(sys.argv[1:])\n"


def said(folder: Path, program: str, *args: str) -> str:
    root = str(Path(__file__).parents[3])
    found = subprocess.run(
        [sys.executable, "-c", program, str(folder / "more"), *args],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": root}, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_a_measure_that_is_entered_is_a_command_an_artifact_and_a_line_about_each_feature(tmp_path: Path) -> None:
    folder, workspace = tmp_path, Workspace(tmp_path / "ws")
    made_pair(workspace)
    run_features(FeaturesSettings(predictability=False, device="cpu", outlier_factor=0.0), workspace)
    (folder / "more" / "peak").mkdir(parents=True)
    (folder / "more" / "peak" / "__init__.py").write_text(MEASURE)
    (folder / "more" / "peak" / "run.py").write_text(RUN)
    at = ("--workspace", str(workspace.folder))
    assert said(folder, COMMAND, *at, "features", "peak") == "peaks of 10 features\n"
    peaks = json.loads(said(folder, COMMAND, *at, "features", "peak", "--times", "2", "--json"))
    shown = said(folder, COMMAND, *at, "features", "show", "3")
    assert f"peak          {peaks['peaks'][3]:.3f} (peak:2)" in shown
