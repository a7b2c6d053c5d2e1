"""No proxy between a test and its own server, and no key."""

from __future__ import annotations

import pytest

from tests.judge.fake_endpoint import leave_alone


@pytest.fixture(autouse=True)
def _left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_alone(monkeypatch)
