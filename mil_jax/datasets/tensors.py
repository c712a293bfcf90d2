"""Tensors from `.pt` files without PyTorch, and without ever running what a pickle asks for.

Since PyTorch 1.6, `torch.save` writes a zip: `data.pkl` says what there is, `data/0`, `data/1`, … hold the numbers. A
pickle is a program for a stack machine. The one below knows what builds tensors, dicts and plain values; it looks at
the name of anything else only to refuse it. Nothing is imported and nothing is called.
"""

import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mil_jax.datasets.files import wrong_file
from mil_jax.errors import InputError

BRAIN_FLOAT = "BFloat16Storage"  # the upper half of a float32
STORAGES = {
    "DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", BRAIN_FLOAT: "u2", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
REBUILD, ORDERED_DICT = "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
ARGUMENTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
MARK = object()
ALONE = "tensors alone (nothing in the file was run)"


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    """The numbers of one or several tensors: their record in the zip, type, and how many."""

    record: str
    kind: str
    length: int


def read_tensors(path: Path, *, headers: bool = False) -> np.ndarray | dict[str, np.ndarray]:
    """The tensor of a file, or the tensors of a dict by their keys; bfloat16 becomes float32.

    Args:
        path: the file.
        headers: types and shapes alone: arrays of zeros that take no memory.

    Raises:
        InputError: the file is damaged, is older than PyTorch 1.6, or holds anything but tensors and plain values.
    """
    if not zipfile.is_zipfile(path):
        hint = "another or a part of one; save an older one again by torch.save(torch.load(PATH), PATH)"
        raise wrong_file(path, "a file as torch.save writes it since PyTorch 1.6", hint)
    try:
        with zipfile.ZipFile(path) as archive:
            content = _run(path, *_opened(archive, headers))
    except InputError:
        raise
    except Exception as error:  # of many kinds, where a file is damaged
        got = f"what cannot be read ({str(error) or type(error).__name__})"
        raise wrong_file(path, "tensors as torch.save writes them", got) from None
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if isinstance(value, np.ndarray)}
    elif not isinstance(content, np.ndarray):
        raise wrong_file(path, "a tensor, or a dict of tensors", f"a {type(content).__name__}")
    return content


def _opened(archive: zipfile.ZipFile, headers: bool) -> tuple[bytes, Callable[..., np.ndarray]]:
    """The pickle, and a function that makes a tensor of its arguments."""
    sizes = {info.filename: info.file_size for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED}
    root = next((name.removesuffix("data.pkl") for name in sizes if name.endswith("/data.pkl")), None)
    if root is None:
        raise ValueError("no data.pkl")
    order = ">" if sizes.get(f"{root}byteorder") == 3 else "<"  # "big" or "little"

    def make(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> np.ndarray:
        dtype = np.dtype(STORAGES[storage.kind]).newbyteorder(order)
        record = f"{root}data/{storage.record}"
        _check_bounds(storage, sizes[record] // dtype.itemsize, offset, shape, strides)
        if headers:
            kind = np.dtype("f4") if storage.kind == BRAIN_FLOAT else dtype.newbyteorder("=")
            return np.broadcast_to(np.zeros((), kind), shape)
        flat = np.frombuffer(archive.read(record), dtype, storage.length)[offset:]
        steps = tuple(step * dtype.itemsize for step in strides)
        x = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False) if math.prod(shape) else flat[:0]
        x = x.reshape(shape).astype(dtype.newbyteorder("="), copy=False)
        return (x.astype(np.uint32) << 16).view(np.float32) if storage.kind == BRAIN_FLOAT else x

    return archive.read(f"{root}data.pkl"), make


def _check_bounds(
    storage: _Storage, stored: int, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    """Nothing outside of the numbers that are there may be looked at, and no number is there more than once."""
    numbers = (storage.length, offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < 2**60 for number in numbers) or len(shape) != len(strides):
        raise ValueError("a size that is none")
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    count = math.prod(shape)
    if not max(count, last + 1 if count else 0) <= storage.length <= stored:
        raise ValueError(f"a tensor {list(shape)} that does not fit into {min(storage.length, stored)} numbers")


def _run(path: Path, program: bytes, make: Callable[..., np.ndarray]) -> Any:
    """What a pickle leaves on the stack."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        place = len(stack) - 1 - next(i for i, value in enumerate(reversed(stack)) if value is MARK)
        values = stack[place + 1 :]
        del stack[place:]
        return values

    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                break
            case "MARK":
                stack.append(MARK)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in ARGUMENTS:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                values = tuple(above_mark())
                stack.append(values)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_known(path, argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_known(path, f"{module}.{name}"))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_built(path, function, arguments, make))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                values = above_mark()
                _set_items(stack[-1], values)
            case name:
                raise wrong_file(path, "tensors and dicts of tensors alone", f"a pickled object (instruction {name})")
    return stack.pop()


def _known(path: Path, name: str) -> _Global:
    """A name that builds tensors; any other is refused before anything is done with it."""
    if name not in (REBUILD, ORDERED_DICT) and name.removeprefix("torch.") not in STORAGES:
        raise wrong_file(path, ALONE, f"a pickled object {name}")
    return _Global(name)


def _storage(identity: Any) -> _Storage:
    word, kind, record, _, count = identity
    if word != "storage" or not isinstance(kind, _Global) or not isinstance(record, str):
        raise ValueError("a reference to no storage")
    return _Storage(record, kind.name.removeprefix("torch."), count)


def _built(path: Path, function: Any, arguments: Any, make: Callable[..., np.ndarray]) -> Any:
    if function == _Global(REBUILD) and isinstance(arguments[0], _Storage):
        return make(*arguments)
    if function == _Global(ORDERED_DICT) and arguments == ():
        return {}
    raise wrong_file(path, ALONE, "a pickled call of something else")


def _set_items(target: Any, values: list[Any]) -> None:
    if not isinstance(target, dict):
        raise ValueError("items of no dict")
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, str):
            raise ValueError("a key that is no text")
        target[key] = value
