"""The check of a GPU (tests/benchmarks/gpu) keeps its rows whatever happens, and its exit code says what is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.gpu import __main__ as check
from tests.benchmarks.gpu.harness import Bench, Phase

Check = Callable[..., tuple[int, dict[str, Any]]]


def right(bench: Bench) -> None:
    bench.right("deviation", 1e-6, most=1e-5)


def wrong(bench: Bench) -> None:
    bench.right("deviation", 1e-4, most=1e-5)


def no_number(bench: Bench) -> None:
    bench.right("deviation", float("nan"), most=1e-5)


def slow(bench: Bench) -> None:
    bench.add("a step", 80.0, "ms", most=60)


def fails(_bench: Bench) -> None:
    raise RuntimeError("no kernel image")


def stopped(_bench: Bench) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """The command with these phases: (exit code, what the file holds)."""

    def made(*phases: Callable[[Bench], None], options: tuple[str, ...] = (), seconds: float = 1) -> Any:
        file = tmp_path / "rows.json"
        monkeypatch.setattr(sys, "argv", ["gpu", "--dry", "--out", str(file), *options])
        named = [Phase(check.NAMES[i], one, seconds) for i, one in enumerate(phases)]
        monkeypatch.setattr(check, "phases", lambda _bench: named)
        try:
            code = check.main()
        except KeyboardInterrupt:
            code = 130
        assert list(tmp_path.iterdir()) == [file]
        return code, json.loads(file.read_text())

    return made


def test_a_phase_that_fails_is_a_row_and_the_next_one_runs(run: Check) -> None:
    code, data = run(right, fails, right)
    assert code == 1
    assert [(row["phase"], row["ok"]) for row in data["rows"]] == list(
        zip(check.NAMES[:3], (True, False, True), strict=True)
    )
    assert data["rows"][1]["note"] == "RuntimeError: no kernel image"
    assert (data["finished"], data["wrong"]) == (True, [f"{check.NAMES[1]}: the whole phase"])
    assert {"python", "device"} <= data.keys()
    assert {"torch", "triton", "transformers"} <= data["packages"].keys()


@pytest.mark.parametrize(
    ("phases", "expected"), [([right, slow], 0), ([right, wrong], 1), ([no_number, right], 1), ([], 0)]
)
def test_rows_about_correctness_decide_the_exit_code(run: Check, phases: list[Any], expected: int) -> None:
    code, data = run(*phases)
    assert (code, bool(data["wrong"])) == (expected, expected == 1)


def test_a_run_that_is_stopped_keeps_what_it_has(run: Check) -> None:
    code, data = run(right, stopped, right)
    assert (code, data["finished"], len(data["rows"])) == (130, False, 1)


def test_no_phase_begins_that_would_pass_the_limit(run: Check) -> None:
    code, data = run(fails, options=("--limit", "10"), seconds=11)
    (row,) = data["rows"]
    assert (code, row["ok"], row["note"]) == (0, None, "no time: it may take 11 s")


def test_a_dry_run_measures_nothing(run: Check) -> None:
    _, data = run(lambda bench: bench.speed("a step", 80.0, "ms", most=60))
    assert [(row["value"], row["ok"]) for row in data["rows"]] == [(None, None)]
    assert data["seconds"] is None


def test_without_a_device_only_a_dry_run_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "rows.json")])
    assert (check.main(), list(tmp_path.iterdir())) == (2, [])
