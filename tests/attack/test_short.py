"""A short form of every attack; the long one: `python -m tests.attack`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack.__main__ import ATTACKS
from tests.attack.world import World, build

KINDS = ["activations", "crosscoder", "features", "stitch", "continuations", "contrast"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("attack") / "world", KINDS)


@pytest.mark.parametrize(
    ("name", "count"), [("published", 12), ("unfinished", 6), ("fuzz", 60), ("disk", 6), ("terminal", 0)]
)
def test_nothing_goes_wrong(world: World, tmp_path: Path, name: str, count: int) -> None:
    attack, _ = ATTACKS[name]
    tried = list(attack(world, tmp_path, count, 1))
    assert [(outcome.what, problem) for outcome, problem in tried if problem] == []
    assert len(tried) >= max(1, count)
