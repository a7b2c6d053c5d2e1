"""What of the evaluation needs no model: figures out of sums, settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from modeldiff.errors import InputError
from modeldiff.features.measures.evaluate.run import loss_recovered, mean_and_error
from modeldiff.features.measures.evaluate.settings import EvaluateSettings


def test_loss_recovered() -> None:
    assert loss_recovered(2.0, 4.0, 2.0) == 1
    assert loss_recovered(4.0, 4.0, 2.0) == 0
    assert loss_recovered(2.5, 4.0, 2.0) == 0.75
    assert loss_recovered(5.0, 4.0, 2.0) == -0.5
    assert loss_recovered(2.5, 2.0, 2.0) is None


def test_the_error_of_a_mean_over_windows() -> None:
    ones_W = np.ones(4, np.int64)
    values_W = np.array([1.0, 2.0, 3.0, 6.0])
    mean, error = mean_and_error(values_W, ones_W)  # one prediction per window: the usual error of a mean
    assert (mean, error) == (3, pytest.approx(float(values_W.std(ddof=1)) / 2))
    # Tokens that all say the same within a window are worth no more than one.
    assert mean_and_error(10 * values_W, 10 * ones_W) == (3, pytest.approx(error))
    assert mean_and_error(values_W[:1], ones_W[:1]) == (1, None)


@pytest.mark.parametrize("values", [{"pairs": 0}, {"outlier_factor": -1.0}, {"batch_tokens": 0}])
def test_settings_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--" + next(iter(values)).replace("_", "-")):
        EvaluateSettings(**values)
