"""The errors that people see, the same for a library user and a command; and checks of plain values."""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import AbstractArray

P = ParamSpec("P")
T = TypeVar("T")


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


LARGEST = 2**31 - 1  # of the whole numbers that arrays are indexed and labelled with


def check_whole(argument: str, value: Any, least: int, most: int = LARGEST) -> None:
    """Refuses, by an InputError, what is not a whole number from `least` to `most`."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:
        to = "" if most == LARGEST and not (is_whole and value > most) else f" to {most}"
        raise InputError(argument, value, f"expected a whole number from {least}{to}")


def check_number(
    argument: str, value: Any, low: int | float, high: int | float = math.inf, *, ends: str = "[)"
) -> None:
    """Refuses, by an InputError, what is not a number between `low` and `high`; `ends` says which of them belongs."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    above = is_number and (value > low or (ends[0] == "[" and value == low))
    below = is_number and (value < high or (ends[1] == "]" and value == high))
    if not (above and below):
        floor = f"{'at least' if ends[0] == '[' else 'more than'} {low:g}"
        ceiling = f" and {'at most' if ends[1] == ']' else 'less than'} {high:g}" if high < math.inf else ", and finite"
        raise InputError(argument, value, f"expected a number, {floor}{ceiling}")


def check_index(argument: str, index: np.ndarray, count: int, expected: str = "", *, least: int = 0) -> None:
    """Refuses, by an InputError, whole numbers of which one is not `least` to `count` - 1."""
    outside = index[(index < least) | (index >= count)]
    if outside.size:
        raise InputError(argument, int(outside.flat[0]), expected or f"expected {least} to {count - 1}")


def check_choice(argument: str, value: object, choices: Sequence[object]) -> None:
    """Refuses, by an InputError, what is none of the choices."""
    if not any(value is choice or (isinstance(value, type(choice)) and value == choice) for choice in choices):
        raise InputError(argument, value, f"expected {' or '.join(map(repr, choices))}")


def as_array(argument: str, values: object, *, whole: bool = False) -> np.ndarray:
    """A list or an array of (whole) numbers, booleans as 0 and 1, as NumPy [N]; an InputError for what is none."""
    expected = f"expected a list of {'whole ' if whole else ''}numbers"
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # ragged, or an array of keys
        raise InputError(argument, _brief(values), expected) from None
    if array.ndim != 1 or array.dtype.kind not in ("biu" if whole else "biuf"):
        raise InputError(argument, f"{array.dtype} {array.shape}", expected)
    return array.astype(np.int8) if array.dtype == bool else array


# ---- types at the boundary ----


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Lets a public function refuse arguments of another type than its annotations say, by an `InputError`.

    Records, plain values, paths and keys are checked; what an array holds, and what a list may become, the function
    itself says best.
    """
    signature, hints = inspect.signature(function), typing.get_type_hints(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            hint = hints.get(name, Any)
            if not _fits(value, hint):
                raise InputError(name, _brief(value), f"expected {_words(hint)}")
        return function(*args, **kwargs)

    return call


def check_fields(record: Any) -> None:
    """Refuses, by an InputError, fields of a record that are of another type than their annotations say."""
    for name, hint in typing.get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not _fits(value, hint):
            raise InputError(name, _brief(value), f"expected {_words(hint)}")


def _fits(value: object, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return isinstance(value, hint) if hint.__name__.startswith("Key") else _is_numeric(value)
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if kind in (int, float):
        numbers = (int, np.integer) if kind is int else (int, float, np.number)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is Sequence and isinstance(value, str))


def _is_numeric(value: object) -> bool:
    if isinstance(value, Tracer):
        return True
    if not isinstance(value, np.ndarray | jax.Array | Sequence):
        return False
    try:
        return np.asarray(value).dtype.kind in "biufV"  # V: types that NumPy has not, such as bfloat16
    except (TypeError, ValueError):  # ragged, or an array of keys
        return False


def _words(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(option) for option in typing.get_args(hint)))
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return "a key of jax.random.key" if hint.__name__.startswith("Key") else "an array"
    return "nothing" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _brief(value: object) -> object:
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__
