"""`modeldiff screen`: from all features to a short list with its evidence."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from modeldiff.screen.settings import ScreenSettings

if TYPE_CHECKING:
    from rich.text import Text

# Characters of a description that a listing shows; `modeldiff features show` and --json have all.
_DESCRIPTION = 110


def _screen(
    ctx: click.Context, name: str | None, force: bool, workspace_folder: Path | None, as_json: bool, **values: Any
) -> None:
    workspace = open_workspace(ctx, workspace_folder)
    settings = make_settings(ScreenSettings, values)
    from modeldiff.screen.run import read_screen, run

    artifact = run(settings, workspace, name=name, force=force)
    info = read_screen(artifact)
    if as_json:
        print_json({**artifact_json(artifact), **info})
    else:
        print_screen(artifact.ref, info)


def print_screen(ref: str, info: dict[str, Any]) -> None:
    """The funnel, then the short list of each model, in 80 columns."""
    print_funnel(ref, info)
    for side, found in info["sides"].items():
        print_list(side, found["list"])
        if found["list"]:
            click.echo(textwrap.fill(_chance(found["controls"]), 80))
    if any(found["list"] for found in info["sides"].values()):
        _print_legend(info)
    for one in info["missing"]:
        click.echo(f"missing: {one['evidence']}:\n  {one['command']}")
    first = next((found["list"][0]["id"] for found in info["sides"].values() if found["list"]), None)
    if first is not None:
        # Its number means this feature in these features only, which need not be the latest.
        click.echo(f"next: modeldiff features show {first} --features {info['features']}")


def print_funnel(ref: str, info: dict[str, Any]) -> None:
    """How many features each step leaves, by model."""
    sides = info["sides"]
    names = [step["name"] for step in next(iter(sides.values()))["steps"]]
    rows = [[name, *(_left(found["steps"][number]) for found in sides.values())] for number, name in enumerate(names)]
    if any(found["judged"] for found in sides.values()):
        kept = [found["judged"] for found in sides.values()]
        rows.append(["explained well (judge)", *(f"{one['kept']} of {one['explained']}" for one in kept)])
    rows.append(["the short list", *(str(len(found["list"])) for found in sides.values())])
    title = f"{ref}: features of {info['crosscoder']} left after each step"
    table(title, [("step", "left"), *((side, "right") for side in sides)], rows)


def _left(step: dict[str, Any]) -> str:
    unknown = f" ({step['unknown']:,} ?)" if step["unknown"] else ""
    return f"{step['left']:,}{unknown}"


def print_list(side: str, entries: list[dict[str, Any]]) -> None:
    """The short list of one model: the figures, and what each feature responds to beneath."""
    from rich.table import Table
    from rich.text import Text

    if not entries:
        click.echo(f"\n{side}: no feature passed every step")
        return
    listing = Table(
        title=Text(f"\n{side}: {len(entries)} features"),
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for column in ("", "id", "R²own", "other", "nats", "other", "surf.", "score"):
        listing.add_column(column, justify="right", no_wrap=True)
    listing.add_column("what it fires on", ratio=1)
    for one in entries:
        listing.add_row(
            f"{one['rank']}",
            f"{one['id']}{'s' if one['partition'] == 'shared' else ''}",
            f"{one['r2_own']:.2f}",
            f"{one['r2_other']:.2f}",
            _nats(one["impact_own"]),
            _nats(one["impact_other"]),
            f"{one['surface']:.2f}",
            "-" if one["score"] is None else f"{one['score']:.1f}",
            _what(one),
        )
    console().print(listing)


def _nats(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _what(one: dict[str, Any]) -> Text:
    from rich.text import Text

    said = one["description"] or ""
    said = said if len(said) <= _DESCRIPTION else said[: _DESCRIPTION - 1] + "…"
    doubles = f"with {', '.join(map(str, one['doubles']))}" if one["doubles"] else ""
    flag = "FLAGGED" if one["concerning"] else ""
    return Text("\n".join(filter(None, [flag, said, doubles])))


def _chance(controls: dict[str, Any]) -> str:
    """What chance shows beside the figures of a list."""

    def span(quantiles: dict[str, float | None] | None) -> str:
        if not quantiles or None in quantiles.values():
            return "-"
        low, middle, high = (f"{value:.2f}" for value in quantiles.values())
        return f"{middle} [{low} to {high}]"

    return (
        "By chance (median, 5 % to 95 %): random directions: R² other / own "
        f"{span(controls['random_ratio'])}, asymmetry {span(controls['random_asymmetry'])}; shared features moved "
        f"through the stitch: asymmetry {span(controls['stitched_asymmetry'])}; wrong words: surface "
        f"{span(controls['surface'])}."
    )


def _print_legend(info: dict[str, Any]) -> None:
    names = ("twin", "most_predictable", "least_asymmetry", "most_surface")
    twin, ratio, asymmetry, surface = (f"{info['limits'][name]:g}" for name in names)
    said = (
        "s: of the shared part. R²: held-out, of the activation from the model's own / the other's activations. nats: "
        "by which the model's / the other's predictions change in a window of text when the feature is removed. "
        "surf.: held-out R² from the last two words. score: 1 to 5, what pushing it does in both models. with: "
        f"features of another partition that fire on the same places (correlation from {twin}). Sorted by nats per "
        "firing x asymmetry x unpredicted x not on the surface (rank_score in --json). Left out: R² other / own from "
        f"{ratio} of what shared features show; asymmetry (own - other) / (own + other) below {asymmetry}; surface "
        f"from {surface}. (n ?): of these too little was measured."
    )
    click.echo(textwrap.fill(said, 80))


command = Command(
    "screen",
    params=[*settings_options(ScreenSettings), *produce_options()],
    callback=click.pass_context(_screen),
    help="From all features to a short list with its evidence: a funnel, cheapest step first.\n\n"
    "Measures what predicts the features, twins, what removing each does to either model, and what the last words "
    "explain; describes what is left and pushes it in both models. With a judge (--judge local or openai) it explains "
    "and rates, too. Everything measured is kept: another screen reuses it.",
    epilog=examples(
        "modeldiff screen",
        "modeldiff screen --exclusive A --top 20 --most-predictable 0.5",
        "modeldiff screen --judge openai --judge-model NAME --json",
    ),
)
