"""How `modeldiff features` lists features: words first, one line each; numbers, JSON and CSV when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.catalogue.facts import sources
from modeldiff.console import echo, wrapped
from modeldiff.format import NONE, Styled, columns, fixed, percent, table
from modeldiff.records import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from modeldiff.catalogue.example import Example
    from modeldiff.catalogue.table import FeatureRow, FeatureTable, Selection
    from modeldiff.features.missing import Evidence
    from modeldiff.linear.verdict import Calls

PARTITIONS = {"A": "A-exclusive", "B": "B-exclusive", "shared": "shared", None: "all"}
_IN = {"A": "A", "B": "B", "shared": "both"}
_VERDICTS = {"exclusive": "excl.", "undecided": "undec.", "predictable": "pred.", "unknown": "?", None: NONE}
# Columns of words, and of context, in a line; of context with --numbers; of it before the word; between columns.
_LEAST_WORDS, _MOST_WORDS, _LEAST_CONTEXT, _CONTEXT, _LEAST_BEFORE, _GAP = 10, 20, 24, 40, 8, 2
_LEGEND = """\
R²: held-out share of the activation that a linear map of the owner's / the
other model's residual stream explains; null: the other's in permuted pairs.
twin: highest correlation with a feature of another partition; ! from 0.7 on:
probably the same concept, there twice.
differ: share of the strongest examples at which the two models' tokens begin
or end at other characters; * more than half: the tokenizers may explain it.""".splitlines()
_VERDICT_LEGEND = """\
verdict: other / own, against shared features read from one model alone; excl.:
below half of their median and below all but 5 % of them; pred.: above both:""".splitlines()
_BASELINES_LEGEND = """\
differences of two activations, read as if they were features: R² own, other,
null (medians); other / own [5 % to 95 %]; how many excl./undec./pred./?:""".splitlines()


def listing_json(table: FeatureTable, *, full: bool = False, **chosen: Any) -> dict[str, Any]:
    """What `--json` prints: what was measured and left out, and one object per feature listed; full: with all examples
    and what each model's tokens there are, which is megabytes."""
    selection = table.select(**chosen)
    rows = (table.row(feature, examples=None if full else 1) for feature in selection.ids)
    return {
        **{name: table.info[name] for name in ("crosscoder", "activations", "pairs")},
        "sort": chosen["sort"],
        "candidates": selection.candidates,
        "dead": selection.dead,
        "left_out_as_rare": selection.rare,
        "without_evidence": selection.without_evidence,
        "scales": _with(table.scales, "bar", "predictable_from", "false_exclusive"),
        "calls": _with(table.calls, "beyond_chance"),
        "differences": table.info["differences"],
        "features": [row.to_json() if full else _without_spans(row) for row in rows],
    }


def listing_rows(table: FeatureTable, **chosen: Any) -> Iterator[dict[str, Any]]:
    """What `--csv` prints: a row for each feature listed."""
    for one in listing_json(table, **chosen)["features"]:
        twin: dict[str, Any] = next(iter(one.pop("twins")), {})
        words = ", ".join(word["word"] for word in one.pop("words"))
        first = {name: one.pop(name) for name in ("id", "partition")}
        sources = ", ".join(f"{label} {share:.0%}" for label, share in one.pop("sources").items())
        twins = {"twin": twin.get("id"), "twin_correlation": twin.get("correlation")}
        yield first | {"words": words, "example": one.pop("example"), "sources": sources} | one | twins


def _without_spans(row: FeatureRow) -> dict[str, Any]:
    """A feature as JSON data, of its examples only the strongest, as text: its word in [[brackets]]."""
    found = row.to_json()
    text = next((f"{one.before}[[{one.word}]]{one.after}" for one in row.examples if one.word is not None), None)
    del found["examples"]
    return found | {"example": text}


def _with(by_side: Mapping[str, Any], *names: str) -> dict[str, dict[str, Any]]:
    """Records as JSON data, with some of their properties."""
    return {side: {**to_json(one), **{name: getattr(one, name) for name in names}} for side, one in by_side.items()}


def print_listing(
    table: FeatureTable, evidence: Sequence[Evidence] = (), *, numbers: bool = False, **chosen: Any
) -> None:
    """The features, a line each: what it fires on, then its verdict and how often it fires; and what chance gives.
    numbers: every number, with its legend, and what other evidence there is or is missing."""
    selection = table.select(**chosen)
    ids = selection.ids
    which = PARTITIONS[chosen["partition"]]
    if not selection.candidates:
        echo(f"{table.artifact.ref}: {table.info['crosscoder']} has no {which} features")
        return
    which += " and nearer shared" if chosen.get("anywhere") else ""
    alive = selection.candidates - selection.dead
    title = f"{table.artifact.ref}: {which} features, {len(ids)} of {alive} alive, by {chosen['sort']}"
    rows = [table.row(feature, examples=1) for feature in ids]
    if not rows:
        echo(f"{title}: nothing to list")
    elif numbers:
        _print_numbers(title, table, rows, chosen["partition"])
    else:
        _print_words(title, table, rows)
    _print_counts(table, selection)
    if numbers:
        echo(*_LEGEND)
        _print_scales(table)
    _print_chance(table, rows, numbers=numbers, partition=chosen["partition"])
    if numbers:
        _print_baselines(table)
        print_evidence(evidence)
    elif any(table.mostly_differ_F[feature] for feature in ids):
        echo("*: at most of its examples the two models' tokens differ, which may explain it.")
    if ids:
        more = "" if numbers else "; --numbers: R², twins, what is missing"
        echo(f"next: modeldiff features show {ids[0]}{more}")


def _print_counts(table: FeatureTable, selection: Selection) -> None:
    """What is not listed, and what was measured on."""
    notes = [f"{selection.dead} of {selection.candidates} never fire"]
    if selection.rare:
        notes.append(f"{selection.rare} are below --min-density")
    if selection.without_evidence:
        notes.append(f"{selection.without_evidence} fire too seldom for R²")
    echo(*wrapped(f"{'; '.join(notes)}. {table.info['pairs']:,} pairs of {table.info['activations']}."))


def _print_chance(table: FeatureTable, rows: list[FeatureRow], *, numbers: bool, partition: str | None) -> None:
    """Whether more is called exclusive than chance gives."""
    for side, calls in table.calls.items():
        others = f" The others: {calls.undecided} undec., {calls.predictable} pred., {calls.unknown} ?."
        if partition in (None, side.upper()):
            echo(*wrapped(_calls(side.upper(), calls) + (others if numbers else "")))
    if any(row.partition == "shared" and row.verdict == "exclusive" for row in rows):
        mark = " (s)" if numbers and partition in ("A", "B") else ""
        echo(f"What is in both models{mark} is what chance is measured on: leads, not findings.")


def _print_words(title: str, features: FeatureTable, rows: list[FeatureRow]) -> None:
    verdicts = [f"{row.verdict or NONE}{'*' if features.mostly_differ_F[row.id] else ''}" for row in rows]
    cells: dict[str, list[Any]] = {"id": [str(row.id) for row in rows]}
    if len({row.partition for row in rows}) > 1:
        cells["in"] = [_IN[row.partition] for row in rows]
    behind = {"verdict": verdicts, "fires": [f"{row.density:.2%}" for row in rows]}
    known = {name: max(map(len, [name, *column])) for name, column in (cells | behind).items()}
    room = columns() - sum(known.values()) - _GAP * (len(known) + 1)
    words = [_words(row, max(_LEAST_WORDS, min(_MOST_WORDS, room - _LEAST_CONTEXT))) for row in rows]
    context = max(_LEAST_WORDS, room - max(map(len, words)))
    cells |= {"fires on": words, "in context": [_snippet(row.examples, context) for row in rows], **behind}
    widths = known | {"fires on": max(map(len, words)), "in context": context}
    numeric = ("id", "fires")
    table(
        title,
        [
            (name, {"width": widths[name], "no_wrap": True, "justify": "right" if name in numeric else "left"})
            for name in cells
        ],
        zip(*cells.values(), strict=True),
    )


def _print_numbers(title: str, features: FeatureTable, rows: list[FeatureRow], partition: str | None) -> None:
    """Two lines each: numbers and text sources, then where it fires most."""
    right: dict[str, Any] = {"justify": "right", "no_wrap": True}
    heads = [(name, right) for name in ("id", "fires", "R²own", "other", "null", "verdict", "differ", "twin")]
    heads.append(("where (share of activation), strongest example", {"ratio": 1}))
    cells: list[list[Styled]] = [
        [
            f"{row.id}{'s' if row.partition == 'shared' and partition in ('A', 'B') else ''}",
            f"{row.density:.2%}",
            *map(fixed, (row.r2_own, row.r2_other, row.r2_null)),
            f"{_VERDICTS[row.verdict]}{'*' if features.mostly_differ_F[row.id] else ' '}",
            percent(row.tokens_differ),
            f"{row.twins[0].correlation:.2f}{'!' if row.twins[0].strong else ' '}" if row.twins else NONE,
            [sources(row, 2), "\n", *_snippet(row.examples, _CONTEXT)],
        ]
        for row in rows
    ]
    table(title, heads, cells)


def _print_scales(table: FeatureTable) -> None:
    """What the verdicts are held against."""
    if table.scales:
        echo(*_VERDICT_LEGEND)
    for side, scale in table.scales.items():
        echo(
            f"  {side.upper()}: excl. up to {scale.bar:.2f}, pred. from {scale.predictable_from:.2f} "
            f"(of {scale.references} features {scale.called_exclusive} are excl., {scale.called_predictable} pred.)"
        )


def _print_baselines(table: FeatureTable) -> None:
    """What differences of two activations show."""
    if table.baselines:
        echo(*_BASELINES_LEGEND)
    for side, one in table.baselines.items():
        if one.ratio_median is None:
            echo(f"  {side.upper()}: none fires often enough and can be read from its own model")
            continue
        called = "/".join(str(one.verdicts.get(name, 0)) for name in _VERDICTS if name)
        echo(
            f"  {side.upper()}: {fixed(one.own)}, {fixed(one.other)}, {fixed(one.null)}; {fixed(one.ratio_median)} "
            f"[{fixed(one.ratio_low)} to {fixed(one.ratio_high)}]; {called}"
        )


def _calls(side: str, calls: Calls) -> str:
    """Whether anything is exclusive to a model beyond chance, in a line."""
    if not calls.judged:
        return f"Nothing is exclusive to {side}: of none of its own features can anything be said."
    found = f"{calls.exclusive} of {calls.judged} called so"
    if calls.by_chance is None:
        return f"Exclusive to {side}: {found}; what chance gives is not known."
    if not calls.beyond_chance:
        return f"Nothing is exclusive to {side} beyond chance: {found}, chance gives {calls.by_chance:.1f}."
    return f"Exclusive to {side} beyond chance: {found}, chance gives {calls.by_chance:.1f} (p {calls.p:.1g})."


def _words(row: FeatureRow, most: int) -> str:
    """Those it fires on most often, as many as fit whole."""
    words = [one.word for one in row.words]
    while len(words) > 1 and len(", ".join(words)) > most:
        words.pop()
    return ", ".join(words)[:most] or NONE


def _snippet(found: list[Example], room: int) -> Sequence[tuple[str, str]]:
    """The strongest example, so that its word is within `room` characters."""
    if not found:
        return [("(no example)", "dim")]
    first = found[0]
    if first.word is None:
        return [(f"row {first.row}", "dim")]
    before, after = first.before or "", first.after or ""
    left = max(_LEAST_BEFORE, min(room * 2 // 3, room - len(first.word) - _LEAST_BEFORE))
    if len(before) > left:
        before = f"…{before[1 - left :]}"
    return [(before, "dim"), (f"[{first.word}]", "dim bold"), (after[: max(0, room - left - len(first.word))], "dim")]


def print_evidence(found: Sequence[Evidence]) -> None:
    """Which evidence is there, which is missing, and the commands that make that."""
    there = [one.kind if one.ref.startswith("features:") else one.ref for one in found if one.ref]
    missing = [one for one in found if not one.ref]
    echo(*wrapped(f"evidence: {', '.join(there) or 'none'}"))
    if missing:
        echo(*wrapped(f"missing: {', '.join(one.kind for one in missing)}; to have it:"))
        echo(*(f"  {one.command}" for one in missing))
