"""Paths and files as callers give them: what cannot be used becomes one InputError that names it."""

from collections.abc import Sequence
from pathlib import Path

from mil_jax.errors import InputError


def as_path(argument: str, value: object) -> Path:
    """Returns a caller's path, a string or a ``Path``, with ``~`` expanded; an InputError if it is something else."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise InputError(argument, value, "expected a path, as a string or a Path")
    try:
        path = Path(value).expanduser()
        path.exists()
    except (RuntimeError, OSError) as error:  # there is no such user; a name that is too long
        raise InputError(argument, str(value), f"expected a path that can be looked up ({error})") from None
    return path


def wrong_file(path: Path, expected: str, got: str) -> InputError:
    """Returns the error that says what a file should hold and what it holds, in one line."""
    return InputError("file", str(path), " ".join(f"expected {expected}, got {got}".split()))


def few(names: Sequence[str]) -> str:
    """Up to five names."""
    return f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def is_file(path: Path) -> bool:
    """Whether a path is a file that is no folder, pipe or device; False as well where nobody can tell."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_bytes(path: Path, content: str) -> bytes:
    """Returns all that a file holds; an InputError says that ``content`` was expected where it cannot be read."""
    try:
        if path.is_file():
            return path.read_bytes()
        got = "a folder" if path.is_dir() else "no such file"
    except OSError as error:
        got = f"what cannot be read ({error.strerror})"
    raise wrong_file(path, content, got)
