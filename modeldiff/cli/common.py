"""What the commands share: options made from a stage's settings, options of every command, and printing."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from modeldiff.console import muted
from modeldiff.format import print_json
from modeldiff.records import hints
from modeldiff.settings import Settings, field_docs, option_of, own_first

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact, Workspace


@dataclasses.dataclass
class Context:
    """What the group hands to its commands."""

    folder: Path | None
    """`--workspace` given before the command."""


class Command(click.Command):
    """A command whose variadic options take several values: `--texts a.txt b.txt --pairs 100`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, expand_variadic(args, variadic_names(self)))


class Group(click.Group):
    """A command with subcommands that also runs without one, variadic and required options included.

    Its own options stand before the subcommand's name, and what stands behind that is the subcommand's alone. Options
    that are required without a subcommand are not with one.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = self._subcommand_at(args)
        ctx.meta[self._key] = at < len(args)
        return super().parse_args(ctx, expand_variadic(args[:at], variadic_names(self)) + args[at:])

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        params = super().get_params(ctx)
        return [_optional(one) for one in params] if ctx.meta.get(self._key, False) else params

    @property
    def _key(self) -> str:
        return f"modeldiff.subcommand of {self.name}"

    def _subcommand_at(self, args: list[str]) -> int:
        """Index of the subcommand's name; the number of arguments where there is none."""
        options = [one for one in self.params if isinstance(one, click.Option)]
        single = {opt for one in options if not (one.is_flag or one.multiple) for opt in one.opts}
        variadic = variadic_names(self)
        inside, expects_value = False, False
        for index, arg in enumerate(args):
            if expects_value:
                expects_value = False
            elif arg.startswith("-") and len(arg) > 1 and not _is_number(arg):
                inside = arg in variadic
                expects_value = inside or arg in single
            elif not inside:
                return index
        return len(args)


def _optional(param: click.Parameter) -> click.Parameter:
    made = copy.copy(param)
    made.required = False
    return made


def variadic_names(command: click.Command) -> set[str]:
    """The option strings of `command` that take one or more values."""
    return {opt for p in command.params if isinstance(p, click.Option) and p.multiple for opt in p.opts}


def expand_variadic(args: list[str], names: set[str]) -> list[str]:
    """`--texts a b` becomes `--texts a --texts b`. A value ends at the next option; a negative number is a value, and
    so is a range that begins with one (-4:4:0.5)."""
    expanded: list[str] = []
    current: str | None = None
    expects_value = False
    for index, arg in enumerate(args):
        if arg == "--":
            return expanded + args[index:]
        if expects_value:
            expanded.append(arg)
            expects_value = False
        elif arg.startswith("-") and len(arg) > 1 and not _is_number(arg):
            current = arg if arg in names else None
            expects_value = current is not None
            expanded.append(arg)
        elif current is not None:
            expanded += [current, arg]
        else:
            expanded.append(arg)
    return expanded


def _is_number(text: str) -> bool:
    try:
        float(text.partition(":")[0])
    except ValueError:
        return False
    return True


def settings_options(cls: type[Settings]) -> list[click.Parameter]:
    """One option for each field of a settings class; the field's docstring is its help."""
    types_of, docs = hints(cls), field_docs(cls)
    return [_option(field, types_of[field.name], docs[field.name]) for field in own_first(cls)]


def _option(field: dataclasses.Field[Any], hint: Any, doc: str) -> click.Parameter:
    if field.metadata["argument"]:
        return click.Argument([field.name], nargs=-1, metavar=f"{field.name.upper()}...")
    flag, required = option_of(field), field.default is dataclasses.MISSING
    kwargs: dict[str, Any] = {"help": doc, "required": required}
    if not required:
        kwargs |= {"default": field.default, "show_default": field.default not in (None, ())}
    if hint is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", field.name], **kwargs)
    inner = _without_none(hint)
    if typing.get_origin(inner) is tuple:
        inner = typing.get_args(inner)[0]
        kwargs |= {"multiple": True, "metavar": _metavar(inner) + "..."}
    return click.Option([flag, field.name], type=_click_type(inner), **kwargs)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (inner,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
        return inner
    return hint


def _click_type(hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        return click.Choice(list(typing.get_args(hint)))
    return click.Path(path_type=Path) if hint is Path else hint


def _metavar(hint: Any) -> str:
    return {float: "NUMBER", int: "INTEGER", Path: "FILE"}.get(hint, "TEXT")


def workspace_option() -> click.Option:
    """`--workspace` after the command; it wins over the one before."""
    return click.Option(
        ["--workspace", "workspace_folder"],
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Where artifacts are kept.  [default: MODELDIFF_WORKSPACE, else ./modeldiff-workspace]",
    )


def json_option() -> click.Option:
    return click.Option(["--json", "as_json"], is_flag=True, help="Print JSON to stdout instead of text.")


def produce_options() -> list[click.Option]:
    """Options of every command that makes an artifact."""
    return [
        click.Option(["--name"], metavar="LABEL", help="A name for the artifact, to refer to it by."),
        click.Option(["--force"], is_flag=True, help="Run even when the cached artifact is up to date."),
        workspace_option(),
        json_option(),
    ]


def examples(*lines: str) -> str:
    """The epilog of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def open_workspace(ctx: click.Context, folder: Path | None) -> Workspace:
    """The workspace that the options, the environment or the default name."""
    from modeldiff.workspace import Workspace

    return Workspace(folder or ctx.find_object(Context).folder)  # type: ignore[union-attr]


def make_settings(cls: type[Settings], values: dict[str, Any]) -> Any:
    """Take the settings' fields out of the parsed options and make the settings (which validates them)."""
    names = [field.name for field in dataclasses.fields(cls) if field.name in values]
    return cls(**{name: values.pop(name) for name in names})


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    """What `--json` prints about an artifact."""
    manifest = artifact.manifest
    return {
        "ref": artifact.ref,
        "name": manifest.name,
        "folder": str(artifact.folder),
        "created": manifest.created,
        "settings": manifest.settings,
        "inputs": {name: dataclasses.asdict(one) for name, one in manifest.inputs.items()},
        "metrics": manifest.metrics,
        "seconds": manifest.seconds,
    }


def stage_command(
    name: str,
    settings: type[Settings],
    stage: str,
    *,
    show: Callable[..., None],
    data: Callable[..., dict[str, Any]] = lambda _artifact, **_shown: {},
    options: Sequence[click.Option] = (),
    instead: Callable[..., bool] | None = None,
    short_help: str | None = None,
    help: str,
    lines: Sequence[str],
) -> Command:
    """The command of a stage: its settings as options, one artifact, shown as text or as JSON.

    Args:
        stage: the module with `run(settings, workspace, *, name, force)`, imported when the command runs.
        show: prints the artifact; data: what `--json` prints besides the artifact itself.
        options: what only concerns what is shown, given to both.
        instead: called before the stage with the settings, the workspace, `as_json` and the options; True: it has done
            what was asked for, and nothing is made.
        lines: examples of the command.
    """

    def callback(
        ctx: click.Context, name: str | None, force: bool, workspace_folder: Path | None, as_json: bool, **values: Any
    ) -> None:
        workspace = open_workspace(ctx, workspace_folder or ctx.meta.get("modeldiff.workspace"))
        made = make_settings(settings, values)
        if instead is not None and instead(made, workspace, as_json=as_json, **values):
            return
        artifact: Artifact = importlib.import_module(stage).run(made, workspace, name=name, force=force)
        if muted():  # one process of the run speaks
            return
        if as_json:
            print_json({**artifact_json(artifact), **data(artifact, **values)})
        else:
            show(artifact, **values)

    return Command(
        name,
        params=[*settings_options(settings), *options, *produce_options()],
        callback=click.pass_context(callback),
        short_help=short_help,
        help=help,
        epilog=examples(*lines),
    )
