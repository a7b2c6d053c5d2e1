"""Help, and what only reads manifests, must not wait for libraries that only computing needs."""

import json
import subprocess
import sys
from pathlib import Path

from tests.cli.commands import command_paths
from tests.made_workspace import make_manifests

COMPUTING = {"torch", "transformers", "tokenizers", "h5py", "numpy", "scipy", "sklearn", "matplotlib", "safetensors"}

# Runs command lines one after the other in one process. Writes, as the last line, which modules each one loaded.
CODE = """
import json, sys
from modeldiff.cli.main import run
loaded = []
for args in json.loads(sys.argv[1]):
    before = set(sys.modules)
    try:
        run(args)
    except SystemExit as done:
        assert done.code == 0, (args, done.code)
    loaded.append(sorted(set(sys.modules) - before))
print()
print(json.dumps(loaded))
"""


def loaded_by(commands: list[list[str]]) -> tuple[str, dict[str, set[str]]]:
    """(what they printed, top-level modules that each loaded and none before it had)."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    modules = [{name.partition(".")[0] for name in names} for names in json.loads(last)]
    return printed, {" ".join(args): names for args, names in zip(commands, modules, strict=True)}


def test_help_of_every_command_loads_nothing_heavy() -> None:
    commands = [[*path, "--help"] for path in command_paths()]
    printed, loaded = loaded_by(commands)
    for path in command_paths():
        assert f"Usage: {' '.join(['modeldiff', *path])} " in printed
    heavy = {command: names & (COMPUTING | {"rich"}) for command, names in loaded.items()}
    assert {command: names for command, names in heavy.items() if names} == {}


def test_the_list_of_a_workspace_loads_nothing_heavy(tmp_path: Path) -> None:
    workspace = make_manifests(tmp_path / "ws", 20)
    where = ["--workspace", str(workspace.folder)]
    printed, loaded = loaded_by([[*where, "workspace", "list"], [*where, "workspace", "show", "crosscoder:1"]])
    for artifact in workspace.artifacts():
        assert artifact.ref in printed
    assert {command: names & COMPUTING for command, names in loaded.items() if names & COMPUTING} == {}
