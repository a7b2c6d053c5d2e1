"""Quantiles in parts are those of all the numbers together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modeldiff.harvest.quantiles import quantiles

WANTED = [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0]
floats = st.floats(min_value=0, max_value=2.0**127, width=32)


@given(numbers=st.lists(floats, min_size=1, max_size=60), cut=st.integers(0, 60))
def test_as_numpy_whatever_the_parts(numbers: list[float], cut: int) -> None:
    together = np.array(numbers, np.float32)
    found = quantiles(lambda: (together[:cut], together[cut:]), WANTED)
    np.testing.assert_allclose(found, np.quantile(together.astype(np.float64), WANTED), rtol=1e-14)


def test_many_close_together() -> None:
    numbers = np.random.default_rng(0).normal(30, 0.5, 50_000).astype(np.float32)
    found = quantiles(lambda: np.array_split(numbers, 7), WANTED)
    np.testing.assert_allclose(found, np.quantile(numbers.astype(np.float64), WANTED), rtol=1e-14)
