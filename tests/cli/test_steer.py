"""What `modeldiff steer` prints: texts as plain text, both models side by side, everything in 80 columns."""

from __future__ import annotations

from typing import Any

import pytest

from modeldiff.cli.steer_tables import print_dose, print_generations

SIDES: dict[str, dict[str, Any]] = {
    "B": {"stitch": None, "stitch_bias": False, "stitch_r2": None, "unit_norm_in_medians": 0.527},
    "A": {"stitch": "stitch:12", "stitch_bias": True, "stitch_r2": 0.4951, "unit_norm_in_medians": 0.234},
}


def row(model: str, direction: str, strength: float, **figures: Any) -> dict[str, Any]:
    chosen = {"kl": 12.345, "perplexity_ratio": 27974.2, "repeated": 1.0, **figures}
    return {"model": model, "direction": direction, "strength": strength, **chosen}


def steering(random: bool = True) -> dict[str, Any]:
    kinds = ("feature", "random") if random else ("feature",)
    return {
        "feature": 101123,
        "partition": "B",
        "prompts": ["x"],
        "seed": 0,
        "strengths": [0.0, 2.5, -10.0],
        "random_directions": int(random),
        "sides": SIDES,
        "dose": [
            *(row(model, "feature", 0.0) for model in SIDES),
            *(row(model, kind, s, repeated=None) for model in SIDES for kind in kinds for s in (2.5, -10.0)),
        ],
        "coherent": {model: {"from": -10.0, "to": 0.0, "least": -10.0, "most": 2.5} for model in SIDES},
        "coherent_limits": {"perplexity_ratio": 2.0, "repeated_change": 0.2},
    }


def generation(model: str, strength: float, text: str, direction: str = "feature") -> dict[str, Any]:
    return {"model": model, "direction": direction, "strength": strength, "prompt": "[bold]p", "text": text}


def test_the_dose_table_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_dose(steering())
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "feature 101123 (B-exclusive), 1 prompt, seed 0" in printed
    # In the order of the strengths, the model that was named first.
    order = [
        line.split()[:2] for line in printed.splitlines() if "x" in line and line.split()[0] in ("-10", "0", "+2.5")
    ]
    assert order == [["-10", "B"], ["0", "B"], ["+2.5", "B"]]
    assert "A: moved by stitch:12 + constant (R² 0.50); strength 1: 0.23 median norms." in printed
    assert "1 random direction of the same norm" in printed
    print_dose(steering(random=False))
    assert "Nothing to compare with: --random-directions is 0." in capsys.readouterr().out


def test_both_models_side_by_side_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_generations(
        [
            *(generation("B", s, f"[red]B{s:g}") for s in (0.0, 2.0)),
            generation("B", 2.0, "of chance", "random 1"),
            *(generation("A", s, f"A{s:g}") for s in (0.0, 2.0)),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "[bold]p" in lines[0]
    for strength in ("[unsteered] {}0", "[+2] {}2"):
        assert any(strength.format("[red]B") in line and strength.format("A") in line for line in lines)
    assert not any("of chance" in line for line in lines)
