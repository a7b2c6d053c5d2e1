"""What a shell is offered at the tab key."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

from click.shell_completion import ShellComplete

from modeldiff.cli.main import cli
from tests.cli.conftest import Call
from tests.cli.test_startup import COMPUTING, loaded_by
from tests.made_workspace import make_manifests


def offered(workspace: Path, *words: str) -> list[str]:
    """For the last of the words, which is begun."""
    *before, begun = words
    made = ShellComplete(cli, {}, "modeldiff", "_MODELDIFF_COMPLETE")
    return [one.value for one in made.get_completions(["--workspace", str(workspace), *before], begun)]


def test_commands_options_choices_and_references(tmp_path: Path) -> None:
    folder = make_manifests(tmp_path / "ws", 11).folder
    assert offered(folder, "work") == ["workspace"]
    assert offered(folder, "train", "--plan", "--proc") == ["--processes"]
    assert offered(folder, "features", "--exclusive", "") == ["A", "B"]
    every = offered(folder, "workspace", "show", "")
    assert len(every) == 11
    crosscoders = ["crosscoder:1", "crosscoder:2"]
    for words in (["workspace", "remove"], ["features", "--crosscoder"], ["features", "match", crosscoders[0]]):
        assert offered(folder, *words, "crosscoder:") == crosscoders
    assert offered(folder, "train", "--features", "") == [], "a number of features, no artifact"
    assert offered(tmp_path / "none", "workspace", "show", "") == []


def test_a_name_that_a_shell_would_obey_is_not_offered(tmp_path: Path) -> None:
    (artifact,) = make_manifests(tmp_path / "ws", 1).artifacts()
    for name in ("first-try", "x;reboot", "$(reboot)", "*", "a b"):
        dataclasses.replace(artifact.manifest, name=name).write(artifact.folder)
        names = offered(tmp_path / "ws", "workspace", "show", "")
        assert names == ["activations:1", *(["first-try"] if name == "first-try" else [])]


def test_the_script_is_one_that_the_shell_reads(tmp_path: Path, call: Call) -> None:
    for shell in ("bash", "zsh", "fish"):
        code, script, _ = call(tmp_path, "completion", shell)
        assert code == 0
        assert "_MODELDIFF_COMPLETE" in script
        if shell == "bash":
            assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    _, loaded = loaded_by([["completion", "bash"]])
    assert not loaded["completion bash"] & COMPUTING
