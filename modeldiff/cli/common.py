"""What the commands share: options made from a stage's settings, the frame of a command, and `--json`."""

from __future__ import annotations

import dataclasses
import importlib
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from modeldiff.cli.plan import plan_option, print_plan
from modeldiff.console import muted
from modeldiff.errors import InputError, ModeldiffError
from modeldiff.format import flat, print_csv, print_json, table
from modeldiff.records import hints, to_json
from modeldiff.settings import Settings, field_docs, option_of, own_first
from modeldiff.settings_file import read_settings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact, Workspace


# Settings that name an artifact are called like its kind.
_KINDS = ("activations", "crosscoder", "features", "stitch", "continuations", "contrast")


class _Command(click.Command):
    """A command whose options of several values take all values up to the next option: `--texts a b --pairs 100`. A
    negative number is a value, and so is a range that begins with one (-4:4:0.5)."""

    settings: type[Settings] | None = None
    """Of the stage that it runs, if it does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._one_by_one(ctx, args))

    def _one_by_one(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments as click takes several values: `--texts a --texts b --pairs 100`."""
        several = self._several_values(ctx)
        rest, made = list(args), []
        # The options of a group end at the name of a subcommand.
        while rest and rest[0] != "--" and (_is_option(rest[0]) or ctx.allow_interspersed_args):
            made.append(rest.pop(0))
            name, given, _ = made[-1].partition("=")
            if name in several and not given:
                made += rest[:1]  # a value, whatever it looks like
                rest = rest[1:]
            while several.get(name) and rest and not _is_option(rest[0]):
                made += [name, rest.pop(0)]
        return made + rest

    def _several_values(self, ctx: click.Context) -> dict[str, bool]:
        """By name, whether an option takes several values; without flags, which take none."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option) and not param.is_flag]
        return {name: option.multiple for option in options for name in option.opts}


class _Group(_Command, click.Group):
    """Such a command with subcommands."""


def _is_option(text: str) -> bool:
    if not text.startswith("-") or text == "-":
        return False
    try:
        float(text.partition(":")[0])
    except ValueError:
        return True
    return False


def settings_options(cls: type[Settings], *, several: Collection[str] = ()) -> list[click.Parameter]:
    """One option for each field of a settings class; the field's docstring is its help. several: fields whose options
    take several values, none by default."""
    types_of, docs = hints(cls), field_docs(cls)
    return [
        _option(field, types_of[field.name], docs[field.name], several=field.name in several)
        for field in own_first(cls)
    ]


def _option(field: dataclasses.Field[Any], hint: Any, doc: str, *, several: bool) -> click.Parameter:
    if field.metadata["argument"]:
        complete = references(field.name.removesuffix("s"))
        return click.Argument([field.name], nargs=-1, metavar=f"{field.name.upper()}...", shell_complete=complete)
    flag = option_of(field)
    kwargs: dict[str, Any] = {"help": doc + "  [required]"}  # by `stage_command`: not where a subcommand is called
    if field.default is not dataclasses.MISSING:
        kwargs = {"help": doc, "default": field.default, "show_default": field.default not in (None, ())}
    if hint is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", field.name], **kwargs)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not type(None))
    if several:
        default = "" if field.default is None else f"  [default: {field.default}]"
        kwargs = {"help": doc + default, "default": (), "show_default": False}
        hint = tuple[hint, ...]
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
        metavar = {float: "NUMBER", int: "INTEGER", Path: "FILE"}.get(hint, "TEXT")
        if typing.get_origin(hint) is Literal:
            metavar = "|".join(typing.get_args(hint))
        kwargs |= {"multiple": True, "metavar": f"{metavar}..."}
    if hint is str and field.name in _KINDS:
        kwargs["shell_complete"] = references(field.name)
    return click.Option([flag, field.name], type=_click_type(hint), **kwargs)


def references(kind: str | None = None) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """For a shell that completes: the artifacts of a kind, or of all, by reference and by name."""

    def complete(ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
        from modeldiff.workspace import Workspace

        with suppress(ModeldiffError, OSError):
            found = Workspace(ctx.obj).artifacts(kind)
            names = [name for one in found for name in (one.ref, one.manifest.name) if name]
            # What a shell would take for more than a word is not put into its line.
            return [name for name in names if name.startswith(begun) and re.fullmatch(r"[\w.:-]+", name)]
        return []

    return complete


def _click_type(hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        return click.Choice(list(typing.get_args(hint)))
    if hint is int:
        return _Integer()
    return click.Path(path_type=Path) if hint is Path else hint


class _Integer(click.types.IntParamType):
    """One that NumPy and torch can hold."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number: int = super().convert(value, param, ctx)
        if not -(1 << 63) <= number < 1 << 63:
            self.fail("a number of more than 64 bits", param, ctx)
        return number


def workspace_option() -> click.Option:
    """`--workspace`, before or after a command's name; the last one wins. It becomes the context's object."""

    def keep(ctx: click.Context, _param: click.Parameter, folder: Path | None) -> None:
        ctx.obj = folder or ctx.obj

    return click.Option(
        ["--workspace"],
        type=click.Path(path_type=Path),
        metavar="DIR",
        callback=keep,
        expose_value=False,
        help="Where artifacts are kept.  [default: MODELDIFF_WORKSPACE, else ./modeldiff-workspace]",
    )


def config_option(cls: type[Settings], *, several: Collection[str] = ()) -> click.Option:
    """`--config`: a file gives what the command line does not; see settings_file.py."""

    def keep(ctx: click.Context, _param: click.Parameter, file: Path | None) -> None:
        if file is not None:
            ctx.default_map = read_settings(file, cls, several=several)

    return click.Option(
        ["--config"],
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        callback=keep,
        expose_value=False,
        is_eager=True,
        help="A .toml or .yaml file with settings of this command, by name: `k_start = 320` or `k-start: 320`. Options "
        "of the command line win over it. `modeldiff workspace show REF --config` writes one.",
    )


def settings_class(ctx: click.Context, words: Sequence[str]) -> type[Settings] | None:
    """Of the stage that the command with these words runs."""
    command: click.Command | None = ctx.find_root().command
    for word in words:
        command = command.get_command(ctx, word) if isinstance(command, click.Group) else None
    return getattr(command, "settings", None)


def artifact_json(artifact: Artifact) -> dict[str, Any]:
    """What `--json` prints about an artifact: its manifest without the files."""
    manifest = to_json(artifact.manifest)
    return {"ref": artifact.ref, "folder": str(artifact.folder)} | {k: v for k, v in manifest.items() if k != "files"}


def plain_command(
    name: str,
    run: Callable[..., None],
    *,
    params: Sequence[click.Parameter] = (),
    subcommands: Sequence[click.Command] = (),
    short_help: str | None = None,
    help: str,
    lines: Sequence[str],
) -> _Command:
    """A command that calls `run(workspace, as_json=..., **values of params)`.

    subcommands: called by a name behind this one's, in place of `run`; lines: examples of the command.
    """

    def callback(ctx: click.Context, **values: Any) -> None:
        if ctx.invoked_subcommand is None:
            from modeldiff.workspace import Workspace

            run(Workspace(ctx.obj), **values)

    about: dict[str, Any] = {
        "params": [
            *params,
            workspace_option(),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON to stdout instead of text."),
        ],
        "callback": click.pass_context(callback),
        "short_help": short_help,
        "help": help,
        "epilog": examples(lines),
    }
    if subcommands:
        return _Group(name, commands=subcommands, invoke_without_command=True, **about)
    return _Command(name, **about)


def stage_command(
    name: str,
    settings: type[Settings],
    stage: str | Callable[..., Artifact],
    *,
    show: Callable[..., None],
    data: Callable[..., dict[str, Any]] = lambda _artifact, **_shown: {},
    options: Sequence[click.Option] = (),
    rows: Callable[..., Iterable[dict[str, Any]]] | None = None,
    plan: str | Callable[[Any, Workspace], dict[str, Any]] | None = None,
    instead: Callable[..., Artifact | bool] | None = None,
    **about: Any,
) -> click.Command:
    """The command of a stage: its settings as options, one artifact, shown as text or as JSON.

    Args:
        stage: `run(settings, workspace, *, name, force)`, or the module that has it, imported when the command runs.
        show: prints the artifact; data: what `--json` prints besides the artifact itself.
        rows: what `--csv` prints; without it there is no such option.
        options: what only concerns what is shown, given to all three.
        plan: what `--plan` prints in place of a run, `plan(settings, workspace)`, or the module that has it; without it
            there is no such option.
        instead: called before the stage with the settings, the workspace, `as_json` and the options. An artifact that
            it returns is shown, and none is made; True: it has done all that was asked for.
        about: subcommands, help and examples, as for `plain_command`.
    """

    def run_and_show(
        workspace: Workspace, *, name: str | None, force: bool, as_json: bool, as_csv: bool = False, **values: Any
    ) -> None:
        from modeldiff.workspace.workspace import check_name

        check_name(name)  # before other stages run for this one
        for field in dataclasses.fields(settings):
            if field.default is dataclasses.MISSING and values[field.name] in (None, ()):
                raise click.UsageError(f"Missing option '{option_of(field)}'", click.get_current_context())
        if as_json and as_csv:
            raise InputError("--json and --csv are two ways to print: give one of them")
        made = settings(**{field.name: values.pop(field.name) for field in dataclasses.fields(settings)})
        if plan is not None and values.pop("plan"):
            planned = importlib.import_module(plan).plan if isinstance(plan, str) else plan
            print_plan(planned(made, workspace), as_json=as_json)
            return
        found = instead(made, workspace, as_json=as_json, **values) if instead is not None else False
        if found is True:
            return
        run = importlib.import_module(stage).run if isinstance(stage, str) else stage
        artifact: Artifact = found or run(made, workspace, name=name, force=force)
        if muted():  # one process of the run speaks
            return
        if as_csv and rows is not None:
            print_csv(rows(artifact, **values))
        elif as_json:
            print_json({**artifact_json(artifact), **data(artifact, **values)})
        else:
            show(artifact, **values)

    params = [
        *settings_options(settings),
        *options,
        click.Option(["--name"], metavar="LABEL", help="A name for the artifact, to refer to it by."),
        *([click.Option(["--csv", "as_csv"], is_flag=True, help="Print the list as CSV to stdout.")] if rows else []),
        *([plan_option()] if plan else []),
        click.Option(["--force"], is_flag=True, help="Run even when the cached artifact is up to date."),
        config_option(settings),
    ]
    command = plain_command(name, run_and_show, params=params, **about)
    command.settings = settings
    return command


def show_metrics(artifact: Artifact) -> None:
    table(artifact.ref, [("measured", "left"), ("value", "right")], flat(artifact.metrics))


def examples(lines: Sequence[str]) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
