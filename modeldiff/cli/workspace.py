"""`modeldiff workspace`: what is in the workspace, is it sound, and making room."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli.common import artifact_json, examples, json_option, open_workspace, workspace_option
from modeldiff.console import progress, say
from modeldiff.errors import DamagedError, InputError
from modeldiff.format import flat, plain, print_json, table

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact, Workspace


@click.group("workspace", epilog=examples("modeldiff workspace list", "modeldiff workspace verify"))
def command() -> None:
    """List, show, verify, remove and clean artifacts."""


def _add(function: Any, *params: click.Parameter, help: str, epilog: str, short_help: str | None = None) -> None:
    options = [*params, workspace_option(), json_option()]
    command.add_command(
        click.Command(
            function.__name__.strip("_"),
            params=options,
            callback=click.pass_context(function),
            help=help,
            short_help=short_help,
            epilog=epilog,
        )
    )


def _list(ctx: click.Context, workspace_folder: Path | None, as_json: bool, kind: str | None) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    every, damaged = workspace.survey()
    found = [a for a in every if kind in (None, a.folder.parent.name)]
    if as_json:
        rows = [{**artifact_json(a), "bytes": _size(a)} for a in found]
        print_json(
            {"workspace": str(workspace.folder), "artifacts": rows, "damaged": [str(folder) for folder, _ in damaged]}
        )
        return
    if not found and not damaged:
        click.echo(f"{workspace.folder} has no artifacts yet: run `modeldiff demo` or `modeldiff harvest`")
        return
    from modeldiff.workspace.files import human_bytes

    table(
        f"{len(found)} artifacts in {workspace.folder}",
        [
            ("artifact", "left"),
            ("name", "left"),
            ("made (UTC)", "left"),
            ("size", "right"),
            ("took", "right"),
            ("from", "left"),
        ],
        [
            [
                a.ref,
                a.manifest.name or "",
                a.manifest.created[:16].replace("T", " "),
                human_bytes(_size(a)),
                f"{a.manifest.seconds:.0f} s",
                ", ".join(Path(one.label).name for one in a.manifest.inputs.values()),
            ]
            for a in found
        ],
    )
    for folder, why in damaged:
        say(f"damaged, not listed: {folder}: {why}")


def _show(ctx: click.Context, workspace_folder: Path | None, as_json: bool, ref: str) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    artifact = workspace.resolve(ref)
    if as_json:
        print_json({**artifact_json(artifact), "files": {n: e.size for n, e in artifact.manifest.files.items()}})
        return
    manifest = artifact.manifest
    from modeldiff.workspace.files import human_bytes

    click.echo(f"{artifact.ref}  {manifest.name or ''}".rstrip())
    click.echo(f"folder   {artifact.folder}")
    click.echo(
        f"made     {manifest.created}, {manifest.seconds:.0f} s, peak memory {human_bytes(manifest.peak_memory_bytes)}"
    )
    for name, one in manifest.inputs.items():
        click.echo(f"input    {name}: {one.label}  ({one.digest[:12]})")
    table("settings", [("setting", "left"), ("value", "left")], [[k, plain(v)] for k, v in manifest.settings.items()])
    table("metrics", [("metric", "left"), ("value", "left")], flat(manifest.metrics))
    table("files", [("file", "left"), ("size", "right")], [[n, human_bytes(e.size)] for n, e in manifest.files.items()])


def _verify(ctx: click.Context, workspace_folder: Path | None, as_json: bool, refs: tuple[str, ...]) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    wanted = [workspace.resolve(ref) for ref in refs] or workspace.artifacts()
    problems: dict[str, list[str]] = {str(f): [why] for f, why in workspace.damaged()} if not refs else {}
    total = sum(_size(a) for a in wanted)
    with progress("verify", total / 1e6, "MB") as bar:
        for artifact in wanted:
            found = artifact.problems(report=lambda size: bar.advance(size / 1e6))
            if found:
                problems[artifact.ref] = found
    if as_json:
        print_json({"verified": [a.ref for a in wanted], "problems": problems})
    else:
        for ref, found in problems.items():
            for one in found:
                click.echo(f"{ref}: {one}")
        click.echo(f"{len(wanted)} artifacts verified, {len(problems)} damaged")
    if problems:
        raise DamagedError(
            f"{len(problems)} damaged: run `modeldiff workspace remove {next(iter(problems))} --force`, "
            "then the command that made it again"
        )


def _remove(
    ctx: click.Context, workspace_folder: Path | None, as_json: bool, refs: tuple[str, ...], force: bool, yes: bool
) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    removed = []
    for ref in refs:
        folder, users = _to_remove(workspace, ref)
        if users and not force:
            raise InputError(
                f"{ref} is what {', '.join(u.ref for u in users)} was made from: remove that first, or add --force"
            )
        if not (yes or force) and not click.confirm(f"Remove {folder}?", err=True):
            continue
        workspace.remove(folder)
        removed.append(str(folder))
    if as_json:
        print_json({"removed": removed})
    else:
        click.echo(f"removed {', '.join(removed)}" if removed else "nothing removed")


def _to_remove(workspace: Workspace, ref: str) -> tuple[Path, list[Artifact]]:
    """The folder and what was made from it; a damaged manifest must not keep a folder from being removed."""
    kind, _, version = ref.rpartition(":")
    folder = workspace.folder / kind / version
    if kind and version.isdigit() and folder in [f for f, _ in workspace.damaged()]:
        return folder, []
    artifact = workspace.resolve(ref)
    return artifact.folder, workspace.users_of(artifact)


def _clean(ctx: click.Context, workspace_folder: Path | None, as_json: bool, yes: bool) -> None:
    from filelock import FileLock, Timeout

    from modeldiff.workspace.files import human_bytes

    workspace = open_workspace(ctx, workspace_folder)
    removed, freed = [], 0
    busy = False
    for folder in workspace.partials():
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"{folder} is being worked on: left alone")
            busy = True
            continue
        size = _bytes_in(folder)
        if yes or click.confirm(f"Remove unfinished work {folder} ({human_bytes(size)})?", err=True):
            shutil.rmtree(folder)
            removed.append(str(folder))
            freed += size
        lock.release()
        folder.with_suffix(".lock").unlink(missing_ok=True)
    cells = workspace.toy_cells
    if cells.is_dir() and not busy:  # what is being worked on may be a benchmark that writes them
        size = _bytes_in(cells)
        if yes or click.confirm(f"Remove the kept cells of toy benchmarks {cells} ({human_bytes(size)})?", err=True):
            shutil.rmtree(cells)
            removed.append(str(cells))
            freed += size
    if as_json:
        print_json({"removed": removed, "bytes": freed})
    else:
        click.echo(f"{len(removed)} pieces of unfinished work and kept cells removed, {human_bytes(freed)} freed")


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _size(artifact: Artifact) -> int:
    return sum(entry.size for entry in artifact.manifest.files.values())


_REFS = {"nargs": -1, "metavar": "REF..."}
_YES = click.Option(["--yes", "-y"], is_flag=True, help="Do not ask.")

_add(
    _list,
    click.Option(
        ["--kind"],
        metavar="KIND",
        help="Only this kind.",
    ),
    help="List the artifacts of the workspace, oldest first within a kind.",
    epilog=examples("modeldiff workspace list", "modeldiff workspace list --kind crosscoder --json"),
)
_add(
    _show,
    click.Argument(["ref"]),
    help="Settings, inputs, metrics and files of one artifact.",
    epilog=examples("modeldiff workspace show crosscoder:latest"),
)
_add(
    _verify,
    click.Argument(["refs"], **_REFS),  # type: ignore[arg-type]
    short_help="Read every byte and compare with the digests.",
    help="Read every byte and compare with the digests in the manifests (all artifacts unless some are named). "
    "Exit code 1 when something is damaged.",
    epilog=examples("modeldiff workspace verify", "modeldiff workspace verify activations:1 crosscoder:1"),
)
_add(
    _remove,
    click.Argument(["refs"], required=True, **_REFS),  # type: ignore[arg-type]
    click.Option(["--force"], is_flag=True, help="Also when other artifacts were made from it; does not ask."),
    _YES,
    help="Delete artifacts. Their version numbers are not given out again.",
    epilog=examples("modeldiff workspace remove steering:3 --yes"),
)
_add(
    _clean,
    _YES,
    short_help="Delete unfinished work, and the cells kept by toy.",
    help="Delete unfinished work of interrupted commands, and the cells that toy benchmarks keep for later ones. What "
    "another process works on is left alone; artifacts stay whole.",
    epilog=examples("modeldiff workspace clean --yes"),
)
