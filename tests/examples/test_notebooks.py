"""The notebooks, as they lie there; `.ci/run` executes them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import modeldiff

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_no_outputs_and_uses_what_there_is(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    text = "".join(line for cell in cells for line in cell["source"])
    assert set(re.findall(r"modeldiff\.([A-Za-z_]\w*)\(", text)) <= set(dir(modeldiff))
    assert all((path.parent / link).exists() for link in re.findall(r"\]\((?!http)(.*?)\)", text))


def test_the_script_of_ci_executes_them_all_one_after_the_other() -> None:
    assert len(NOTEBOOKS) == 2
    assert NOTEBOOKS[0].name.startswith("1_"), "the second one reads what the first has made"
    assert "jupyter execute examples/notebooks/*.ipynb" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
