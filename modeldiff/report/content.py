"""What the page says, as plain data: the answer, the differences with their evidence, how it was made, what is missing.

Nothing here is HTML, and texts are as they are: page.py makes them harmless.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modeldiff.catalogue import stored, wording
from modeldiff.catalogue.contrast import read_contrast
from modeldiff.catalogue.facts import facts
from modeldiff.catalogue.table import FeatureRow, FeatureTable
from modeldiff.features.measures import measures
from modeldiff.format import fixed, flat, number, percent
from modeldiff.report.browse import browsed
from modeldiff.report.excerpt import about, excerpt
from modeldiff.report.settings import ReportSettings
from modeldiff.report.sources import Sources
from modeldiff.sides import OTHER, SIDES
from modeldiff.workspace import Artifact
from modeldiff.workspace.files import read_json, read_json_lines

# Points of a curve, and words of a model, that are drawn.
_POINTS, _WORDS = 200, 12
_CURVES = {"fve": "share of variance explained", "l0": "active features in a pair"}


def content(sources: Sources, settings: ReportSettings) -> dict[str, Any]:
    """Everything that the template page.html shows, by the names that it uses."""
    found = read_contrast(sources.contrast)
    entries = [_entry(one, sources, settings) for one in found["differences"]]
    listed = [one["feature"]["id"] for one in entries if one["feature"]]
    return {
        "names": {side: str(found["models"][side]).rstrip("/").rsplit("/", 1)[-1] for side in SIDES},
        "models": _models(found, sources),
        "found": found,
        "verdict": wording.verdict(found),
        "entries": entries,
        "not_verified": [
            {"where": wording.where(one), "rates": wording.any_word(one)} for one in found["not_verified"]
        ],
        "made": [_made(one) for one in sources.artifacts],
        "quality": _quality(sources),
        "nulls": _nulls(found, sources),
        "missing": _missing(found, sources),
        "browse": browsed(sources.table, listed, settings) if sources.table else None,
    }


def _models(found: dict[str, Any], sources: Sources) -> list[dict[str, Any]]:
    sides = sources.table.info["sides"] if sources.table else {}
    models = []
    for side in SIDES:
        layer = f"residual stream after block {sides[side]['layer']}" if sides.get(side, {}).get("model") else None
        models.append({"side": side.upper(), "name": found["models"][side], "layer": layer})
    return models


def _entry(one: dict[str, Any], sources: Sources, settings: ReportSettings) -> dict[str, Any]:
    """A difference: its line in the list, and what a click opens."""
    side = one["side"].lower()
    cause = one["cause"]
    return {
        **{name: one[name] for name in ("rank", "side", "effect", "low", "high", "p", "places", "documents", "texts")},
        "where": wording.where(one),
        "says": {name: [row["word"] for row in one[f"{name}_says"]][:_WORDS] for name in SIDES},
        "words": [
            {"side": name.upper(), **row} for name in (side, OTHER[side]) for row in one[f"{name}_says"][:_WORDS]
        ],
        "any_word": one["any_word"],
        "sources": [f"{name} {share:.0%}" for name, share in list(one["sources"].items())[:6]],
        "also": [wording.context_name(context) for context in one["also"][:12]],
        "represented": wording.represented(one["represented"], numbers=True) if one["represented"] else None,
        "located": one["represented"]["where"] if one["represented"] else None,
        "cause": cause and wording.cause(cause, numbers=True),
        "verdict": wording.cause_verdict(cause),
        "rates": _cause_rates(cause) if cause and cause["together"] else [],
        "command": wording.steer_command(one),
        "feature": _feature(one["feature"], sources, settings) if one["feature"] is not None else None,
        "steered": _steered(one["feature"], sources) if one["feature"] is not None else [],
    }


def _cause_rates(cause: dict[str, Any]) -> list[dict[str, Any]]:
    """How often the words are said with and without the features, as bars."""
    owner, other = cause["side"], OTHER[cause["side"]]
    rates = cause["rates"][owner]
    return [
        {"label": f"{owner.upper()} as it is", "value": rates["unchanged"], "side": owner},
        {"label": f"{owner.upper()} without the features", "value": rates["removed_together"], "side": owner},
        {
            "label": f"{owner.upper()} without random directions",
            "value": rates["removed_together_random"],
            "side": "none",
        },
        {"label": f"{other.upper()} as it is", "value": cause["rates"][other]["unchanged"], "side": other},
    ]


def _feature(feature: int, sources: Sources, settings: ReportSettings) -> dict[str, Any] | None:
    """What is known of a feature; None: its artifact is gone."""
    table = sources.table
    if table is None:
        return None
    row = table.row(feature, examples=2 * settings.examples)
    known = []
    for measure in measures():
        artifact = sources.measured.get(measure.name)
        if artifact and (says := measure.of_feature(artifact, row)):
            known += measure.lines({"ref": artifact.ref, **says})
    return {
        "id": row.id,
        "facts": facts(table, row),
        "known": known,
        "examples": [{"about": about(one), "parts": excerpt(one)} for one in row.examples],
        "histogram": _histogram(table, row),
    }


def _histogram(table: FeatureTable, row: FeatureRow) -> dict[str, Any] | None:
    """Firings by activation and text source, without empty ends."""
    counts_GH = stored.read_one(table.artifact, stored.HISTOGRAM_NAME, "firings", row.id)
    used = np.flatnonzero(counts_GH.sum(0))
    if not len(used):
        return None
    low, high = int(used[0]), int(used[-1]) + 1
    names = table.info["sources"] or ["all"]
    if len(names) > len(counts_GH):
        names = [*names[: len(counts_GH) - 1], "other sources"]
    shown = [(name, counts[low:high].tolist()) for name, counts in zip(names, counts_GH, strict=True) if counts.any()]
    return {"edges": stored.bin_edges()[low : high + 1].tolist(), "sources": shown}


def _steered(feature: int, sources: Sources) -> list[dict[str, Any]]:
    """What models wrote when this feature was pushed: a table of strengths for each steering, and texts."""
    shown = []
    for artifact in sources.steerings:
        if artifact.settings["feature"] != feature:
            continue
        described = read_json(artifact.file("steering.json"))
        texts: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for line in read_json_lines(artifact.file("generations.jsonl")):
            if line["direction"] == "feature":
                key = (line["model"], line["prompt"])
                texts.setdefault(key, []).append({"strength": line["strength"], "text": line["text"]})
        shown.append(
            {
                "ref": artifact.ref,
                "dose": [_dose(row) for row in described["dose"]],
                "texts": [{"model": model, "prompt": prompt, "said": said} for (model, prompt), said in texts.items()],
            }
        )
    return shown


def _dose(row: dict[str, Any]) -> dict[str, str]:
    """A line of the dose table as `modeldiff steer` prints it."""
    return {
        "model": row["model"],
        "what": row["direction"],
        "strength": f"{row['strength']:+g}",
        "kl": number(row["kl"]),
        "perplexity": number(row["perplexity_ratio"]),
        "repeated": percent(row["repeated"]),
    }


def _made(artifact: Artifact) -> dict[str, Any]:
    """How an artifact was made, and the digests of what went in."""
    manifest, environment = artifact.manifest, artifact.manifest.environment
    packages = environment.get("packages", {})
    names = ("modeldiff", "torch", "transformers")
    return {
        "ref": artifact.ref,
        "created": manifest.created,
        "seconds": f"{manifest.seconds:,.0f} s",
        "machine": ", ".join(str(environment[key]) for key in ("device", "dtype") if key in environment),
        "versions": ", ".join(f"{name} {packages[name]}" for name in names if name in packages),
        "digest": manifest.digest,
        "inputs": [{"what": what, "label": one.label, "digest": one.digest} for what, one in manifest.inputs.items()],
        "settings": flat({key: value for key, value in artifact.settings.items() if value not in (None, [], "")}),
    }


def _quality(sources: Sources) -> dict[str, Any] | None:
    """How good the dictionary is on pairs that it never saw, and how it got there."""
    if sources.crosscoder is None:
        return None
    metrics = sources.crosscoder.metrics
    held_out = metrics["held_out"]
    rows = [
        ("held-out share of variance explained", _both(held_out["fve"])),
        ("by the shared features alone", _both(held_out["fve_shared"])),
        ("active features in a pair", f"{held_out['l0']:.1f} (k {metrics['k']})"),
        ("features A / shared / B", " / ".join(f"{metrics['features'][part]:,}" for part in ("A", "shared", "B"))),
    ]
    if "from" in metrics:
        rows.append(("imported from", f"{metrics['from']}; measured on pairs that its training may have seen"))
    else:
        rows += [
            (
                "never active in training's last part",
                " / ".join(f"{metrics['dead'][p]:,}" for p in ("A", "shared", "B")),
            ),
            (
                "trained on",
                f"{metrics['pairs']:,} pairs in {metrics['steps']:,} steps ({metrics['passes']:.1f} passes)",
            ),
        ]
    measured = [
        {"ref": sources.measured[name].ref, "rows": flat(sources.measured[name].metrics)}
        for name in ("evaluate", "stitch", "match")
        if name in sources.measured
    ]
    return {"rows": rows, "measured": measured, "curves": _curves(sources.crosscoder)}


def _both(values: dict[str, float]) -> str:
    return ", ".join(f"{side.upper()} {values[side]:.3f}" for side in SIDES)


def _curves(crosscoder: Artifact) -> list[dict[str, Any]]:
    """Training's log, thinned: by curve, a line for each model or partition; none of what was trained elsewhere."""
    if not crosscoder.files("training.jsonl"):
        return []
    log = read_json_lines(crosscoder.file("training.jsonl"))
    shown = log[:: max(1, len(log) // _POINTS)]
    curves = []
    for name, title in _CURVES.items():
        lines = {key: [row[name][key] for row in shown] for key in shown[0][name]} if shown else {}
        curves.append({"title": title, "steps": [row["step"] for row in shown], "lines": lines})
    return [one for one in curves if one["steps"]]


def _nulls(found: dict[str, Any], sources: Sources) -> list[tuple[str, str]]:
    """What chance gives, beside what was found."""
    rows = [
        (
            "the same search where nothing is related",
            f"{found['expected_by_chance']:.2g} differences on average of {found['worlds']} such worlds; "
            f"here {found['found']}",
        )
    ]
    if sources.table is None:
        return rows
    for side, calls in sources.table.calls.items():
        if calls.by_chance is not None and calls.false_exclusive is not None:
            rows.append(
                (
                    f"exclusive features of {side.upper()} called exclusive",
                    f"{calls.exclusive} of {calls.judged}; the same rule calls {calls.false_exclusive:.1%} of "
                    f"{calls.references} shared features so: chance gives {calls.by_chance:.1f}",
                )
            )
    for side, one in sources.table.baselines.items():
        if one.ratio_median is not None:
            rows.append(
                (
                    f"differences of two activations of {side.upper()}, read from the other model",
                    f"R² {fixed(one.own)} own, {fixed(one.other)} other, {fixed(one.null)} permuted (medians)",
                )
            )
    return rows


def _missing(found: dict[str, Any], sources: Sources) -> list[tuple[str, str]]:
    """What was not made, and the command that makes it."""
    rows = [(one.kind, one.command) for one in sources.evidence if one.ref is None]
    if found["features"] is None:
        rows.append(("features of a crosscoder", "modeldiff train"))
    elif sources.table is None:
        rows.append((f"{found['features']}, which is not in the workspace any more", "modeldiff features"))
    steered = {one.settings["feature"] for one in sources.steerings}
    for one in found["differences"]:
        if one["feature"] is not None and one["feature"] not in steered:
            rows.append((f"steering along feature {one['feature']}", wording.steer_command(one)))
    return rows
