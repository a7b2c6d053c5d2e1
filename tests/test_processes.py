"""Work in other processes: answers, errors, and a process that is lost."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from modeldiff.errors import MachineError
from modeldiff.processes import in_processes


def test_each_call_is_answered_and_an_error_is_raised_where_it_was_called() -> None:
    with in_processes(int, 2) as call, ThreadPoolExecutor(4) as threads:
        assert list(threads.map(call, map(str, range(20)))) == list(range(20))
        with pytest.raises(ValueError, match="invalid literal"):
            call("seven")
        assert call("7") == 7


def test_a_lost_process_is_said() -> None:
    with in_processes(os._exit, 1) as call, pytest.raises(MachineError, match=r"was lost.*the same command continues"):
        call(3)
