"""`import modeldiff`: everything it promises is there, and importing it alone loads nothing heavy."""

import pytest

import modeldiff


def test_every_name_resolves() -> None:
    for name in modeldiff.__all__:
        assert getattr(modeldiff, name) is not None
    assert set(modeldiff.__all__) <= set(dir(modeldiff))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = modeldiff.nonsense
