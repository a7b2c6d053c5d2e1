"""`modeldiff steer transfer`: a direction of one model, moved to the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from modeldiff.cli.common import stage_command
from modeldiff.cli.steer_tables import Cell, Record, print_by_prompt, read_generations
from modeldiff.console import echo
from modeldiff.format import Columns, fixed, table
from modeldiff.steer.settings import TransferSettings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact

_MOST_ROWS = 30


def _info(artifact: Artifact) -> dict[str, Any]:
    from modeldiff.workspace.files import read_json

    return read_json(artifact.file("transfer.json"))


def _show(artifact: Artifact) -> None:
    """The rules beside each other, then the texts, in 80 columns."""
    info = _info(artifact)
    source, target = info["from"], info["to"]
    echo(f"{artifact.ref}: {info['origin']}, {source} -> {target}")
    echo(f"({info['features']}, {info['stitch']}, {info['shared_features']} shared features)")
    echo(f"held-out R² of the stitch: {fixed(info['stitch_r2'])}")
    for side, one in info["prompts"].items():
        silent = f", {one['silent']} without an answer" if one["silent"] else ""
        echo(f"contrast in {side.upper()}: {one['positive']} positive, {one['negative']} negative{silent}")
    if info["truth"]:
        _print_truth(info)
    else:
        _print_moved(info)
    echo(f"norm: of what strength 1 adds, in median norms of {target}'s activations.")
    print_by_prompt(
        read_generations(artifact),
        {"steered by": {"no_wrap": True}, "text": {"ratio": 1, "overflow": "fold"}},
        _labelled,
        expand=True,
    )


def _print_moved(info: dict[str, Any]) -> None:
    rows = []
    for index in range(len(info["source_norms"])):
        for rule, found in info["moved"].items():
            used = [f"{one['id']} ({one['weight']:.2f})" for one in found[index].get("features", [])[:5]]
            rows.append([str(index), rule, f"{found[index]['norm_in_medians']:.2f}", ", ".join(used) or "-"])
    columns: Columns = [("vector", "right"), ("rule", "left"), ("norm", "right")]
    table("", [*columns, ("features used most (cosine)", "left")], rows[:_MOST_ROWS])
    if len(rows) > _MOST_ROWS:
        echo(f"and {len(rows) - _MOST_ROWS} more rows (--json shows all)")


def _print_truth(info: dict[str, Any]) -> None:
    source, target, truth = info["from"], info["to"], info["truth"]
    rows = []
    for rule, found in info["moved"].items():
        one = truth["rules"][rule]
        rows.append([rule, f"{found[0]['norm_in_medians']:.2f}", f"{one['cosine']:.2f}", f"{one['random']:.2f}"])
    rows.append(["random", "-", "-", f"{truth['random_in_target']:.2f}"])
    columns: Columns = [("rule", "left")]
    columns += [(name, "right") for name in ("norm", f"cos in {target}", "random")]
    table("", columns, rows)
    echo(f"{target}'s own contrast: norm {truth['norm_in_medians']:.2f} medians; two halves of the prompts agree")
    halves = f"{truth['split_half_source']:.2f} in {source}, {truth['split_half_target']:.2f} in {target}"
    echo(f"with cosine {halves}.")
    echo(f"cos in {target}: cosine with {target}'s own contrast;")
    echo("random: 95% of random directions, moved or drawn there, stay below (absolute).")


def _labelled(written: Sequence[Record]) -> Iterator[list[Cell]]:
    """The unsteered text above those of each rule and strength."""
    several = any(one["vector"] for one in written)
    for one in written:
        label = one["rule"] if one["strength"] == 0 else f"{one['rule']} {one['strength']:+g}"
        label += f" ({one['vector']})" if several and one["strength"] else ""
        yield [("", label), ("", one["text"].strip())]


command = stage_command(
    "transfer",
    TransferSettings,
    "modeldiff.steer.transfer",
    show=_show,
    data=lambda artifact: {**_info(artifact), "generations": read_generations(artifact)},
    short_help="Move a direction from one model to the other.",
    help="Move a direction from one model to the other and measure how well it arrives.\n\nTwo rules beside each "
    "other: stitch (the matrix of `features stitch`) and paper (mean of the shared features whose decoders are "
    "nearest, eq. 13-17). With prompts, the same contrast is made in the target model and compared, beside "
    "random directions.",
    lines=[
        "modeldiff steer transfer --from A --from-prompts positive.jsonl negative.jsonl",
        "modeldiff steer transfer --from A --vector persona.npy --json",
        "modeldiff steer transfer --from B --vector-from-feature 412 \\",
        '    --prompt "I think" --strength 1 4',
    ],
)
