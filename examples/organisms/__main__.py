"""Command line: ``python -m examples.organisms make --out FOLDER``, from the repository root."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click

from .catalogue import ORGANISMS, organism
from .commands import evaluate_command, table_command
from .make import finished, make_one, write_table


@click.group()
def main() -> None:
    """Model organisms with known differences, made by short fine-tunes of the bundled models."""


main.add_command(evaluate_command)
main.add_command(table_command)


@main.command(
    "make",
    epilog="Example: python -m examples.organisms make --out organisms --variant dev --only class.dev",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder; each organism gets one in it.")
@click.option("--only", multiple=True, metavar="NAME", help="Make these only (may be repeated).")
@click.option("--variant", type=click.Choice(["dev", "unseen"]), help="Make the organisms of one variant only.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--jobs", default=1, show_default=True, help="Organisms made at the same time, a CPU core each.")
def make_command(out: Path, only: tuple[str, ...], variant: str | None, device: str, jobs: int) -> None:
    """Make organisms (finished ones are skipped) and the table of their checks, OUT/organisms.csv."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        wanted = [organism(name) for name in only] or ORGANISMS
    except KeyError as error:
        raise click.UsageError(error.args[0]) from None
    done = {truth["name"] for truth in finished(out)}
    names = [made.name for made in wanted if variant in (None, made.variant) and made.name not in done]
    click.echo(f"{len(names)} to make on {device}, {len(done)} finished before")
    out.mkdir(parents=True, exist_ok=True)
    if jobs == 1:
        for name in names:
            click.echo(make_one(name, out, device))
    else:
        with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
            for line in pool.map(make_one, names, [out] * len(names), [device] * len(names)):
                click.echo(line)
    click.echo(f"table: {write_table(out)}")


if __name__ == "__main__":
    main()
