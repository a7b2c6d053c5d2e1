"""`modeldiff steer`: what a model writes when a feature is pushed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from modeldiff.cli import steer_transfer
from modeldiff.cli.common import stage_command
from modeldiff.cli.steer_transfer import read_generations
from modeldiff.format import Columns, console, fixed, percent, table
from modeldiff.steer.settings import SteerSettings
from modeldiff.steer.strengths import parse_strengths

if TYPE_CHECKING:
    from rich.text import Text

    from modeldiff.workspace import Artifact

_LEGEND = """\
KL: of the steered next token from the unsteered one, nats, at the end of the
prompt (1st) and per token of the unsteered text. perpl.: of what is written,
for the unsteered model, relative to its own text. repeated: share of a text's
4-grams that stood in it before."""


def _data(artifact: Artifact) -> dict[str, Any]:
    from modeldiff.workspace.files import read_json

    figure = str(artifact.file("figures/dose.png"))
    return {**read_json(artifact.file("steering.json")), "figure": figure, "generations": read_generations(artifact)}


def _show(artifact: Artifact) -> None:
    steering = _data(artifact)
    print_generations(steering["generations"])
    print_dose(steering)
    click.echo(f"figure: {steering['figure']}")


def _strengths(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(strength for text in given for strength in parse_strengths(text))


def print_generations(generations: Sequence[dict[str, Any]]) -> None:
    """For each prompt the texts by strength: of one model beside the unsteered text, of two side by side."""
    from rich.table import Table
    from rich.text import Text

    shown = [one for one in generations if one["direction"] == "feature"]
    models = list(dict.fromkeys(one["model"] for one in shown))
    for prompt in dict.fromkeys(one["prompt"] for one in shown):
        texts: dict[str, dict[float, str]] = {model: {} for model in models}
        for one in (one for one in shown if one["prompt"] == prompt):
            texts[one["model"]][one["strength"]] = one["text"].strip()
        made = Table(title=Text(f"prompt: {prompt!r}"), title_justify="left", show_lines=True)
        for name in ["unsteered", "steered"] if len(models) == 1 else [f"model {model}" for model in models]:
            made.add_column(name, ratio=1, overflow="fold")
        for strength, text in texts[models[0]].items():
            if len(models) > 1:
                made.add_row(*(_labelled(strength, texts[model][strength]) for model in models))
            elif strength:
                # The same unsteered text stands beside every strength: print it once.
                made.add_row(Text("" if made.row_count else texts[models[0]][0]), _labelled(strength, text))
        console().print(made)


def _labelled(strength: float, text: str) -> Text:
    from rich.text import Text

    return Text.assemble((f"[{strength:+g}] " if strength else "[unsteered] ", "bold"), text)


def print_dose(steering: dict[str, Any]) -> None:
    """Effect and coherence by strength, each beside that of random directions, in 80 columns."""
    count, prompts = steering["random_directions"], len(steering["prompts"])
    columns: Columns = [("strength", "right"), ("", "left")]
    columns += [(name, "right") for one in ("KL 1st", "KL", "perpl.", "repeated") for name in (one, "random")]
    partition = steering["partition"] + ("" if steering["partition"] == "shared" else "-exclusive")
    title = f"feature {steering['feature']} ({partition}), {prompts} prompt{'s' if prompts > 1 else ''}"
    table(f"{title}, seed {steering['seed']}", columns, _dose_lines(steering))
    for model, side in steering["sides"].items():
        click.echo(f"{model}: {_pushed_by(side)}; strength 1: {side['unit_norm_in_medians']:.2g} median norms.")
    click.echo(_LEGEND)
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
    forms: dict[str, Callable[[float | None], str]] = {
        "kl_first": _nats,
        "kl": _nats,
        "perplexity_ratio": _times,
        "repeated": percent,
    }
    lines = []
    for strength in sorted(steering["strengths"]):
        for number, model in enumerate(steering["sides"]):
            row, random = rows[strength, model, "feature"], rows.get((strength, model, "random"))
            cells = [
                cell for key, form in forms.items() for cell in (form(row[key]), form(random[key]) if random else "")
            ]
            lines.append(["" if number else _strength(strength), model, *cells])
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
    return f"moved by {side['stitch']}{constant} (R² {fixed(side['stitch_r2'])})"


def _strength(strength: float) -> str:
    return f"{strength:+g}" if strength else "0"


def _nats(value: float | None) -> str:
    return fixed(value) if value is None or value < 99.5 else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}x" if value < 99.5 else f"{value:.0f}x" if value < 1e5 else ">1e5x"


command = stage_command(
    "steer",
    SteerSettings,
    "modeldiff.steer.run",
    show=_show,
    data=_data,
    subcommands=[steer_transfer.command],
    help="Push a feature in one of the models and compare what it writes.\n\nAdds STRENGTH x the feature's maximum "
    "activation x its decoder direction to the residual stream at the harvested layer, at every position (B.4.3). "
    "Strength 1 means: as strong as ever seen.\n\nBeside it random directions of the same norm and, with --both, the "
    "other model; a table and a figure of effect and coherence by strength say where to stop.\n\n"
    "`modeldiff steer transfer` moves a direction to the other model.",
    lines=[
        'modeldiff steer --model A --feature 17 --strength 1 2 4 --prompt "I think"',
        "modeldiff steer --model B --feature 1020 --strength -2 2 --prompts prompts.txt --json",
        "modeldiff steer --model B --feature 1020 --both --strength -4:4:0.5 --prompts prompts.txt",
        "modeldiff steer transfer --from A --from-prompts positive.txt negative.txt",
    ],
)
for _option in command.params:
    if _option.name == "strength":
        _option.type, _option.metavar, _option.callback = click.STRING, "NUMBER|FROM:TO:STEP...", _strengths
