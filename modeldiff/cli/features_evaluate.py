"""`modeldiff features evaluate`: the models' own losses with the crosscoder in the place of their activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from modeldiff.cli.common import (
    artifact_json,
    examples,
    make_settings,
    open_workspace,
    print_json,
    produce_options,
    settings_options,
    table,
)
from modeldiff.features.evaluate_settings import EvaluateSettings

_NAMES = {
    "clean": "unchanged",
    "stored": "stored activation",
    "crosscoder": "crosscoder",
    "shared_only": "shared only",
    "mean": "mean",
    "zero": "zero",
}


def _evaluate(
    ctx: click.Context, name: str | None, force: bool, workspace_folder: Path | None, as_json: bool, **values: Any
) -> None:
    workspace = open_workspace(ctx, workspace_folder or ctx.meta.get("modeldiff.workspace"))
    settings = make_settings(EvaluateSettings, values)
    from modeldiff.features.evaluate import EVALUATION_NAME, run
    from modeldiff.workspace.files import read_json

    artifact = run(settings, workspace, name=name, force=force)
    evaluation = read_json(artifact.file(EVALUATION_NAME))
    if as_json:
        print_json({**artifact_json(artifact), "evaluation": evaluation})
    else:
        print_evaluation(artifact.ref, evaluation)


def print_evaluation(ref: str, evaluation: dict[str, Any]) -> None:
    """Each model's losses in a table, at the replaced tokens and at all."""
    for side, figures in evaluation["sides"].items():
        table(
            f"{ref}: model {side.upper()} with {evaluation['crosscoder']} after block {figures['layer']}",
            [
                ("at pairs", "left"),
                ("loss", "right"),
                ("KL", "right"),
                ("vs zero", "right"),
                ("vs mean", "right"),
                ("all: loss", "right"),
                ("KL", "right"),
            ],
            [_row(variant, figures) for variant in evaluation["variants"]],
        )
        exclusive = figures["replaced"]["exclusive"]
        error = "" if exclusive["error"] is None else f" ± {exclusive['error']:.4f}"
        click.echo(f"without the exclusive features: loss {exclusive['increase']:+.4f}{error} nats (standard error)")
        click.echo(
            f"{figures['share_replaced']:.0%} of {figures['positions']['all']:,} predictions are made from a replaced "
            f"token; the stored activations\ndiffer from the model's by {figures['stored_gap']:.1%} of their spread\n"
        )
    click.echo(
        f"{evaluation['pairs']:,} pairs in {evaluation['windows']:,} windows of {evaluation['activations']}; "
        f"{evaluation['outliers']:,} outliers are not replaced."
    )
    click.echo("loss, KL(unchanged || replaced): nats per next token, at the pairs and at all.")
    click.echo("vs: share of the loss recovered, (L_ablated - L) / (L_ablated - L_unchanged).")


def _row(variant: str, figures: dict[str, Any]) -> list[str]:
    at_pairs, everywhere = (figures[scope]["losses"][variant] for scope in ("replaced", "all"))
    recovered = figures["replaced"]["loss_recovered"].get(variant, {})
    return [
        _NAMES[variant],
        f"{at_pairs['loss']:.4f}",
        f"{at_pairs['kl']:.4f}",
        *(_percent(recovered[base]) if base in recovered else "" for base in ("zero", "mean")),
        f"{everywhere['loss']:.4f}",
        f"{everywhere['kl']:.4f}",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


command = click.Command(
    "evaluate",
    params=[*settings_options(EvaluateSettings), *produce_options()],
    callback=click.pass_context(_evaluate),
    help="Crosscoder + activations + models -> evaluation: each model's next-token loss, and the KL to the unchanged "
    "model, with its activations replaced by the reconstruction, against zero and mean ablation.\n\n"
    "Only tokens at which a pair was taken are replaced, and no outliers; all else stays the model's own.",
    epilog=examples(
        "modeldiff features evaluate",
        "modeldiff features evaluate --crosscoder 2 --pairs 50000 --json",
        "modeldiff features evaluate --model-path-a ~/models/a --model-path-b ~/models/b",
    ),
)
