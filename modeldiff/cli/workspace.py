"""`modeldiff workspace`: what is in the workspace, is it sound, and making room."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import artifact_json, examples, plain_command, references, settings_class
from modeldiff.console import confirm, echo, progress, say
from modeldiff.errors import DamagedError, InputError
from modeldiff.format import Columns, flat, print_json, table
from modeldiff.settings import RemoteCode
from modeldiff.settings_file import settings_of, to_toml

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact, Workspace

command = click.Group(
    "workspace",
    help="List, show, verify, remove and clean artifacts.",
    epilog=examples(["modeldiff workspace list", "modeldiff workspace verify"]),
)


def _subcommand(*lines: str, params: Sequence[click.Parameter] = (), short_help: str | None = None) -> Any:
    """Decorator: the function is the command of its name, and its docstring the help; lines: examples."""

    def add(run: Any) -> Any:
        help_text = inspect.cleandoc(run.__doc__)
        name = run.__name__.strip("_")
        command.add_command(plain_command(name, run, params=params, short_help=short_help, help=help_text, lines=lines))
        return run

    return add


_YES = click.Option(["--yes", "-y"], is_flag=True, help="Do not ask.")


@_subcommand(
    "modeldiff workspace list",
    "modeldiff workspace list --kind crosscoder --json",
    params=[click.Option(["--kind"], metavar="KIND", help="Only this kind.")],
)
def _list(workspace: Workspace, *, as_json: bool, kind: str | None) -> None:
    """List the artifacts of the workspace, oldest first within a kind."""
    from modeldiff.workspace.files import human_bytes

    every, damaged = workspace.survey()
    found = [a for a in every if kind in (None, a.folder.parent.name)]
    if as_json:
        rows = [{**artifact_json(a), "bytes": a.size} for a in found]
        broken = [str(folder) for folder, _ in damaged]
        print_json({"workspace": str(workspace.folder), "artifacts": rows, "damaged": broken})
        return
    if not found and not damaged:
        echo(f"{workspace.folder} has no artifacts yet: run `modeldiff demo` or `modeldiff harvest`")
        return
    columns: Columns = [("artifact", "left"), ("name", "left"), ("made (UTC)", "left")]
    columns += [("size", "right"), ("took", "right"), ("from", "left")]
    lines = []
    for a in found:
        made, took = a.manifest.created[:16].replace("T", " "), f"{a.manifest.seconds:.0f} s"
        inputs = ", ".join(Path(one.label).name for one in a.manifest.inputs.values())
        lines.append([a.ref, a.manifest.name or "", made, human_bytes(a.size), took, inputs])
    table(f"{len(found)} artifacts in {workspace.folder}", columns, lines)
    for folder, why in damaged:
        say(f"damaged, not listed: {folder}: {why}")


@_subcommand(
    "modeldiff workspace show crosscoder:latest",
    "modeldiff workspace show crosscoder:2 --config > mine.toml",
    params=[
        click.Argument(["ref"], shell_complete=references()),
        click.Option(["--config"], is_flag=True, help="Print a file for --config of the command that makes it again."),
    ],
)
def _show(workspace: Workspace, *, as_json: bool, ref: str, config: bool) -> None:
    """Settings, inputs, metrics and files of one artifact."""
    artifact = workspace.resolve(ref)
    if config:
        _show_config(artifact)
        return
    data = artifact_json(artifact) | {"files": {name: one.size for name, one in artifact.manifest.files.items()}}
    if as_json:
        print_json(data)
    else:
        table(artifact.ref, [("", "left"), ("value", "left")], flat(data))


def _show_config(artifact: Artifact) -> None:
    from modeldiff.workspace.workspace import command_of

    command = command_of(artifact.kind)
    cls = settings_class(click.get_current_context(), command.split()[1:])
    if cls is None:
        raise InputError(f"no command of this modeldiff makes {artifact.ref}")
    values = settings_of(artifact, cls)
    echo(f"# {command} --config FILE    makes {artifact.ref} again; paths are those that were given then")
    if any(artifact.settings.get(field.name) for field in dataclasses.fields(RemoteCode)):
        echo("# It was made with --trust-remote-code, which a file from a workspace does not give.")
    echo(*to_toml(values))


@_subcommand(
    "modeldiff workspace verify",
    "modeldiff workspace verify activations:1 crosscoder:1",
    params=[click.Argument(["refs"], nargs=-1, metavar="REF...", shell_complete=references())],
    short_help="Read every byte and compare with the digests.",
)
def _verify(workspace: Workspace, *, as_json: bool, refs: tuple[str, ...]) -> None:
    """Read every byte and compare with the digests in the manifests (all artifacts unless some are named). Exit code 1
    when something is damaged."""
    problems: dict[str, list[str]] = {}
    if refs:
        wanted = []
        for ref in refs:
            try:
                wanted.append(workspace.resolve(ref))
            except DamagedError as error:
                problems[ref] = [str(error)]
    else:
        wanted, damaged = workspace.survey()
        problems = {":".join(folder.relative_to(workspace.folder).parts): [why] for folder, why in damaged}
    with progress("verify", sum(a.size for a in wanted) / 1e6, "MB") as bar:
        for artifact in wanted:
            found = artifact.problems(report=lambda size: bar.advance(size / 1e6))
            if found:
                problems[artifact.ref] = found
    if as_json:
        print_json({"verified": [a.ref for a in wanted], "problems": problems})
    else:
        for ref, found in problems.items():
            echo(*(f"{ref}: {one}" for one in found))
        echo(f"{len(wanted)} artifacts verified, {len(problems)} damaged")
    if problems:
        raise DamagedError(
            f"{len(problems)} damaged or unreadable: where no other way is said, run `modeldiff workspace remove "
            f"{next(iter(problems))} --force`, then the command that made it again"
        )


@_subcommand(
    "modeldiff workspace remove steering:3 --yes",
    params=[
        click.Argument(["refs"], nargs=-1, required=True, metavar="REF...", shell_complete=references()),
        click.Option(["--force"], is_flag=True, help="Also what others were made from; does not ask."),
        _YES,
    ],
)
def _remove(workspace: Workspace, *, as_json: bool, refs: tuple[str, ...], force: bool, yes: bool) -> None:
    """Delete artifacts. Their version numbers are not given out again."""
    removed = []
    for ref in refs:
        folder, users = _to_remove(workspace, ref)
        if users and not force:
            raise InputError(
                f"{ref} is what {', '.join(u.ref for u in users)} was made from: remove that first, or add --force"
            )
        if yes or force or confirm(f"Remove {folder}?"):
            workspace.remove(folder)
            removed.append(str(folder))
    if as_json:
        print_json({"removed": removed})
    else:
        echo(f"removed {', '.join(removed)}" if removed else "nothing removed")


def _to_remove(workspace: Workspace, ref: str) -> tuple[Path, list[Artifact]]:
    """The folder and what was made from it; a damaged manifest must not keep a folder from being removed."""
    kind, _, version = ref.rpartition(":")
    folder = workspace.folder / kind / version
    if kind and version.isdigit() and folder in [f for f, _ in workspace.survey()[1]]:
        return folder, []
    artifact = workspace.resolve(ref)
    return artifact.folder, workspace.users_of(artifact)


@_subcommand(
    "modeldiff workspace clean --yes", params=[_YES], short_help="Delete unfinished work, and the cells kept by toy."
)
def _clean(workspace: Workspace, *, as_json: bool, yes: bool) -> None:
    """Delete unfinished work of interrupted commands, and the cells that toy benchmarks keep for later ones. What
    another process works on is left alone; artifacts stay whole."""
    from modeldiff.workspace.files import human_bytes, locked

    removed: dict[str, int] = {}

    def remove(folder: Path, what: str) -> None:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if yes or confirm(f"Remove {what} {folder} ({human_bytes(size)})?"):
            shutil.rmtree(folder)
            removed[str(folder)] = size

    busy = False
    for folder in workspace.partials():
        path = folder.with_suffix(".lock")
        try:
            with locked(path, wait=False):
                remove(folder, "unfinished work")
        except BlockingIOError:
            say(f"{folder} is being worked on: left alone")
            busy = True
        else:
            path.unlink(missing_ok=True)
    if workspace.toy_cells.is_dir() and not busy:  # what is being worked on may be a benchmark that writes them
        remove(workspace.toy_cells, "the kept cells of toy benchmarks")
    if workspace.folder.exists():
        with workspace.lock():
            for path in workspace.leftovers():
                removed[str(path)] = path.stat().st_size
                path.unlink()
    freed = sum(removed.values())
    if as_json:
        print_json({"removed": list(removed), "bytes": freed})
    else:
        echo(f"{len(removed)} pieces of unfinished work and kept cells removed, {human_bytes(freed)} freed")
