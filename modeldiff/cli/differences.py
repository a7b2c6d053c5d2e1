"""The list of differences, printed: words first, numbers when asked for; 80 columns."""

from __future__ import annotations

from typing import Any

from modeldiff.console import echo, echo_wrapped
from modeldiff.sides import OTHER, SIDES

_WIDTH = 80
_EXCERPT = 56


def print_differences(found: dict[str, Any], ref: str, *, numbers: bool, everything: bool) -> None:
    """The list of a contrast (contrast.json), and the sentence that it ends with."""
    shown = found["differences"] + (found["not_verified"] if everything else [])
    for one in shown:
        _print_entry(one, numbers=numbers)
        echo()
    echo_wrapped(verdict(found))
    hidden = 0 if everything else len(found["not_verified"])
    if hidden:
        echo(f"{hidden} more candidates of the first half did not hold on the second: --all shows them.")
    if not numbers and shown:
        echo(f"`modeldiff contrast --show {ref.split(':')[-1]} --numbers` adds rates.")
    name_a, name_b = (str(found["models"][side]).rstrip("/").rsplit("/", 1)[-1] for side in SIDES)
    places = f"{found['places']:,} places in {found['documents']:,} documents"
    _line(f"{ref}: {places}, A {name_a}, B {name_b}", first=0, indent=4)


def verdict(found: dict[str, Any]) -> str:
    """What was found, at which false discovery rate, and what chance gives."""
    compared = sum(found["contexts"].values())
    above, rate = f"{found['smallest']:.0%}", f"{found['rate']:.0%}"
    if not found["found"]:
        return (
            f"Nothing beyond chance: of {compared:,} contexts and {found['words']:,} words no difference of more than "
            f"{above} held on the other half of the documents (false discovery rate {rate})."
        )
    count = found["found"]
    return (
        f"{count} difference{'s' if count > 1 else ''} of more than {above} held on the other half of the documents, "
        f"of {found['candidates']} candidates, at a false discovery rate of {rate}; where nothing is related, the same "
        f"search finds {found['expected_by_chance']:.2g} on average ({found['worlds']} worlds)."
    )


def _print_entry(one: dict[str, Any], *, numbers: bool) -> None:
    mark = "" if one["verified"] else "  (did not hold on the other documents)"
    _line(f"{one['rank']:>2}. {_where(one)}{mark}", first=0, indent=4)
    for side in SIDES:
        if says := one[f"{side}_says"]:
            _line(f"{side.upper()} says  {', '.join(_word(row, side, numbers) for row in says)}", indent=12)
    any_word, side = one["any_word"], one["side"].lower()
    other = OTHER[side]
    _line(
        f"any of {side.upper()}'s words: {side.upper()} {any_word[side]:.0%}, {other.upper()} {any_word[other]:.0%}; "
        f"elsewhere {any_word[f'{side}_elsewhere']:.0%}, {any_word[f'{other}_elsewhere']:.0%}; "
        f"effect {one['effect']:.0%} (at least {one['low']:.0%})",
        indent=4,
    )
    for text in one["texts"][: 2 if numbers else 1]:
        _line(f"…{text['before'][-_EXCERPT:]}", indent=4)
        for side in SIDES:
            _line(f"{side.upper()}: {text[side].strip(' ')[:_WIDTH]}", first=6, indent=9)
    if one["represented"]:
        _line(f"feature {one['feature']}: {_represented(one['represented'], numbers)}")
    if one.get("cause"):
        _line(_cause(one["cause"], numbers))
    if numbers:
        _print_numbers(one)
    _line(f"steer: {_steer_command(one)}")


def _print_numbers(one: dict[str, Any]) -> None:
    sources = ", ".join(f"{name} {share:.0%}" for name, share in list(one["sources"].items())[:4])
    _line(f"places {one['places']} in {one['documents']} documents: {sources}")
    _line(f"p {one['p']:.2g}, effect {one['effect']:.1%}, 95 % interval {one['low']:.1%} to {one['high']:.1%}")
    if one["also"]:
        _line(f"says the same: {', '.join(map(_context, one['also'][:6]))}")


def _represented(found: dict[str, Any], numbers: bool) -> str:
    if not numbers:
        return str(found["where"])
    r2 = ", ".join(f"R² from {s.upper()} {found[f'r2_{s}']:.2f}" for s in SIDES if found[f"r2_{s}"] is not None)
    twin = found["twin"]
    most_alike = f", most alike feature {twin['feature']} ({twin['correlation']:.2f})" if twin else ""
    return f"{found['where']} (partition {found['partition']}{', ' if r2 else ''}{r2}{most_alike})"


def _cause(found: dict[str, Any], numbers: bool) -> str:
    """How often the owner says any of its words as it is, with features removed, and with random directions removed."""
    owner, together = found["side"], found["together"]
    other = OTHER[owner]
    if together is None:
        return f"cause: {owner.upper()} has no direction for it"
    count = len(together["features"]) - 1
    others = "the feature that fires" if count == 1 else f"the {count} features that fire"
    without = f"without it and {others} with it" if count else "without it"
    rates = found["rates"][owner]
    shares = ""
    if together["closed"]:
        shares = f"; {_share(together['closed'])} of the gap closed"
        shares += f", by random directions {_share(together['closed_random'])}" if numbers else ""
    caused = together["verdict"] == "cause"
    verdict = "a cause" if caused else "a context, not a cause" if together["settled"] else "not settled"
    return (
        f"{without} {owner.upper()} says any of them at {rates['removed_together']:.0%} of "
        f"{found['places']} such places, not {rates['unchanged']:.0%} (random directions removed: "
        f"{rates['removed_together_random']:.0%}; {other.upper()}: {found['rates'][other]['unchanged']:.0%}){shares}: "
        f"{verdict}"
    )


def _share(interval: dict[str, float]) -> str:
    return f"{interval['value']:.0%} [{interval['low']:.0%}, {interval['high']:.0%}]"


def _steer_command(one: dict[str, Any]) -> str:
    if one["feature"] is None:
        return "no feature fires at these places alone; `modeldiff steer transfer` takes prompts instead"
    partition = one["represented"]["partition"] if one["represented"] else "shared"
    model = partition if partition in ("A", "B") else one["side"]
    return f'modeldiff steer --model {model} --feature {one["feature"]} --strength 0.5 1 --prompt "..."'


def _where(one: dict[str, Any]) -> str:
    context = one["context"]
    if context["kind"] == "everywhere":
        return "everywhere, whatever the text"
    there = ", ".join(word for word in one["words_there"] if word != context.get("name"))
    return f"{_context(context)}: {there}" if there else _context(context)


def _context(context: dict[str, Any]) -> str:
    name = context.get("name", context.get("id"))
    return {
        "everywhere": "everywhere",
        "source": f"in texts of {name}",
        "word": f"after “{name}”",
        "feature": f"where feature {name} fires",
    }[context["kind"]]


def _word(row: dict[str, Any], side: str, numbers: bool) -> str:
    here, there = (f"{row[side + where]:.0%}:{row[OTHER[side] + where]:.0%}" for where in ("", "_elsewhere"))
    return str(row["word"]) + (f" {here} ({there})" if numbers else "")


def _line(text: str, *, first: int = 4, indent: int = 6) -> None:
    echo_wrapped(text, first, indent)
