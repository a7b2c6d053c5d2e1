"""How `modeldiff features` prints its list and `features show` one feature, in 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modeldiff.console import echo, wrapped
from modeldiff.features.measures import measures
from modeldiff.format import Styled, echo_styled, fixed, percent, table
from modeldiff.records import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from modeldiff.catalogue.example import Example, Piece
    from modeldiff.catalogue.table import FeatureRow, FeatureTable
    from modeldiff.features.missing import Evidence
    from modeldiff.linear.verdict import Calls

_PARTITIONS = {"A": "A-exclusive", "B": "B-exclusive", "shared": "shared", None: "all"}
_VERDICTS = {"exclusive": "excl.", "undecided": "undec.", "predictable": "pred.", "unknown": "?", None: "-"}
_MOST_LINES = 5
# Characters of context around the word in a listing.
_BEFORE, _AFTER = 20, 14
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


def listing_json(table: FeatureTable, **chosen: Any) -> dict[str, Any]:
    """What `--json` prints: what was measured and left out, and one object per feature listed."""
    selection = table.select(**chosen)
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
        "features": [table.row(feature).to_json() for feature in selection.ids],
    }


def _with(by_side: Mapping[str, Any], *names: str) -> dict[str, dict[str, Any]]:
    """Records as JSON data, with some of their properties."""
    return {side: {**to_json(one), **{name: getattr(one, name) for name in names}} for side, one in by_side.items()}


def print_listing(table: FeatureTable, evidence: Sequence[Evidence] = (), **chosen: Any) -> None:
    """The features in 80 columns, two lines each: numbers and text sources, then where it fires most; then what other
    evidence there is about them."""
    selection = table.select(**chosen)
    ids = selection.ids
    which = _PARTITIONS[chosen["partition"]]
    if not selection.candidates:
        echo(f"{table.artifact.ref}: {table.info['crosscoder']} has no {which} features")
        return
    which += " and nearer shared" if chosen.get("anywhere") else ""
    alive = selection.candidates - selection.dead
    title = f"{table.artifact.ref}: {which} features, {len(ids)} of {alive} alive, by {chosen['sort']}"
    if ids:
        _print_rows(title, table, ids, chosen["partition"])
    else:
        echo(f"{title}: nothing to list")
    notes = [f"{selection.dead} of {selection.candidates} never fire"]
    if selection.rare:
        notes.append(f"{selection.rare} fire too seldom for --min-density")
    if selection.without_evidence:
        notes.append(f"{selection.without_evidence} fire too seldom for R²")
    echo("; ".join(notes) + f". Measured on {table.info['pairs']:,} pairs of {table.info['activations']}.")
    echo(*_LEGEND)
    _print_calls(table, chosen["partition"])
    if evidence:
        print_evidence(evidence)
    if ids:
        echo(f"next: modeldiff features show {ids[0]}")


def _print_rows(title: str, features: FeatureTable, ids: list[int], partition: str | None) -> None:
    numbers: dict[str, Any] = {"justify": "right", "no_wrap": True}
    columns = [(name, numbers) for name in ("id", "fires", "R²own", "other", "null", "verdict", "differ", "twin")]
    columns.append(("where (share of activation), strongest example", {"ratio": 1}))
    rows: list[list[Styled]] = []
    for feature in ids:
        row = features.row(feature, examples=1)
        rows.append([
            f"{row.id}{'s' if row.partition == 'shared' and partition in ('A', 'B') else ''}",
            f"{row.density:.2%}",
            *map(fixed, (row.r2_own, row.r2_other, row.r2_null)),
            f"{_VERDICTS[row.verdict]}{'*' if features.mostly_differ_F[feature] else ' '}",
            percent(row.tokens_differ),
            f"{row.twins[0].correlation:.2f}{'!' if row.twins[0].strong else ' '}" if row.twins else "-",
            [_sources(row, 2), "\n", *_snippet(row.examples)],
        ])  # fmt: skip
    table(title, columns, rows)


def _print_calls(table: FeatureTable, partition: str | None) -> None:
    """What the verdicts are held against, how many of the exclusive features listed are called what, and what
    differences of two activations show."""
    if table.scales:
        echo(*_VERDICT_LEGEND)
    for side, scale in table.scales.items():
        echo(
            f"  {side.upper()}: excl. up to {scale.bar:.2f}, pred. from {scale.predictable_from:.2f} "
            f"(of {scale.references} features {scale.called_exclusive} are excl., {scale.called_predictable} pred.)"
        )
    for side, calls in table.calls.items():
        if partition in (None, side.upper()):
            echo(*wrapped(f"{side.upper()}: {_calls(calls)}."))
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


def _calls(calls: Calls) -> str:
    said = (
        f"{calls.exclusive} of {calls.judged} are called excl. ({calls.undecided} undec., {calls.predictable} pred.; "
        f"{calls.unknown} more are ?: nothing can be said); "
    )
    if calls.false_exclusive is None or calls.by_chance is None:
        return f"{said}no shared feature can be read from this model alone, so what chance gives is unknown"
    said += (
        f"the same rule calls {calls.false_exclusive:.1%} of shared features so (reference: {calls.references}), "
        f"so chance gives {calls.by_chance:.1f}"
    )
    more = "more" if calls.beyond_chance else "not more"
    return said if calls.p is None else f"{said}: {more} than chance (p {calls.p:.1g})"


def _sources(row: FeatureRow, most: int) -> str:
    return ", ".join(f"{label} {share:.0%}" for label, share in list(row.sources.items())[:most]) or "(no texts)"


def _snippet(found: list[Example]) -> Sequence[tuple[str, str]]:
    if not found:
        return [("(no example)", "dim")]
    first = found[0]
    if first.word is None:
        return [(f"row {first.row}", "dim")]
    before, after = first.before or "", first.after or ""
    cut = "…" if len(before) > _BEFORE else ""
    return [(cut + before[-_BEFORE:], "dim"), (f"[{first.word}]", "dim bold"), (after[:_AFTER], "dim")]


def print_evidence(found: Sequence[Evidence]) -> None:
    """Which evidence is there, which is missing, and the commands that make that, in at most five lines."""
    there = [one.kind if one.ref.startswith("features:") else one.ref for one in found if one.ref]
    missing = [one for one in found if not one.ref]
    lines = wrapped(f"evidence: {', '.join(there) or 'none'}")
    if missing:
        lines += wrapped(f"missing: {', '.join(one.kind for one in missing)}; to have it:")
        commands = [f"  {one.command}" for one in missing]
        room = _MOST_LINES - len(lines)
        if len(commands) > room:
            more = len(commands) - (room - 1)
            commands[room - 1 :] = [f"  and {more} more commands (--json has all)"]
        lines += commands
    echo(*lines)


def print_feature(
    table: FeatureTable, row: FeatureRow, known: Mapping[str, dict[str, Any] | None] | None = None
) -> None:
    """One feature with everything that is known about it; `known`: what measures say, by name."""
    echo(f"feature {row.id} of {table.artifact.ref} ({table.info['crosscoder']}): {_PARTITIONS[row.partition]}")
    for name, fact in _facts(table, row).items():
        echo(f"{name:<13} {fact}")
    for measure in measures():
        if found := (known or {}).get(measure.name):
            for line in measure.lines(found):
                echo_styled(line)
    for model in ("A", "B"):
        if row.partition in (model, "shared"):
            echo(f'push it       modeldiff steer --model {model} --feature {row.id} --strength 1 --prompt "..."')
    echo("", f"{len(row.examples)} strongest examples; [word]: fires there, [[word]]: the example itself")
    for number, example in enumerate(row.examples, start=1):
        _print_example(number, example)


def _facts(table: FeatureTable, row: FeatureRow) -> dict[str, str]:
    """What was measured of a feature, by name; what was not is left out."""
    facts = {
        "fires on": f"{row.density:.3%} of the pairs ({row.firing_count:,} of {table.info['pairs']:,})",
        "activation": f"mean {row.mean_activation:.2f} where it fires, at most {row.max_activation:.2f}",
        "relative norm": f"{row.relative_norm:.3f} (1: only in A's decoder, 0.5: alike, 0: only in B's)",
        "predictable": f"R² {fixed(row.r2_a)} from A's residual stream, {fixed(row.r2_b)} from B's (held out, linear)",
    }
    if row.verdict:
        facts["verdict"] = (
            f"{row.verdict} (other model {fixed(row.r2_other)} of own {fixed(row.r2_own)}, chance "
            f"{fixed(row.r2_null)}; no linear analogue found is not proof that there is none)"
        )
    if row.tokens_differ is not None:
        note = ": the tokenizers may explain it" if table.mostly_differ_F[row.id] else ""
        facts["tokens differ"] = f"at {row.tokens_differ:.0%} of its examples (they begin or end elsewhere){note}"
    twins = ", ".join(f"{t.id} ({t.partition}) {t.correlation:.2f}{'!' * t.strong}" for t in row.twins) or "none"
    same = "; ! probably the same concept" if any(t.strong for t in row.twins) else ""
    words = ", ".join(f"{one.word!r} {one.share:.0%}" for one in row.words) or "-"
    return facts | {
        "twins": f"{twins} (correlation with features of other partitions{same})",
        "sources": _sources(row, 6),
        "words": f"{words} (of its top examples)",
    }


def _print_example(number: int, example: Example) -> None:
    where = f"document {example.document}, {example.source}" if example.source is not None else f"row {example.row}"
    where += ", tokens differ" if example.tokens_differ else ""
    echo()
    echo_styled(f"{number}. activation {example.activation:.2f}  ({where})", "bold")
    if example.pieces is None or example.tokens is None:
        return
    echo_styled([
        (f"[[{piece.text}]]", "bold reverse") if index == example.centre
        else (_marked(piece), "bold" if piece.activation > 0 else "")
        for index, piece in enumerate(example.pieces)
    ])  # fmt: skip
    for side, tokens in example.tokens.items():
        firing = [i for i, one in enumerate(tokens) if one.activation > 0]
        centre = max(firing, key=lambda i: (tokens[i].activation == example.activation, -i), default=len(tokens) // 2)
        around = "|".join(map(_marked, tokens[max(0, centre - 6) : centre + 5]))
        echo_styled(f"   {side.upper()}: {around}", "dim")


def _marked(piece: Piece) -> str:
    return f"[{piece.text}]" if piece.activation > 0 else piece.text
