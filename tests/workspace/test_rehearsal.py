"""What a small run says about a large one, on a stage and a clock that are made."""

from __future__ import annotations

import time
from typing import Any

import pytest

from modeldiff.console import progress, say
from modeldiff.errors import InputError
from modeldiff.settings import Settings, setting, settings
from modeldiff.workspace import Artifact, Order, Work, Workspace, produce
from modeldiff.workspace.rehearsal import Size, rehearse


@settings
class Brewing(Settings):
    cups: int = setting()
    """Cups."""
    leaves: int = setting()
    """Leaves."""


def test_what_grows_is_scaled_the_rest_stays_and_nothing_is_left(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def brew(asked: Brewing, there: Workspace) -> Artifact:
        def build(work: Work) -> dict[str, Any]:
            say("the kettle is filled")
            now[0] += 7
            with progress("pour", asked.cups, "cups"):
                now[0] += 2 * asked.cups
                with progress("pour by another hand", asked.cups, "cups"):  # at the same time
                    now[0] += asked.cups
            with progress("count leaves", asked.leaves, "leaves"):
                now[0] += asked.leaves / 2
            with progress("wash", 1, "pots"):
                now[0] += 4
            work.write_bytes("tea", b"tea")
            return {}

        return produce(there, Order("tea", asked, {}, 1), build)

    sizes = {
        "cups": Size(300, 10, ("pour",), ("tea",), {"tea": 1000}),
        "leaves": Size(20, 50, ("count",)),
        "water": Size(60, 30, ("pour",)),  # no setting, but what follows from them
    }
    found = rehearse(brew, Brewing(cups=300, leaves=20), sizes, workspace)
    assert found["rehearsed"] == {"cups": 10, "leaves": 20, "water": 30}, "no more than the run itself"
    assert found["time"]["parts"] == {"pour": 1800, "pour by another hand": 0, "count leaves": 10, "wash": 4}
    assert found["time"]["rest"] == 7
    assert found["time"]["run"] == 1821
    tea = found["stages"]["tea"]
    assert tea["time"] == 1821
    assert tea["written"] == 30 * 3
    assert tea["peak_memory"] > 290 * 1000
    assert capsys.readouterr().err == "rehearse with 10 cups, 20 leaves, 30 water\n"
    assert workspace.artifacts() == []
    assert workspace.partials() == []


def test_what_comes_before_the_first_step_and_after_the_last_stays(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def brew(asked: Brewing, there: Workspace) -> Artifact:
        def build(_: Work) -> dict[str, Any]:
            with progress("pour", asked.cups, "cups") as bar:
                now[0] += 5  # the jug is filled
                for _cup in range(asked.cups):
                    now[0] += 2
                    bar.advance()
                now[0] += 4  # and washed
            return {}

        return produce(there, Order("tea", asked, {}, 1), build)

    found = rehearse(brew, Brewing(cups=300, leaves=20), {"cups": Size(300, 10, ("pour",))}, workspace)
    assert found["time"]["run"] == pytest.approx(5 + 2 * 300 + 4)


def test_what_only_a_first_run_takes_is_counted_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    asked_for: list[int] = []

    def brew(asked: Brewing, there: Workspace) -> Artifact:
        def build(_: Work) -> dict[str, Any]:
            now[0] += 7 if asked_for else 12
            with progress("pour", asked.cups, "cups"):
                now[0] += 2 * asked.cups
            asked_for.append(asked.cups)
            return {}

        return produce(there, Order("tea", asked, {}, 1), build)

    sizes = {"cups": Size(300, 10, ("pour",), first=3)}
    found = rehearse(brew, Brewing(cups=300, leaves=20), sizes, workspace)
    assert asked_for == [3, 10]
    assert found["time"] == {"run": 612, "parts": {"pour": 600}, "rest": 12}
    assert found["stages"]["tea"]["time"] == 612


def test_a_first_run_too_small_to_end_is_left_out(workspace: Workspace) -> None:
    def brew(asked: Brewing, there: Workspace) -> Artifact:
        if asked.cups < 10:
            raise InputError("too few cups")
        return produce(there, Order("tea", asked, {}, 1), lambda _: {})

    found = rehearse(brew, Brewing(cups=300, leaves=20), {"cups": Size(300, 10, (), first=3)}, workspace)
    assert list(found["stages"]) == ["tea"]


def test_several_processes_do_not_rehearse(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="leave torchrun out"):
        rehearse(lambda *_: pytest.fail("it ran"), Brewing(cups=1, leaves=1), {}, workspace)
