"""Strengths as a user writes them: numbers, and ranges such as -4:4:0.5."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from modeldiff.errors import InputError

_MOST = 1000


def parse_strengths(text: str) -> tuple[float, ...]:
    """The strengths of a number, or of a range FROM:TO:STEP with both ends where the step meets them.

    Raises:
        InputError: it is neither, the step leads away from the end or nowhere, or the range has too many strengths.
    """
    try:
        numbers = [Decimal(part) for part in text.split(":")]
    except InvalidOperation:
        numbers = []
    if len(numbers) not in (1, 3) or not all(number.is_finite() for number in numbers):
        raise InputError(f"--strength expects a number or a range FROM:TO:STEP such as -4:4:0.5, found '{text}'")
    if len(numbers) == 1:
        return (float(numbers[0]),)
    first, last, step = numbers
    if step == 0 or (last - first) * step < 0:
        raise InputError(f"--strength {text}: the step {step} does not lead from {first} to {last}")
    steps = (last - first) / step
    if steps >= _MOST:
        raise InputError(f"--strength {text}: more than {_MOST} strengths; take a larger step")
    # Decimal, so that steps of 0.1 arrive at 0 and at 1 exactly.
    return tuple(float(first + step * i) for i in range(int(steps) + 1))
