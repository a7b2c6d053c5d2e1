"""The command line's frame: options from settings, variadic options, errors and help."""

import json
import os
from pathlib import Path

import click
import pytest

from modeldiff.cli.common import Command, Group, expand_variadic, settings_options
from modeldiff.cli.main import _COMMANDS, cli, run
from modeldiff.settings import Settings, setting, settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("--texts a b --pairs 3", "--texts a --texts b --pairs 3"),
        ("--strength -4 -1.5 2", "--strength -4 --strength -1.5 --strength 2"),
        ("--strength -4:4:0.5 -8:-4:1", "--strength -4:4:0.5 --strength -8:-4:1"),
        ("--texts a --texts b", "--texts a --texts b"),
        ("--pairs 3 rest", "--pairs 3 rest"),
        ("--texts -odd-name b", "--texts -odd-name --texts b"),
        ("--texts a -- b", "--texts a -- b"),
        ("--texts", "--texts"),
    ],
)
def test_variadic_options(given: str, expected: str) -> None:
    assert expand_variadic(given.split(), {"--texts", "--strength"}) == expected.split()


@settings
class Tea(Settings):
    leaves: int = setting()
    """How many leaves,
    counted."""
    water: float | None = setting(default=None, flag="--of")
    """Litres."""
    where: tuple[Path, ...] = setting(default=(), variadic=True)
    """Places."""
    milk: bool = setting(default=False)
    """With milk."""


def test_options_are_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    seen = {}
    command = Command("tea", params=settings_options(Tea), callback=lambda **values: seen.update(values))
    command.main(["--leaves", "3", "--where", "a", "b", "--milk"], standalone_mode=False)
    assert Tea(**seen) == Tea(leaves=3, where=(Path("a"), Path("b")), milk=True)
    with pytest.raises(click.MissingParameter):
        command.main([], standalone_mode=False)
    command.main(["--help"], standalone_mode=False)
    assert "How many leaves, counted." in capsys.readouterr().out


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_has_help_with_an_example(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.epilog is not None
    assert f"modeldiff {name}" in command.epilog
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            assert f"modeldiff {name} {inner.name}" in (inner.epilog or ""), inner.name


@pytest.mark.parametrize("group", [[], ["features"], ["steer"], ["workspace"]])
def test_the_list_of_commands_says_each_in_one_line(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run([*group, "--help"])
    commands = capsys.readouterr().out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert all(line[2] != " " and line.endswith(".") and "..." not in line and len(line) <= 80 for line in commands)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["bogus"], 2, "No such command 'bogus'"),
        (["train", "--bogus"], 2, "No such option"),
        (["train", "--k", "many"], 2, "Invalid value for '--k'"),
        (["harvest"], 2, "--model-a is missing"),
        (["train"], 2, "no activations in"),
        (["features"], 2, "no crosscoder in"),
        (["workspace", "show", "crosscoder:1"], 2, "no crosscoder in"),
    ],
)
def test_a_users_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(["--workspace", str(tmp_path / "ws"), *args])
    assert caught.value.code == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_workspace_option_stands_before_or_after_and_beats_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(*args: str) -> str:
        with pytest.raises(SystemExit) as caught:
            run(list(args))
        assert caught.value.code == 0
        return str(json.loads(capsys.readouterr().out)["workspace"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELDIFF_WORKSPACE", raising=False)
    assert listed("workspace", "list", "--json") == "modeldiff-workspace"
    monkeypatch.setenv("MODELDIFF_WORKSPACE", "from-environment")
    assert listed("workspace", "list", "--json") == "from-environment"
    assert listed("--workspace", "before", "workspace", "list", "--json") == "before"
    assert listed("workspace", "list", "--json", "--workspace", "after") == "after"
    assert listed("--workspace", "before", "workspace", "list", "--json", "--workspace", "after") == "after"
    assert os.listdir(tmp_path) == []  # looking makes nothing


def test_a_group_that_also_runs_alone() -> None:
    """Its variadic and required options stand before the subcommand; what stands behind is the subcommand's."""
    seen: list[tuple[str, dict[str, object]]] = []
    subcommand = Command(
        "pour",
        params=[click.Option(["--cups"], type=int), click.Option(["--where"], multiple=True)],
        callback=lambda **values: seen.append(("pour", values)),
    )

    def tea(ctx: click.Context, /, **values: object) -> None:
        seen.append(("tea" if ctx.invoked_subcommand is None else "before", values))

    group = Group(
        "tea",
        params=settings_options(Tea),
        callback=click.pass_context(tea),
        invoke_without_command=True,
        commands={"pour": subcommand},
    )

    def call(*args: str) -> list[tuple[str, dict[str, object]]]:
        seen.clear()
        group.main(list(args), standalone_mode=False)
        return list(seen)

    alone = {"leaves": 3, "water": 1.5, "where": (Path("a"), Path("pour")), "milk": True}
    assert call("--leaves", "3", "--of", "1.5", "--milk", "--where", "a", "pour") == [("tea", alone)]
    (before, _), (name, values) = call("pour", "--where", "x", "y", "--cups", "2")
    assert (before, name, values) == ("before", "pour", {"cups": 2, "where": ("x", "y")})
    (_, given), (_, values) = call("--milk", "--of", "2", "pour", "--cups", "2")
    assert given["milk"] is True
    assert values["cups"] == 2
    for args in (["--milk"], ["--milk", "--where", "pour"], []):
        with pytest.raises(click.MissingParameter):
            call(*args)
    with pytest.raises(click.UsageError, match="No such command 'drink'"):
        call("--leaves", "3", "drink")
