"""What a judge says about features (paper section 7): an explanation with a concern flag, and detection by it.

The judge sees the top examples of a feature with the active words marked, and explains. Shown the explanation alone, it
then tells for held-out texts whether the feature is active in them: on half of them it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from modeldiff.console import say
from modeldiff.judge.asking import Judged, ask_parsed
from modeldiff.judge.base import Judge, Prompt
from modeldiff.judge.questions import Explanation, ask_detection, ask_explanation, read_explanation, read_flags

INTERPRETABLE = 0.8
"""From this accuracy on a feature counts as interpretable (paper B.4.4)."""


@dataclass(frozen=True)
class Question:
    """What there is to ask about one feature."""

    id: int
    examples: list[list[tuple[str, float]]]
    """Pieces of the top examples, with the activation at each."""
    texts: list[str]
    """Held out, active and inactive ones mixed; empty: there are none."""
    active: list[int]
    """1 for the texts in which it is active, 0 for the others."""


@dataclass(frozen=True)
class Verdict:
    """What the judge said about one feature. None: missing."""

    explanation: str | None = None
    concerning: bool | None = None
    """Whether a person should look at what the feature responds to."""
    reason: str | None = None
    """Why it is concerning, or not."""
    missing: str | None = None
    """Why there is no explanation."""
    detection: float | None = None
    """Share of the held-out texts told right with the explanation."""
    interpretable: bool | None = None
    """At least `INTERPRETABLE` of them."""
    detection_missing: str | None = None
    null: float | None = None
    """The share told right with the explanation of another feature, when asked for."""
    null_of: int | None = None
    """Whose."""
    null_missing: str | None = None


def ask_all(judge: Judge, questions: Sequence[Question], *, with_null: bool) -> dict[int, Verdict]:
    """The judge's words on every feature. What cannot be read after three tries is missing, with the reason.

    Raises:
        InputError, MachineError: as `Judge.ask`; what was answered before is kept, and asking again continues.
    """
    to_explain = [one for one in questions if one.examples]
    prompts = [ask_explanation(f"feature {one.id}", one.examples) for one in to_explain]
    _say_cost(judge, prompts, to_explain, with_null)
    explained = dict(zip([one.id for one in to_explain], ask_parsed(judge, prompts, read_explanation), strict=True))
    known = {id: judged.value.text for id, judged in explained.items() if judged.value is not None}
    testable = [one for one in to_explain if one.id in known and one.texts]
    own = _detect(judge, [(one, known[one.id]) for one in testable])
    others = _others(list(known)) if with_null else {}
    null = _detect(judge, [(one, known[others[one.id]]) for one in testable if one.id in others])
    return {one.id: _verdict(one, explained, own, null, others, with_null) for one in questions}


def _say_cost(judge: Judge, prompts: Sequence[Prompt], asked: Sequence[Question], with_null: bool) -> None:
    detections = sum(bool(one.texts) for one in asked) * (2 if with_null and len(asked) > 1 else 1)
    new = judge.planned(prompts)
    say(
        f"judge {judge.name}: {new} explanations to ask for ({len(prompts) - new} are kept), then at most {detections} "
        f"detections; at most {new + detections} calls if every answer can be read"
    )


def _others(ids: list[int]) -> dict[int, int]:
    """For each feature the next one, whose explanation is tried in place of its own."""
    return {id: ids[(i + 1) % len(ids)] for i, id in enumerate(ids)} if len(ids) > 1 else {}


def _detect(judge: Judge, asked: Sequence[tuple[Question, str]]) -> dict[int, Judged[list[int]]]:
    prompts: list[Prompt] = [ask_detection(f"feature {one.id}", text, one.texts) for one, text in asked]
    parsers = [partial(read_flags, count=len(one.texts)) for one, _ in asked]
    found = ask_parsed(judge, prompts, parsers)
    return {one.id: judged for (one, _), judged in zip(asked, found, strict=True)}


def _verdict(
    question: Question,
    explained: dict[int, Judged[Explanation]],
    own: dict[int, Judged[list[int]]],
    null: dict[int, Judged[list[int]]],
    others: dict[int, int],
    with_null: bool,
) -> Verdict:
    id = question.id
    if id not in explained:
        return Verdict(missing="it has no examples: it never fires", detection_missing="there is no explanation")
    said = explained[id].value
    if said is None:
        return Verdict(missing=explained[id].reason, detection_missing="there is no explanation")
    detection, why = _accuracy(question, own.get(id))
    null_accuracy, why_null = _accuracy(question, null.get(id))
    if with_null and id not in others:
        why_null = "no other feature has an explanation"
    return Verdict(
        explanation=said.text,
        concerning=said.concerning,
        reason=said.reason,
        detection=detection,
        interpretable=None if detection is None else detection >= INTERPRETABLE,
        detection_missing=why,
        null=null_accuracy,
        null_of=others.get(id) if null_accuracy is not None else None,
        null_missing=why_null if with_null else None,
    )


def _accuracy(question: Question, judged: Judged[list[int]] | None) -> tuple[float | None, str | None]:
    """(share told right, why there is none)."""
    if judged is None:
        return None, "there are too few held-out texts"
    if judged.value is None:
        return None, judged.reason
    right = sum(one == flag for one, flag in zip(judged.value, question.active, strict=True))
    return right / len(question.active), None
