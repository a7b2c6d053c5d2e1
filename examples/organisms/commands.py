"""The commands `evaluate` and `table`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .catalogue import PAIRS
from .results import METHODS


@click.command(
    "evaluate",
    epilog="Example: python -m examples.organisms evaluate --organisms organisms --out results --variant dev --seeds 0",
)
@click.option("--organisms", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of `make`.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of results.jsonl.")
@click.option("--only", "only", multiple=True, metavar="PAIR", help="Evaluate these pairs only (may be repeated).")
@click.option("--variant", type=click.Choice(["dev", "unseen"]), help="Evaluate the pairs of one variant only.")
@click.option("--seeds", default="0 1 2", show_default=True, metavar='"N ..."', help="Seeds of the crosscoder.")
@click.option("--method", "methods", multiple=True, help="Only these methods (may be repeated). Default: all.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--jobs", default=1, show_default=True, help="Pairs evaluated at the same time.")
@click.option("--threads", type=int, help="Threads of each. Default: the cores, shared out.")
@click.option("--keep", is_flag=True, help="Keep the workspaces, below OUT/work.")
@click.option("--quick", is_flag=True, help="Only to see that everything runs: the figures mean nothing.")
@click.argument("more", nargs=-1, metavar="")
def evaluate_command(
    organisms: Path,
    out: Path,
    only: tuple[str, ...],
    variant: str | None,
    seeds: str,
    methods: tuple[str, ...],
    device: str,
    jobs: int,
    threads: int | None,
    keep: bool,
    quick: bool,
    more: tuple[str, ...],
) -> None:
    """Run every method on every pair of finished organisms; finished rows are skipped."""
    from .evaluate import Plan, evaluate

    # "--seeds 0 1 2" and "--only NAME NAME" are understood too: what stands behind the first value.
    seeds = " ".join([seeds, *(one for one in more if one.isdecimal())])
    only += tuple(one for one in more if not one.isdecimal())
    unknown = [name for name in only if name not in {pair.name for pair in PAIRS}]
    if unknown:
        raise click.UsageError(f"no pair is called {unknown[0]!r}; there are {', '.join(pair.name for pair in PAIRS)}")
    if any(method not in METHODS for method in methods):
        raise click.UsageError(f"methods are {', '.join(METHODS)}")
    try:
        chosen = tuple(dict.fromkeys(map(int, seeds.split())))
    except ValueError:
        raise click.UsageError(f"--seeds expects whole numbers, found {seeds!r}") from None
    plan = Plan(organisms.resolve(), out.resolve(), chosen, device, methods or METHODS, keep, quick)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if evaluate(plan, only, variant, jobs, threads or max(1, cores // jobs)):
        raise SystemExit(1)


@click.command("table")
@click.option("--out", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of results.jsonl.")
def table_command(out: Path) -> None:
    """Write results.csv, table.md and recall.png from the results that are there."""
    from .table import write_all

    for path in write_all(out):
        click.echo(path)
