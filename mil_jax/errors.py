"""The errors that people see, the same for a library user and a command; and checks of plain values."""

import math
from collections.abc import Sequence

import numpy as np


class InputError(ValueError):
    """Input that cannot be used: it names the argument, the value that came and what was expected.

    Args:
        argument: the argument as the caller wrote it, for example ``bag_size``.
        value: what came.
        expectation: what was expected, as a phrase that can follow a colon.
    """

    def __init__(self, argument: str, value: object, expectation: str):
        self.argument, self.value, self.expectation = argument, value, expectation
        super().__init__(f"{argument} = {value!r}: {expectation}")


class RunError(Exception):
    """A run that cannot go on, through no fault of its input: the message says what is kept and what to do."""


def check_whole(argument: str, value: object, least: int, most: int | None = None) -> None:
    """Refuses what is not a whole number from `least` (to `most`).

    Raises:
        InputError: as said.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or not least <= value <= (value if most is None else most):
        to = "" if most is None else f" to {most}"
        raise InputError(argument, value, f"expected a whole number from {least}{to}")


def check_number(
    argument: str, value: object, low: int | float, high: int | float = math.inf, *, ends: str = "[)"
) -> None:
    """Refuses what is not a number between `low` and `high`; NaN is none.

    Args:
        argument: its name.
        value: what came.
        low: the lower end.
        high: the upper end.
        ends: whether they belong to the interval, as in "[)".

    Raises:
        InputError: as said.
    """
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    above = is_number and (value > low or (ends[0] == "[" and value == low))  # type: ignore[operator]
    below = is_number and (value < high or (ends[1] == "]" and value == high))  # type: ignore[operator]
    if not (above and below):
        floor = f"{'at least' if ends[0] == '[' else 'more than'} {low:g}"
        ceiling = f" and {'at most' if ends[1] == ']' else 'less than'} {high:g}" if high < math.inf else ", and finite"
        raise InputError(argument, value, f"expected a number, {floor}{ceiling}")


def check_choice(argument: str, value: object, choices: Sequence[object]) -> None:
    """Refuses what is none of the choices.

    Raises:
        InputError: as said.
    """
    if not any(value is choice or (isinstance(value, type(choice)) and value == choice) for choice in choices):
        raise InputError(argument, value, f"expected {' or '.join(map(repr, choices))}")
