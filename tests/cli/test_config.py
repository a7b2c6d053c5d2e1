"""Settings from a file, and the file that makes an artifact again."""

import tomllib
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from modeldiff.cli.common import stage_command
from modeldiff.errors import InputError
from modeldiff.settings import RemoteCode, setting, settings
from modeldiff.settings_file import to_toml
from tests.cli.conftest import Call


@settings
class Tea(RemoteCode):
    leaves: int = setting(least=1)
    """How many leaves."""
    brew_time: float | None = setting(default=None, flag="--minutes")
    """Minutes."""
    sorts: tuple[str, ...] = setting(default=())
    """Which."""
    milk: bool = setting(default=False)
    """With milk."""


def made(*args: str | Path) -> Tea:
    """The settings that `tea` runs with."""
    seen: list[Any] = []

    def stage(asked: Tea, *_: Any, **__: Any) -> Any:
        seen.append(asked)

    command = stage_command("tea", Tea, stage, show=lambda _artifact: None, help="Tea.", lines=[])
    command.main([str(arg) for arg in args], standalone_mode=False)
    (asked,) = seen
    assert isinstance(asked, Tea)
    return asked


TOML = 'leaves = 3\nminutes = 1e-3\nsorts = ["a", "b"]\nmilk = true\n'
YAML = "# tea\nleaves: 3\nminutes: 1e-3\nsorts:\n  - a\n  - b\nmilk: true\n"


@pytest.mark.parametrize(("name", "text"), [("t.toml", TOML), ("t.yaml", YAML), ("t.YML", YAML)])
def test_a_file_gives_what_the_command_line_does_not(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert made("--config", path) == Tea(leaves=3, brew_time=0.001, sorts=("a", "b"), milk=True)
    won = made("--leaves", "5", "--sorts", "c", "--no-milk", "--config", path)
    assert won == Tea(leaves=5, brew_time=0.001, sorts=("c",), milk=False)


def test_only_a_file_of_the_users_own_allows_code_to_run(tmp_path: Path) -> None:
    path = tmp_path / "t.toml"
    path.write_text("leaves = 1\ntrust_remote_code = true\n")
    assert made("--config", path).trust_remote_code


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.yaml", "leafs: 3", "field 'leafs' is unknown to this command"),
        ("t.toml", "[tea]\nleaves = 3", "field 'tea' is unknown to this command"),
        ("t.yaml", "leaves: '3'", "'leaves' must be a whole number, found '3'"),
        ("t.toml", "leaves = true", "'leaves' must be a whole number, found True"),
        ("t.toml", "leaves = 0", "'leaves' must be at least 1, found 0"),
        ("t.yaml", "leaves:", "'leaves' must be a whole number, found None"),
        ("t.toml", 'sorts = "a"', "'sorts' must be a list, found 'a'"),
        ("t.toml", "brew_time = 2025-01-01", "'brew_time' must be a number"),
        ("t.toml", "brew_time = 1\nminutes = 2", "field 'minutes' is there twice"),
        ("t.yaml", "leaves: 1\nleaves: 2", "field 'leaves' is there twice"),
        ("t.yaml", "- leaves", "must hold names and values, like `k: 64`"),
        ("t.yaml", "3: leaves", "must hold names and values, like `k: 64`"),
        ("t.yaml", "leaves: !!python/object/apply:os.getpid []", "could not determine a constructor for the tag"),
        ("t.yaml", "leaves: [", "cannot be read: while parsing"),
        ("t.toml", "leaves", "cannot be read: Expected '='"),
        ("t.toml", "leaves = " + "[" * 9999, "cannot be read"),
        ("t.json", "{}", "has the suffix '.json': expected .toml, .yaml or .yml"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_name(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError) as error:
        made("--config", path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_there_is_no_such_file_or_nothing_of_what_is_needed_in_it(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"File .* does not exist"):
        made("--config", tmp_path / "no.toml")
    (tmp_path / "t.toml").write_text("milk = true")
    with pytest.raises(click.UsageError, match="Missing option '--leaves'"):
        made("--config", tmp_path / "t.toml")


def test_whatever_a_setting_holds_is_read_as_it_was_written_and_prints() -> None:
    values = {
        "a": 'é "q" \\ \n\t\x1b[2J\x7f\u202e\U0001f600\U000e0001',
        "b": [1, -2.5, 1e-30, 1e22],
        "c": [],
        "d": False,
    }
    lines = to_toml(values)
    assert all(line.isprintable() for line in lines)
    assert tomllib.loads("\n".join(lines)) == values


TRAIN = ["train", "--features", "40", "--k", "3", "--steps", "5", "--batch", "64", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("config")
    x = np.random.default_rng(0).standard_normal((2, 1500, 12), np.float32)
    for number, one in enumerate(x):
        np.save(folder / f"{number}.npy", one)
    return folder


def test_the_file_of_an_artifact_makes_it_again(folder: Path, call: Call) -> None:
    """Also when others have become the latest since; and it allows nothing that its maker was allowed."""
    workspace, (x, y) = folder / "ws", (str(folder / "0.npy"), str(folder / "1.npy"))
    for args in (
        ["harvest", "--import-a", x, "--import-b", y, "--trust-remote-code"],
        TRAIN,
        [*TRAIN, "--seed", "1", "--lr", "1e-3", "--name", "second"],
        ["features", "--crosscoder", "1"],
        ["features", "stitch"],
        ["features", "match", "second", "crosscoder:1"],
        ["harvest", "--import-a", y, "--import-b", x],
        [*TRAIN, "--seed", "2"],
    ):
        code, _, err = call(workspace, *args)
        assert code == 0, err
    made = {
        "activations:1": "harvest", "crosscoder:1": "train", "second": "train", "features:1": "features",
        "stitch:1": "features stitch", "match:1": "features match",
    }  # fmt: skip
    for ref, command in made.items():
        code, out, _ = call(workspace, "workspace", "show", ref, "--config")
        assert code == 0
        assert out.startswith(f"# modeldiff {command} --config FILE")
        assert "trust_remote_code" not in tomllib.loads(out)
        assert ("--trust-remote-code" in out) == (ref == "activations:1")
        (folder / "again.toml").write_text(out)
        allowed = ["--trust-remote-code"] if command == "harvest" else []
        _, _, err = call(workspace, *command.split(), "--config", str(folder / "again.toml"), *allowed)
        ref = "crosscoder:2" if ref == "second" else ref
        assert err.splitlines()[-1] == f"{ref} is up to date"


def test_what_no_command_makes_has_no_file(folder: Path, call: Call, fails: Any) -> None:
    from tests.made_workspace import KINDS, make_manifests

    workspace = make_manifests(folder / "manifests", len(KINDS)).folder
    assert "no command has its setting 'setting_0'" in fails(2, workspace, "workspace", "show", "toy:1", "--config")
    (workspace / "toy").rename(workspace / "tea")
    path = workspace / "tea" / "1" / "manifest.json"
    from tests.cli.test_workspace import rewritten

    rewritten(path.parent, kind="tea")
    assert "no command of this modeldiff makes tea:1" in fails(2, workspace, "workspace", "show", "tea:1", "--config")
