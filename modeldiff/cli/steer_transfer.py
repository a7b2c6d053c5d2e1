"""`modeldiff steer transfer`: a direction of one model, moved to the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from modeldiff.cli.common import (
    Command,
    artifact_json,
    console,
    examples,
    make_settings,
    open_workspace,
    print_json,
    produce_options,
    settings_options,
    table,
)
from modeldiff.steer.transfer_settings import TransferSettings

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact

_MOST_ROWS = 30


def _transfer(
    ctx: click.Context, name: str | None, force: bool, workspace_folder: Path | None, as_json: bool, **values: Any
) -> None:
    workspace = open_workspace(ctx, workspace_folder or ctx.meta.get("modeldiff.workspace"))
    settings = make_settings(TransferSettings, values)
    from modeldiff.steer.transfer import TRANSFER_NAME, run
    from modeldiff.workspace.files import read_json

    artifact = run(settings, workspace, name=name, force=force)
    info = read_json(artifact.file(TRANSFER_NAME))
    generations = read_generations(artifact)
    if as_json:
        print_json({**artifact_json(artifact), **info, "generations": generations})
    else:
        print_transfer(artifact.ref, info)
        print_generations(generations)


def read_generations(artifact: Artifact) -> list[dict[str, Any]]:
    """The records of generations.jsonl: prompt, rule, vector, strength, text; none without --prompt."""
    from modeldiff.steer.transfer import GENERATIONS_NAME

    if GENERATIONS_NAME not in artifact.manifest.files:
        return []
    text = artifact.file(GENERATIONS_NAME).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def print_transfer(ref: str, info: dict[str, Any]) -> None:
    """The rules beside each other, in 80 columns."""
    source, target = info["from"], info["to"]
    click.echo(f"{ref}: {info['origin']}, {source} -> {target}")
    click.echo(f"({info['features']}, {info['stitch']}, {info['shared_features']} shared features)")
    for side, one in info["prompts"].items():
        silent = f", {one['silent']} without an answer" if one["silent"] else ""
        click.echo(f"contrast in {side.upper()}: {one['positive']} positive, {one['negative']} negative{silent}")
    if info["truth"]:
        _print_truth(info)
    else:
        _print_moved(info)
    click.echo(f"norm: of what strength 1 adds, in median norms of {target}'s activations.")
    click.echo(f"in {source}: cosine of the direction with the rule's own account of it there (its")
    click.echo("decoders, or the map there and back); null: the same for random directions.")
    if not info["truth"]:
        click.echo(f"Not compared: {info['truth_missing']}.")


def _print_moved(info: dict[str, Any]) -> None:
    rows = []
    several = len(info["source_norms"]) > 1
    for index in range(len(info["source_norms"])):
        for rule, found in info["moved"].items():
            one = found[index]
            used = ", ".join(str(feature["id"]) for feature in (one["features"] or [])[:5]) or "-"
            rows.append([*([str(index)] if several else []), rule, *_account(one), used])
    table(
        "",
        [
            *([("vector", "right")] if several else []),  # type: ignore[list-item]
            ("rule", "left"),
            ("norm", "right"),
            (f"in {info['from']}", "right"),
            ("null", "right"),
            ("features used most", "left"),
        ],
        rows[:_MOST_ROWS],
    )
    if len(rows) > _MOST_ROWS:
        click.echo(f"and {len(rows) - _MOST_ROWS} more rows (--json shows all)")


def _account(one: dict[str, Any]) -> list[str]:
    return [_number(one["norm_in_medians"]), _number(one["cosine_in_source"]), _number(one["null"])]


def _print_truth(info: dict[str, Any]) -> None:
    source, target, truth = info["from"], info["to"], info["truth"]
    effect = truth["effect"]
    rows = []
    for rule, found in info["moved"].items():
        one, steered = truth["rules"][rule], effect["rules"][rule]
        rows.append(
            [
                rule,
                *_account(found[0]),
                _with_error(one["cosine"], one["error"]),
                _number(one["random"]["abs_95"]),
                _number(one["relabelled"]["abs_95"] if one["relabelled"] else None),
                _with_error(steered["relative"], steered["relative_error"]),
                _relative_null(steered["random"], effect),
            ]
        )
    by_chance = [_number(truth["random_in_target"]["abs_95"]), "-", "-"]
    rows.append(["random", "-", "-", "-", "-", *by_chance, _relative_null(effect["random_in_target"], effect)])
    columns: list[tuple[str, Literal["left", "right"]]] = [("rule", "left")]
    columns += [(name, "right") for name in ("norm", f"in {source}", "null", f"cos in {target}", "random", "relab.")]
    table("", [*columns, ("effect", "right"), ("random", "right")], rows)
    click.echo(f"{target}'s own contrast: norm {truth['norm_in_medians']:.2f} medians; two halves of the prompts agree")
    in_source = "" if truth["split_half_source"] is None else f"{truth['split_half_source']:.2f} in {source}, "
    click.echo(f"with cosine {in_source}{truth['split_half_target']:.2f} in {target}.")
    click.echo(f"cos in {target}: cosine with {target}'s own contrast ± standard error over prompts; 95% of")
    click.echo("random directions, or of contrasts with shuffled labels, stay below (absolute).")
    nats = _with_error(effect["own"], effect["own_error"])
    click.echo(f"effect: how far it moves {target} from negative to positive responses, as a share of")
    click.echo(f"what {target}'s own contrast does at that norm: {nats} nats/token ({effect['prompts']} prompts).")
    if effect["relative_missing"]:
        click.echo("No share is given:")
        click.echo(f"{effect['relative_missing']}.")
    null = effect["random_in_target"]
    if null:
        count = null["directions"]
        click.echo(f"random: the same, root mean square of {count} random directions of {source}, moved by")
        click.echo(f"the rule; in the last row of {target}'s own.")


def _relative_null(null: dict[str, Any] | None, effect: dict[str, Any]) -> str:
    return _number(null["rms"] / effect["own"] if null and not effect["relative_missing"] else None)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _with_error(value: float | None, error: float | None) -> str:
    return _number(value) if error is None else f"{_number(value)} ±{error:.2f}"


def print_generations(generations: list[dict[str, Any]]) -> None:
    """For each prompt the unsteered text above those of each rule and strength."""
    from rich.table import Table
    from rich.text import Text

    several = any(one["vector"] for one in generations)
    for prompt in dict.fromkeys(one["prompt"] for one in generations):
        made = Table(title=Text(f"prompt: {prompt!r}"), title_justify="left", show_lines=True, expand=True)
        made.add_column("steered by", no_wrap=True)
        made.add_column("text", ratio=1, overflow="fold")
        for one in (one for one in generations if one["prompt"] == prompt):
            label = one["rule"] if one["strength"] == 0 else f"{one['rule']} {one['strength']:+g}"
            label += f" ({one['vector']})" if several and one["strength"] else ""
            made.add_row(Text(label), Text(one["text"].strip()))
        console().print(made)


command = Command(
    "transfer",
    params=[*settings_options(TransferSettings), *produce_options()],
    callback=click.pass_context(_transfer),
    help="Move a direction from one model to the other and measure how well it arrives.\n\nFour rules beside each "
    "other: paper (mean of the shared features whose decoders are nearest, eq. 13-17), lstsq (sparse least squares on "
    "the shared decoders), ridge (ridge regression on all of them), stitch (the matrix of `features stitch`). "
    "With prompts, the same contrast is made in the target model and compared: cosine and steering effect, each beside "
    "random directions.",
    epilog=examples(
        "modeldiff steer transfer --from A --from-prompts positive.jsonl negative.jsonl",
        "modeldiff steer transfer --from A --to B --vector persona.npy --json",
        "modeldiff steer transfer --from B --vector-from-feature 412 \\",
        '    --prompt "I think" --strength 1 4',
        "modeldiff steer transfer --from A --vector v.safetensors:evil \\",
        "    --truth-prompts evil.txt good.txt",
    ),
)
