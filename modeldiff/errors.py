"""The errors a user can meet. Each message is one line: what was expected, what was found, what mends it."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """Of what an error says; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class ModeldiffError(Exception):
    """Base of every error that is shown to a user as one line, without a traceback."""

    exit_code = 1


class InputError(ModeldiffError):
    """Wrong usage or wrong input: the user can mend it by changing the command or the input. Exit code 2."""

    exit_code = 2


class DamagedError(ModeldiffError):
    """Data on disk is not what it was when it was written (truncated, altered, unreadable). Exit code 1."""


class MachineError(ModeldiffError):
    """The machine cannot do what was asked (disk, memory, device), or another process is doing it. Exit code 1."""
