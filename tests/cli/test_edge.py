"""Whatever goes wrong in a command is one line, and so it is where a stream is closed, full or narrow."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeldiff.workspace import Workspace
from tests.cli.conftest import Call
from tests.full_disk import files_up_to
from tests.made_workspace import make_manifests

Raises = Callable[[], Any]


def system(number: int, *names: str) -> Raises:
    def fail() -> None:
        raise OSError(number, os.strerror(number), *names)

    return fail


def deep() -> None:
    json.loads("[" * 100_000)


def unknown_group() -> None:
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        file["nothing"]


def torn(folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(b"torn")
    load_file(folder / "x.safetensors")


def end_of_file() -> None:
    raise EOFError("No data left in file")


@pytest.fixture
def fails_with(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[[Raises], str]:
    """The one line of a command in which something is raised."""

    def made(raising: Raises) -> str:
        monkeypatch.setattr(Workspace, "survey", lambda _: raising())
        code, out, err = call(tmp_path / "ws", "workspace", "list")
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("modeldiff: ")
        return err.removeprefix("modeldiff: ").rstrip()

    return made


@pytest.mark.parametrize(
    ("raising", "says"),
    [
        (system(errno.ENOSPC, "/w/x.h5"), "/w/x.h5: No space left on device: make room on that disk, and the same"),
        (system(errno.EDQUOT, "/w/x.h5"), "/w/x.h5: Disk quota exceeded: your quota there is used up"),
        (system(errno.EROFS, "/w/x.h5"), "/w/x.h5: Read-only file system: that file system can only be read"),
        (system(errno.EACCES, "/w/x.h5"), "/w/x.h5: Permission denied: you have no permission"),
        (system(errno.EMFILE, "/w/x.h5"), "/w/x.h5: Too many open files: too many files are open at once: raise"),
        (system(errno.ENOLCK, "/w/x.h5"), "/w/x.h5: No locks available: that file system has no locks"),
        (system(errno.EIO, "/w/x.h5"), "/w/x.h5: Input/output error: the disk, or the connection to it, fails"),
        (system(errno.EXDEV, "/w/a", None, "/w/b"), "/w/a -> /w/b: Invalid cross-device link"),  # type: ignore[arg-type]
        (lambda: np.zeros((1 << 30, 1 << 20)), "not enough memory (Unable to allocate"),
        (lambda: np.zeros((1 << 60, 64)), "not enough memory ("),
        (lambda: torch.zeros(1 << 50), "not enough memory ("),
        (lambda: torch.zeros(1 << 62), "not enough memory ("),
        (lambda: bytearray(1 << 60), "not enough memory (nothing more can be allocated)"),
        (deep, "something is nested too deeply"),
        (unknown_group, "an HDF5 file cannot be read or written ("),
        (end_of_file, "a file ends too early (No data left in file)"),
    ],
)
def test_one_line_that_says_what_helps(fails_with: Callable[[Raises], str], raising: Raises, says: str) -> None:
    assert fails_with(raising).startswith(says)


def test_a_torn_safetensors_file(fails_with: Callable[[Raises], str], tmp_path: Path) -> None:
    assert fails_with(lambda: torn(tmp_path)).startswith("a safetensors file cannot be read or written (")


def test_a_write_that_fails_names_its_file(fails_with: Callable[[Raises], str], tmp_path: Path) -> None:
    def write() -> None:
        with files_up_to(100):
            path.write_bytes(bytes(1000))

    def write_tensors(path: Path) -> None:
        with files_up_to(100):
            save_file({"x": torch.zeros(1000)}, path)

    path = tmp_path / "x.json"
    assert fails_with(write).startswith(f"{path}: File too large: no file may grow larger here")
    path = tmp_path / "x.safetensors"
    assert fails_with(lambda: write_tensors(path)).startswith(f"{path}: File too large: no file may grow larger here")


def test_an_unknown_error_says_to_whom_it_should_go_and_its_traceback_is_kept(
    fails_with: Callable[[Raises], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = fails_with(lambda: {}["\x1b[2J"])
    assert said.startswith("an error that modeldiff does not know (KeyError: '\\x1b[2J'): please report it")
    (kept,) = tmp_path.glob("modeldiff-error-*.txt")
    assert f"with {kept}" in said
    assert "Traceback" in kept.read_text()


def test_the_traceback_is_printed_when_it_is_asked_for(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELDIFF_TRACEBACK", "1")
    assert "Traceback" in call(tmp_path, "workspace", "show", "x:1")[2]


def test_no_answer_to_a_question_is_no_interruption(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_manifests(tmp_path, 1)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    code, _, err = call(tmp_path, "workspace", "remove", "activations:1")
    assert (code, err.splitlines()[-1]) == (1, "modeldiff: there was no answer, so nothing was done")


LIST = (sys.executable, "-m", "modeldiff", "workspace", "list")


def in_shell(folder: Path, redirected: str, **variables: str | None) -> tuple[int, str, str]:
    """`modeldiff workspace list` in a shell, with redirections; environment variables set, or taken away."""
    environment = {k: v for k, v in (os.environ | variables | {"MODELDIFF_WORKSPACE": str(folder)}).items() if v}
    command = f"{' '.join(LIST)} {redirected}"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=False)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode()


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        ("<&-", 0, ""),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full", 1, "modeldiff: stdout: No space left on device"),
        ("| true; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path: Path, redirected: str, code: int, said: str) -> None:
    make_manifests(tmp_path, 3)
    found, out, err = in_shell(tmp_path, redirected)
    assert (found, err[: len(said)], bool(err)) == (code, said, bool(said))
    assert ("crosscoder:1" in out) == (redirected in ("<&-", "2>&-"))


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"COLUMNS": "1", "TERM": None, "HOME": None},
    ],
)
def test_narrow_encodings_and_surroundings(tmp_path: Path, variables: dict[str, str | None]) -> None:
    make_manifests(tmp_path / "東京", 3)
    code, out, err = in_shell(tmp_path / "東京", "", **variables)
    assert (code, err) == (0, "")
    assert "crosscoder:1" in out
    code, out, err = in_shell(tmp_path / "東京", "--json", **variables)
    assert [one["ref"] for one in json.loads(out)["artifacts"]] == ["activations:1", "crosscoder:1", "features:1"]


@pytest.mark.parametrize(("processes", "expected"), [("1", "the last word"), ("2", "")])
def test_one_of_several_processes_that_fails_is_gone_at_once(processes: str, expected: str) -> None:
    """What waits at the end of a process for the others would wait for ever."""
    code = (
        "import atexit; atexit.register(print, 'the last word'); from modeldiff.cli.main import run; run(['nothing'])"
    )
    environment = {**os.environ, "WORLD_SIZE": processes, "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (2, expected)
    assert done.stderr.startswith("modeldiff: No such command 'nothing'")
