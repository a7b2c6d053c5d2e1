"""Tables of `modeldiff steer`: the texts side by side, and effect and coherence by strength."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from modeldiff.format import console, table

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def print_generations(generations: Sequence[dict[str, Any]]) -> None:
    """For each prompt the texts by strength: of one model beside the unsteered text, of two side by side."""
    shown = [one for one in generations if one["direction"] == "feature"]
    models = list(dict.fromkeys(one["model"] for one in shown))
    for prompt in dict.fromkeys(one["prompt"] for one in shown):
        mine = [one for one in shown if one["prompt"] == prompt]
        made = _of_one(mine) if len(models) == 1 else _of_two(mine, models)
        console().print(made)


def _of_one(mine: Sequence[dict[str, Any]]) -> Table:
    from rich.text import Text

    plain = next(one["text"] for one in mine if one["strength"] == 0)
    made = _texts(mine, ["unsteered", "steered"])
    for one in (one for one in mine if one["strength"] != 0):
        # The same unsteered text stands beside every strength: print it once.
        made.add_row(Text("" if made.row_count else plain.strip()), _labelled(one))
    return made


def _of_two(mine: Sequence[dict[str, Any]], models: Sequence[str]) -> Table:
    source, other = ({one["strength"]: one for one in mine if one["model"] == model} for model in models)
    made = _texts(mine, [f"model {model}" for model in models])
    for strength, one in source.items():
        made.add_row(_labelled(one), _labelled(other[strength]))
    return made


def _texts(mine: Sequence[dict[str, Any]], columns: Sequence[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(f"prompt: {mine[0]['prompt']!r}"), title_justify="left", show_lines=True)
    for name in columns:
        made.add_column(name, ratio=1, overflow="fold")
    return made


def _labelled(one: dict[str, Any]) -> Text:
    from rich.text import Text

    label = f"[{one['strength']:+g}] " if one["strength"] else "[unsteered] "
    return Text.assemble((label, "bold"), one["text"].strip())


def print_dose(steering: dict[str, Any]) -> None:
    """Effect and coherence by strength, each beside that of random directions, in 80 columns."""
    sides, count = steering["sides"], steering["random_directions"]
    names = ("KL 1st", "KL", "perpl.", "repeated")
    columns: list[tuple[str, Literal["left", "right"]]] = [
        (name, "right") for pair in ((one, "random") for one in names) for name in pair
    ]
    prompts = len(steering["prompts"])
    title = f"feature {steering['feature']} ({_partition(steering)}), {prompts} prompt{'s' if prompts > 1 else ''}"
    table(f"{title}, seed {steering['seed']}", [("strength", "right"), ("", "left"), *columns], _dose_lines(steering))
    for model, side in sides.items():
        click.echo(f"{model}: {_pushed_by(side)}; strength 1: {side['unit_norm_in_medians']:.2g} median norms.")
    click.echo("KL: of the steered next token from the unsteered one, nats, at the end of the")
    click.echo("prompt (1st) and per token of the unsteered text. perpl.: of what is written,")
    click.echo("for the unsteered model, relative to its own text. repeated: share of a text's")
    click.echo("4-grams that stood in it before.")
    if count:
        click.echo(f"random: {count} random direction{'s' if count > 1 else ''} of the same norm.")
    else:
        click.echo("Nothing to compare with: --random-directions is 0.")
    for model, reach in steering["coherent"].items():
        click.echo(coherent_line(model, reach))
    limits = steering["coherent_limits"]
    click.echo(f"coherent: perplexity below {limits['perplexity_ratio']:g}x, and repeated not more than")
    click.echo(f"{100 * limits['repeated_change']:.0f} percentage points above that of the unsteered texts.")


def _dose_lines(steering: dict[str, Any]) -> list[list[str]]:
    rows = {(row["strength"], row["model"], row["direction"]): row for row in steering["dose"]}
    lines = []
    for strength in sorted(steering["strengths"]):
        for place, model in enumerate(steering["sides"]):
            row, random = rows[strength, model, "feature"], rows.get((strength, model, "random"))
            pairs = (("kl_first", _nats), ("kl", _nats), ("perplexity_ratio", _times), ("repeated", _percent))
            cells = [(form(row[key]), "" if random is None else form(random[key])) for key, form in pairs]
            lines.append([_strength(strength) if not place else "", model, *(cell for both in cells for cell in both)])
    return lines


def coherent_line(model: str, reach: dict[str, float]) -> str:
    """How far a user can push."""
    low, high, least, most = (_strength(reach[key]) for key in ("from", "to", "least", "most"))
    found = "at no strength" if reach["from"] == reach["to"] == 0 else f"from {low} to {high}"
    return f"coherent range of {model}: {found} (tried: {least} to {most})"


def _pushed_by(side: dict[str, Any]) -> str:
    if not side["stitch"]:
        return "its own decoder row"
    constant = " + constant" if side["stitch_bias"] else ""
    return f"moved by {side['stitch']}{constant} (R² {_r2(side['stitch_r2'])})"


def _partition(steering: dict[str, Any]) -> str:
    return "shared" if steering["partition"] == "shared" else f"{steering['partition']}-exclusive"


def _strength(strength: float) -> str:
    return f"{strength:+g}" if strength else "0"


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 99.5 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x" if value < 99.5 else f"{value:.0f}x" if value < 1e5 else ">1e5x"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _r2(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
