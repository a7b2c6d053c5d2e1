"""A command line, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modeldiff.cli.main import run

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command on a workspace: exit code, stdout, stderr."""

    def made(workspace: Path, *args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(["--workspace", str(workspace), *args])
        said = capsys.readouterr()
        return int(str(stop.value.code or 0)), said.out, said.err

    return made


@pytest.fixture
def fails(call: Call) -> Callable[..., str]:
    """Run a command that must fail with an exit code; its one line of error, after what it said it was about to do."""

    def made(code: int, workspace: Path, *args: str) -> str:
        found, out, err = call(workspace, *args)
        last = err.splitlines()[-1]
        assert (found, last[:11]) == (code, "modeldiff: ")
        assert out == "" or code != 2
        assert "Traceback" not in err
        return last

    return made
