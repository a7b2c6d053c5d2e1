"""What steering with a direction does to a model, in log-probability: the measure that needs no judge.

At each negative prompt q of the contrast two responses compete: q's own, and one of the positive responses (the one of
the same number among its class; where that is missing, another). With L(q, r; u) the mean log-probability per token of
response r after prompt q, when u is added to the residual stream at the harvested layer at every position, the
preference and the effect of a direction u are

    m(q; u) = L(q, positive response; u) - L(q, own response; u)
    e(u)    = mean over q of  (m(q; u) - m(q; -u)) / 2                       in nats per token

Positive: u moves the model from what it says to negative prompts towards what it says to positive ones. Half the
difference between with and against, because any vector, a random one too, harms the likelier of two responses more than
the other: that part is the same for u and -u.

The relative effect is e(u) / e(own), with `own` the contrast that the model itself makes. Both are added at the same
norm, `effect_strength` x |own|, so that only their direction counts. Its standard error is over the negative prompts,
by the delta method: sd over q of (e_q(u) - ratio e_q(own)), over sqrt(n) |e(own)|. Where the model's own contrast has
no clear effect (less than CLEAR standard errors above 0, or less than CLEAR_OF_RANDOM times the root mean square of
random directions) there is nothing to be relative to, and no ratio is given.

Legend: Q negative prompts, D width of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeldiff.console import progress
from modeldiff.lm.model import LanguageModel
from modeldiff.lm.residual import add_to_residual
from modeldiff.lm.response import Response, mean_log_probs
from modeldiff.steer.transfer_contrast import Contrast
from modeldiff.steer.transfer_rules import rescaled
from modeldiff.workspace.files import replace_into, temporary_path

CLEAR = 3.0
CLEAR_OF_RANDOM = 2.0
OWN = "own"
RANDOM_IN_TARGET = "random in target"


def effects(
    lm: LanguageModel, layer: int, contrast: Contrast, directions: Mapping[str, Tensor], norm: float, resume: Path
) -> dict[str, Tensor]:
    """e_q(u), (Q,), of each direction (D,) at that norm, for every negative prompt with a response.

    What a run before this one has finished in the folder `resume` is taken from there; it must have had the same
    directions in the same order.
    """
    pairs = competing(contrast)
    responses = [one for pair in pairs for one in pair]
    found = {}
    with progress("effect of steering", len(directions) * 2 * len(responses), "responses") as bar:
        for number, (name, x_D) in enumerate(directions.items()):
            path = resume / f"effect-{number:03d}.safetensors"
            if path.exists():
                bar.advance(2 * len(responses))
            else:
                preference = {}
                for sign in (1, -1):
                    with add_to_residual(lm, layer, sign * rescaled(x_D[None], [norm])[0]):
                        log_prob_N = mean_log_probs(lm, responses, bar=bar)
                    preference[sign] = log_prob_N[0::2] - log_prob_N[1::2]
                temporary = temporary_path(path)
                save_file({"effect": (preference[1] - preference[-1]) / 2}, temporary)
                replace_into(temporary, path)
            found[name] = load_file(path)["effect"]
    return found


def competing(contrast: Contrast) -> list[tuple[Response, Response]]:
    """(a positive response after the negative prompt, its own response) of each negative prompt."""
    positive = dict(contrast.said(True))
    numbers = list(positive)
    pairs = []
    for number, own in contrast.said(False):
        # The same number where there is one: files often put one question to both classes in the same line.
        other = positive.get(number, positive[numbers[number % len(numbers)]])
        pairs.append((other.after(own), own))
    return pairs


def report(effect: Mapping[str, Tensor], rules: Sequence[str], norm: float) -> dict[str, Any]:
    """What transfer.json says: the effect of `own`, and by rule the effect, relative to that where that is clear.

    Args:
        effect: by name: OWN, the rules, and random directions "RULE random 0", "random in target 0" and so on.
    """
    own, own_error = mean_and_error(effect[OWN])
    random = _null(effect, f"{RANDOM_IN_TARGET} ")
    missing = _why_unclear(own, own_error, random)
    by_rule = {}
    for rule in rules:
        nats, error = mean_and_error(effect[rule])
        ratio, ratio_error = relative_effect(effect[rule], effect[OWN]) if missing is None else (None, None)
        by_rule[rule] = {
            "nats": nats,
            "nats_error": error,
            "relative": ratio,
            "relative_error": ratio_error,
            "random": _null(effect, f"random {rule} "),
        }
    return {
        "prompts": len(effect[OWN]),
        "norm": norm,
        "own": own,
        "own_error": own_error,
        "relative_missing": missing,
        "rules": by_rule,
        "random_in_target": random,
    }


def _why_unclear(own: float, own_error: float | None, random: dict[str, Any] | None) -> str | None:
    if own_error is None or own <= CLEAR * own_error:
        return f"the target's own contrast has no clear effect (below {CLEAR:g} standard errors)"
    if random and own < CLEAR_OF_RANDOM * random["rms"]:
        return f"the target's own contrast has less than {CLEAR_OF_RANDOM:g} times the effect of random directions"
    return None


def relative_effect(effect_Q: Tensor, own_Q: Tensor) -> tuple[float, float | None]:
    """(e(u) / e(own), its standard error)."""
    effect_Q, own_Q = effect_Q.double(), own_Q.double()
    ratio = float(effect_Q.mean() / own_Q.mean())
    _, error = mean_and_error((effect_Q - ratio * own_Q) / own_Q.mean())
    return ratio, error


def mean_and_error(values_N: Tensor) -> tuple[float, float | None]:
    """Mean and its standard error, None for a single value."""
    values_N = values_N.double()
    n = len(values_N)
    return float(values_N.mean()), float(values_N.std(correction=1)) / math.sqrt(n) if n > 1 else None


def _null(effect: Mapping[str, Tensor], prefix: str) -> dict[str, Any] | None:
    """Nats of random directions; None: there are none."""
    found = [mean_and_error(x_Q)[0] for name, x_Q in effect.items() if name.startswith(prefix)]
    if not found:
        return None
    mean_N = torch.tensor(found, dtype=torch.float64)
    sd = float(mean_N.std(correction=1)) if len(found) > 1 else None
    return {
        "directions": len(found),
        "mean": float(mean_N.mean()),
        "sd": sd,
        "rms": float(mean_N.square().mean().sqrt()),
        "largest": float(mean_N.abs().max()),
    }
