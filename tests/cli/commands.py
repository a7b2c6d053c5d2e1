"""Every command of `modeldiff`, as the words that call it."""

from __future__ import annotations

import click

from modeldiff.cli.main import cli


def command_paths() -> list[list[str]]:
    """[[], ["demo"], ..., ["features"], ["features", "evaluate"], ...]: the program itself first."""
    return _below(cli, [])


def _below(command: click.Command, path: list[str]) -> list[list[str]]:
    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            found += _below(inner, [*path, name])
    return found
