"""The command line's frame: options from settings, options of several values, groups, errors and help."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from modeldiff.cli.common import plain_command, stage_command
from modeldiff.cli.main import run
from modeldiff.settings import Settings, setting, settings
from modeldiff.workspace import Workspace
from tests.cli.commands import command_paths

ABOUT: dict[str, Any] = {"help": "Tea.", "lines": []}


def several(name: str) -> click.Option:
    return click.Option([name], multiple=True)


@pytest.mark.parametrize(
    ("given", "texts", "strengths", "pairs"),
    [
        ("--texts a b --pairs 3", ["a", "b"], [], 3),
        ("--pairs 3 --texts a --texts b c", ["a", "b", "c"], [], 3),
        ("--strength -4 -1.5 2 --texts a", ["a"], ["-4", "-1.5", "2"], None),
        ("--strength -4:4:0.5 -8:-4:1 --pairs 1", [], ["-4:4:0.5", "-8:-4:1"], 1),
        ("--texts=a b", ["a", "b"], [], None),
        ("--texts -odd-name b", ["-odd-name", "b"], [], None),
        ("--workspace --texts --json --texts a --strength 1 2", ["a"], ["1", "2"], None),
    ],
)
def test_options_of_several_values(given: str, texts: list[str], strengths: list[str], pairs: int | None) -> None:
    seen: dict[str, Any] = {}
    params = [several("--texts"), several("--strength"), click.Option(["--pairs"], type=int)]
    command = plain_command("tea", lambda _workspace, **values: seen.update(values), params=params, **ABOUT)
    command.main(given.split(), standalone_mode=False)
    assert seen == {"texts": tuple(texts), "strength": tuple(strengths), "pairs": pairs, "as_json": "--json" in given}


@settings
class Tea(Settings):
    leaves: int = setting()
    """How many leaves,
    counted."""
    water: float | None = setting(default=None, flag="--of")
    """Litres."""
    where: tuple[Path, ...] = setting(default=())
    """Places."""
    milk: bool = setting(default=False)
    """With milk."""


def test_a_stage_has_its_settings_as_options_and_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own options stand before the subcommand's name and are required without one only."""
    seen: list[Any] = []

    def pour(_workspace: Workspace, *, as_json: bool, where: tuple[str, ...]) -> None:
        seen.append((as_json, where))

    def stage(asked: Tea, *_: Any, **__: Any) -> Any:
        seen.append(asked)
        return asked

    subcommand = plain_command("pour", pour, params=[several("--where")], **ABOUT)
    tea = stage_command("tea", Tea, stage, show=seen.append, subcommands=[subcommand], **ABOUT)

    def call(*args: str) -> list[Any]:
        seen.clear()
        tea.main(list(args), standalone_mode=False)
        return list(seen)

    asked = Tea(leaves=3, water=1.5, where=(Path("a"), Path("pour")), milk=True)
    assert call("--leaves", "3", "--of", "1.5", "--milk", "--where", "a", "pour") == [asked, asked]
    assert call("pour", "--where", "x", "y", "--json") == [(True, ("x", "y"))]
    assert call("--of", "2", "--milk", "pour") == [(False, ())]
    for args in (["--milk"], ["--milk", "--where", "pour"], []):
        with pytest.raises(click.UsageError, match="Missing option '--leaves'"):
            call(*args)
    with pytest.raises(click.UsageError, match="No such command 'drink'"):
        call("--leaves", "3", "drink")
    call("--help")
    assert "How many leaves, counted.  [required]" in capsys.readouterr().out


@pytest.mark.parametrize("path", command_paths(), ids=" ".join)
def test_help_has_an_example_and_says_each_subcommand_in_one_line(
    path: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run([*path, "--help"])
    shown = capsys.readouterr().out
    assert f"  {' '.join(['modeldiff', *path])}" in shown.split("Examples:\n")[1]
    listed = shown.partition("Commands:\n")[2].split("\n\n")[0].splitlines()
    assert all(line[2] != " " and line.endswith(".") and "..." not in line and len(line) <= 80 for line in listed)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["harvest"], "--model-a is missing"),
        (["diff", "--model-a", "x", "--model-b", "y"], "Missing option '--texts'; see `modeldiff diff --help`"),
        (["train"], "no activations in"),
        (["train", "--seed", "9" * 30], "Invalid value for '--seed': a number of more than 64 bits"),
        (["features"], "no crosscoder in"),
        (["features", "--exclusive", "shared"], "'shared' is not one of 'A', 'B'"),
        (["workspace", "show", "crosscoder:1"], "no crosscoder in"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path: Path, fails: Callable[..., str], args: list[str], message: str) -> None:
    assert message in fails(2, tmp_path / "ws", *args)


def test_the_workspace_option_stands_before_or_after_and_beats_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(*args: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            run(list(args))
        return str(json.loads(capsys.readouterr().out)["workspace"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELDIFF_WORKSPACE", raising=False)
    assert listed("workspace", "list", "--json") == "modeldiff-workspace"
    monkeypatch.setenv("MODELDIFF_WORKSPACE", "from-environment")
    assert listed("workspace", "list", "--json") == "from-environment"
    assert listed("--workspace", "before", "workspace", "list", "--json") == "before"
    assert listed("workspace", "list", "--json", "--workspace", "after") == "after"
    assert listed("--workspace", "before", "workspace", "list", "--json", "--workspace", "after") == "after"
    with pytest.raises(SystemExit, match="2"):
        run(["--workspace", "before", "features", "--workspace", "between", "show", "1"])
    assert "no features in between" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []  # looking makes nothing
