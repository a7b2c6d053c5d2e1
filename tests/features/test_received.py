"""A workspace that comes from somebody else: what was allowed there is allowed to nobody here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modeldiff.cli.main import run as run_cli
from modeldiff.features.run import run as run_features
from modeldiff.features.settings import FeaturesSettings
from modeldiff.harvest.run import run as run_harvest
from modeldiff.harvest.settings import HarvestSettings
from modeldiff.workspace.files import read_json
from tests.features.made_pair import make_pair

CODE = """
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel

class HomeConfig(GPT2Config):
    model_type = "home_made"

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        Path({mark!r}).touch()
        return super().from_pretrained(*args, **kwargs)

class HomeModel(GPT2LMHeadModel):
    config_class = HomeConfig
"""


def test_code_that_a_harvest_allowed_runs_in_later_commands_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, mark = make_pair(tmp_path), tmp_path / "this code was run"
    settings = made.activations.settings
    model, config = Path(settings["model_a"]), read_json(Path(settings["model_a"]) / "config.json")
    config |= {"model_type": "home_made"}
    config |= {"auto_map": {"AutoConfig": "code.HomeConfig", "AutoModelForCausalLM": "code.HomeModel"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "code.py").write_text(CODE.format(mark=str(mark)))
    values = {**settings, "texts": tuple(settings["texts"]), "trust_remote_code": True, "device": "cpu"}
    activations = run_harvest(HarvestSettings(**values), made.workspace)
    features = FeaturesSettings(activations=activations.ref, predictability=False, device="cpu", outlier_factor=0.0)
    run_features(features, made.workspace)
    assert "trust" not in activations.file("store.json").read_text()
    assert mark.exists()
    mark.unlink()

    def ends_with(code: int, *args: str) -> str:
        with pytest.raises(SystemExit) as caught:
            run_cli(["--workspace", str(made.workspace.folder), *args])
        said = capsys.readouterr().err
        assert caught.value.code == code, said
        return said

    steer = ("steer", "--model", "A", "--feature", "4", "--prompt", "a", "--max-new-tokens", "2", "--device", "cpu")
    on_models = ("--activations", activations.ref, "--pairs", "100", "--device", "cpu")
    for command in (steer, ("features", "evaluate", *on_models)):
        assert "read it, then run it with --trust-remote-code" in ends_with(2, *command)
        assert not mark.exists()
    ends_with(0, *steer, "--trust-remote-code")
    assert mark.exists()
