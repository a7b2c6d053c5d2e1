"""One difference and a list of them (contrast.json) in the sentences that people read, wherever they read them.

Words from texts stand in them as they are: whoever shows a sentence makes it harmless first.
"""

from __future__ import annotations

from typing import Any, Literal

from modeldiff.sides import OTHER, SIDES


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


def where(one: dict[str, Any]) -> str:
    """Where an entry's words are said, with the words that tell those places from others."""
    context = one["context"]
    if context["kind"] == "everywhere":
        return "everywhere, on average over all places"
    there = ", ".join(word for word in one["words_there"] if word != context.get("name"))
    return f"{context_name(context)}: {there}" if there else context_name(context)


def context_name(context: dict[str, Any]) -> str:
    """Of an entry's `context`, or of one in its `also`."""
    name = context.get("name", context.get("id"))
    return {
        "everywhere": "everywhere",
        "source": f"in texts of {name}",
        "word": f"after “{name}”",
        "feature": f"where feature {name} fires",
    }[context["kind"]]


def said(row: dict[str, Any], side: str, numbers: bool = False) -> str:
    """A word of `a_says` or `b_says` (`side`); numbers: how often this model says it, and the other, here and then
    elsewhere."""
    here, there = (f"{row[side + where]:.0%}:{row[OTHER[side] + where]:.0%}" for where in ("", "_elsewhere"))
    return str(row["word"]) + (f" {here} ({there})" if numbers else "")


def any_word(one: dict[str, Any]) -> str:
    """How often either model says any of the words of the one that says more, here and elsewhere."""
    shares, side = one["any_word"], one["side"].lower()
    other = OTHER[side]
    return (
        f"any of {side.upper()}'s words: {side.upper()} {shares[side]:.0%}, {other.upper()} {shares[other]:.0%}; "
        f"elsewhere {shares[f'{side}_elsewhere']:.0%}, {shares[f'{other}_elsewhere']:.0%}; "
        f"effect {one['effect']:.0%} (at least {one['low']:.0%})"
    )


def represented(found: dict[str, Any], numbers: bool = False) -> str:
    """Of an entry's `represented`: in which model its feature is; numbers: partition, R² and the most alike feature."""
    if not numbers:
        return str(found["where"])
    r2 = ", ".join(f"R² from {s.upper()} {found[f'r2_{s}']:.2f}" for s in SIDES if found[f"r2_{s}"] is not None)
    twin = found["twin"]
    most_alike = f", most alike feature {twin['feature']} ({twin['correlation']:.2f})" if twin else ""
    return f"{found['where']} (partition {found['partition']}{', ' if r2 else ''}{r2}{most_alike})"


def cause(found: dict[str, Any], numbers: bool = False) -> str:
    """Of an entry's `cause`: how often the owner says any of its words as it is, with features removed, and with random
    directions removed; numbers: what these close of the gap."""
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
    return (
        f"{without} {owner.upper()} says any of them at {rates['removed_together']:.0%} of "
        f"{found['places']} such places, not {rates['unchanged']:.0%} (random directions removed: "
        f"{rates['removed_together_random']:.0%}; {other.upper()}: {found['rates'][other]['unchanged']:.0%}){shares}: "
        f"{cause_verdict(found)}"
    )


def cause_verdict(found: dict[str, Any] | None) -> str:
    """Of an entry's `cause`, in a few words."""
    if found is None or found["together"] is None:
        return "not tested"
    if found["together"]["verdict"] == "cause":
        return "a cause"
    return "a context, not a cause" if found["together"]["settled"] else "not settled"


def _share(interval: dict[str, float]) -> str:
    return f"{interval['value']:.0%} [{interval['low']:.0%}, {interval['high']:.0%}]"


def steered_model(one: dict[str, Any]) -> Literal["A", "B"]:
    """The model to push along an entry's feature: the one that has it, or of a shared one the model that says more."""
    partition = one["represented"]["partition"] if one["represented"] else "shared"
    return "A" if "A" in (partition, one["side"]) and partition != "B" else "B"


def steer_command(one: dict[str, Any]) -> str:
    """The command that pushes a model along an entry's feature."""
    if one["feature"] is None:
        return "no feature fires at these places alone; `modeldiff steer transfer` takes prompts instead"
    return f'modeldiff steer --model {steered_model(one)} --feature {one["feature"]} --strength 0.5 1 --prompt "..."'
