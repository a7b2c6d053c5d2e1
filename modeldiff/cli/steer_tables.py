"""Tables of `modeldiff steer`: the texts side by side, and effect and coherence by strength."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from modeldiff.console import echo
from modeldiff.format import NONE, Columns, Styled, fixed, percent, table

if TYPE_CHECKING:
    from modeldiff.workspace import Artifact

Record = dict[str, Any]
"""A line of generations.jsonl, see modeldiff/steer/run.py and transfer.py."""
Cell = tuple[str, str]
"""A label in bold, and a text."""


def read_generations(artifact: Artifact) -> list[Record]:
    """None without --prompt."""
    from modeldiff.workspace.files import read_json_lines

    name = "generations.jsonl"
    return read_json_lines(artifact.file(name)) if name in artifact.manifest.files else []


def print_generations(generations: Sequence[Record]) -> None:
    """For each prompt the texts by strength: of one model beside the unsteered text, of two side by side."""
    shown = [one for one in generations if one["direction"] == "feature"]
    models = dict.fromkeys(one["model"] for one in shown)
    headers = [f"model {model}" for model in models] if len(models) > 1 else ["unsteered", "steered"]
    print_by_prompt(shown, {header: {"ratio": 1, "overflow": "fold"} for header in headers}, _side_by_side)


def _side_by_side(written: Sequence[Record]) -> Iterable[Sequence[Cell]]:
    texts = [
        [(f"[{one['strength']:+g}] " if one["strength"] else "[unsteered] ", one["text"].strip()) for one in of_model]
        for _, of_model in itertools.groupby(written, key=itemgetter("model"))
    ]
    if len(texts) == 1:
        (_, unsteered), *pushed = texts[0]
        # The same unsteered text stands beside every strength: print it once.
        texts = [[("", unsteered), *[("", "")] * len(pushed)], pushed]
    return zip(*texts, strict=False)


def print_by_prompt(
    generations: Sequence[Record],
    columns: dict[str, dict[str, Any]],
    rows_of: Callable[[Sequence[Record]], Iterable[Sequence[Cell]]],
    **options: Any,
) -> None:
    """A table of what was written to each prompt.

    columns: by header, options of rich's columns; rows_of: makes the rows from the records of a prompt; options: of
    rich's table.
    """
    for prompt in dict.fromkeys(one["prompt"] for one in generations):
        rows = rows_of([one for one in generations if one["prompt"] == prompt])
        styled: list[list[Styled]] = [[[(label, "bold"), text] for label, text in row] for row in rows]
        table(f"prompt: {prompt!r}", columns.items(), styled, show_lines=True, **options)


def print_dose(steering: dict[str, Any]) -> None:
    """Effect and coherence by strength, each beside that of random directions, in 80 columns."""
    count, prompts = steering["random_directions"], len(steering["prompts"])
    columns: Columns = [("strength", "right"), ("", "left")]
    columns += [(name, "right") for what in ("KL", "perplexity", "repeated") for name in (what, "random")]
    partition = "shared" if steering["partition"] == "shared" else f"{steering['partition']}-exclusive"
    title = f"feature {steering['feature']} ({partition}), {prompts} prompt{'s' if prompts > 1 else ''}"
    table(f"{title}, seed {steering['seed']}", columns, _dose_lines(steering))
    for model, side in steering["sides"].items():
        by = "its own decoder row"
        if side["stitch"]:
            constant = " + constant" if side["stitch_bias"] else ""
            by = f"moved by {side['stitch']}{constant} (R² {fixed(side['stitch_r2'])})"
        echo(f"{model}: {by}; strength 1: {side['unit_norm_in_medians']:.2g} median norms.")
    echo("KL: of the steered next token from the unsteered one, nats per token of the")
    echo("unsteered text. perplexity: of what is written, for the unsteered model,")
    echo("relative to its own text. repeated: share of 4-grams that stood in it before.")
    several = "s" if count > 1 else ""
    of_norm = f"random: {count} random direction{several} of the same norm."
    echo(of_norm if count else "Nothing to compare with: --random-directions is 0.")
    for model, reach in steering["coherent"].items():
        low, high, least, most = (_strength(reach[key]) for key in ("from", "to", "least", "most"))
        found = "at no strength" if reach["from"] == reach["to"] == 0 else f"from {low} to {high}"
        echo(f"coherent range of {model}: {found} (tried: {least} to {most})")
    limits = steering["coherent_limits"]
    echo(f"coherent: perplexity below {limits['perplexity_ratio']:g}x, and repeated not more than")
    echo(f"{100 * limits['repeated_change']:.0f} percentage points above that of the unsteered texts.")


def _dose_lines(steering: dict[str, Any]) -> list[list[str]]:
    rows = {(row["strength"], row["model"], row["direction"]): row for row in steering["dose"]}
    lines = []
    for strength in sorted(steering["strengths"]):
        label = _strength(strength)
        for model in steering["sides"]:
            line = [label, model]
            found = [rows.get((strength, model, direction)) for direction in ("feature", "random")]
            for name, form in (("kl", _nats), ("perplexity_ratio", _times), ("repeated", percent)):
                line += ["" if row is None else form(row[name]) for row in found]
            lines.append(line)
            label = ""
    return lines


def _strength(strength: float) -> str:
    return f"{strength:+g}" if strength else "0"


def _nats(value: float | None) -> str:
    return fixed(value, 2 if value is not None and value < 99.5 else 0)


def _times(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.1f}x" if value < 99.5 else f"{value:.0f}x" if value < 1e5 else ">1e5x"
