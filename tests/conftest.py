"""Settings of all tests."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from modeldiff.workspace import Workspace

# No test may depend on a hub being there.
os.environ["HF_HUB_OFFLINE"] = "1"

# Matrices are tiny here: more than one thread only costs time, most of all where others compute on the same machine.
torch.set_num_threads(1)

# No deadlines: how long an example takes says more about the machine than about the code. Derandomised: a run of CI
# tells about the change and not about luck; without CI set, new examples are tried every time.
settings.register_profile(
    "modeldiff",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("modeldiff")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")
