"""`import modeldiff`: everything it promises is there, and importing it alone loads nothing heavy."""

import subprocess
import sys

import pytest

import modeldiff


def test_every_name_resolves() -> None:
    for name in modeldiff.__all__:
        assert getattr(modeldiff, name) is not None
    assert set(modeldiff.__all__) <= set(dir(modeldiff))
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = modeldiff.nonsense


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, modeldiff; print(sorted({'torch', 'transformers', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
