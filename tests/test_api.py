"""`import modeldiff`: everything it promises is there, and importing it alone loads nothing heavy."""

import re
import subprocess
import sys
from pathlib import Path

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


def test_the_page_has_a_line_about_every_name_and_no_other() -> None:
    path = Path(modeldiff.__file__).parent / "README.md"
    page = path.read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("|")]
    # The tables of stages have two names in a row: settings, and what runs them.
    named = [name for row in rows for cell in row[1:3] for name in re.findall(r"^ `(\w+)` $", cell)]
    assert sorted(named) == sorted(dir(modeldiff))
    assert all((path.parent / link).exists() for link in re.findall(r"\]\((.*?)\)", page))
