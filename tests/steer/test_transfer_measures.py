"""What stands beside a moved direction: effects, errors over prompts, and relabelled contrasts, on made numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modeldiff.steer.transfer_contrast import Contrast, relabelled, resampled
from modeldiff.steer.transfer_effect import competing, relative_effect, report


def test_relative_effects_and_their_errors() -> None:
    own_Q = torch.tensor([1.0, 1.2, 0.8, 1.0])
    ratio, error = relative_effect(0.5 * own_Q, own_Q)
    assert ratio == pytest.approx(0.5)
    assert error == pytest.approx(0.0, abs=1e-7)
    spread_Q = torch.tensor([0.1, -0.1, 0.1, -0.1])
    ratio, error = relative_effect(0.5 * own_Q + spread_Q, own_Q)
    assert error == pytest.approx(float(torch.std(spread_Q)) / 2, rel=0.1)
    effect = {"own": own_Q, "stitch": 0.5 * own_Q, "random stitch 0": 0.1 * own_Q, "random stitch 1": -0.1 * own_Q}
    found = report(effect, ("stitch",), 1.0)
    assert found["rules"]["stitch"]["relative"] == pytest.approx(0.5)
    assert found["rules"]["stitch"]["random"]["rms"] == pytest.approx(0.1)
    assert found["random_in_target"] is None
    # Nothing is relative to an effect that may be none.
    unclear = report({"own": torch.tensor([1.0, -1.0, 0.5]), "stitch": own_Q[:3]}, ("stitch",), 1.0)
    assert unclear["rules"]["stitch"]["relative"] is None
    assert "no clear effect" in unclear["relative_missing"]
    by_chance = {"own": own_Q, "stitch": own_Q, "random in target 0": 0.6 * own_Q, "random in target 1": -0.6 * own_Q}
    assert report(by_chance, ("stitch",), 1.0)["rules"]["stitch"]["relative"] is None
    assert report(by_chance, ("stitch",), 1.0)["rules"]["stitch"]["nats"] == pytest.approx(1.0)


def test_contrasts_are_resampled_alike_and_relabelled_without_the_contrast() -> None:
    generator = torch.Generator().manual_seed(0)
    rows_ND = torch.randn(20, 6, generator=generator)
    shift_D = torch.tensor([100.0, 0, 0, 0, 0, 0])
    said: Any = [object()] * 40
    one = Contrast(rows_ND + shift_D, rows_ND, said, [""] * 40, 20)
    other = Contrast(2 * (rows_ND + shift_D), 2 * rows_ND, said, [""] * 40, 20)
    first_RD, second_RD = resampled([one, other], 50, seed=3)
    torch.testing.assert_close(2 * first_RD, second_RD)
    torch.testing.assert_close(first_RD.mean(dim=0), one.vector_D, atol=0.3, rtol=0)
    assert first_RD[:, 1].std() == pytest.approx((2 / 20) ** 0.5, rel=0.5)
    assert relabelled(one, 50, seed=3)[:, 0].abs().max() < 5
    # Prompts that one of the models says nothing to count for nothing.
    silent = Contrast(rows_ND[1:] + shift_D, rows_ND, [None, *said[1:]], [""] * 40, 20)
    assert silent.silent == 1
    torch.testing.assert_close(resampled([silent], 400, 3)[0].mean(dim=0), silent.vector_D, atol=0.2, rtol=0)
    # The first positive prompt has no response: the first negative one meets another.
    texts: list[Any] = [None, "p1", "n0", "n1", "n2"]

    class Said(str):
        def after(self, prompt: Any) -> tuple[str, str]:
            return (str(prompt), str(self))

    few = Contrast(rows_ND[:1], rows_ND[:3], [one and Said(one) for one in texts], [""] * 5, 2)  # type: ignore[misc]
    assert [pair[0] for pair in competing(few)] == [("n0", "p1"), ("n1", "p1"), ("n2", "p1")]
