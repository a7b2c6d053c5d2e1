"""How an evaluation is printed."""

from __future__ import annotations

from typing import Any

import click

from modeldiff.format import percent, table

_NAMES = {
    "clean": "unchanged",
    "stored": "stored activation",
    "crosscoder": "crosscoder",
    "shared_only": "shared only",
    "mean": "mean",
    "zero": "zero",
}


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
        *(percent(recovered[base], 1) if base in recovered else "" for base in ("zero", "mean")),
        f"{everywhere['loss']:.4f}",
        f"{everywhere['kl']:.4f}",
    ]
