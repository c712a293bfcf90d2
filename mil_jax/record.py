"""The decorator of the records that arrays travel in: frozen dataclasses that JAX can map, cut and send to devices.

A record's annotations hold where a person or a function makes one, and tests check them there. Where JAX puts a record
together again, its leaves may be anything (shapes, shardings, batched tracers), and nothing is checked: a dataclass
that is registered in the usual way would be checked there too, and could not say what it holds.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")

Values = np.ndarray | jax.Array  # what the arrays of a record may be


def static(*, default: Any = dataclasses.MISSING) -> Any:
    """A field that is no array: JAX compiles a program for each of its values, which must be hashable."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static,))
def record(cls: type[T]) -> type[T]:
    """Makes a class a frozen dataclass and a node of JAX's trees; fields made by `static` are not among its leaves."""
    made: Any = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(made)
    rest = tuple(field.name for field in fields if field.metadata.get("static"))
    leaves = tuple(field.name for field in fields if field.name not in rest)
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in leaves)

    def flatten(node: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(node, name) for name in leaves), tuple(getattr(node, name) for name in rest)

    def flatten_with_keys(node: T) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
        values, static_values = flatten(node)
        return tuple(zip(keys, values, strict=True)), static_values

    def unflatten(static_values: tuple[Any, ...], values: Iterable[Any]) -> T:
        node = object.__new__(made)
        for name, value in zip((*leaves, *rest), (*values, *static_values), strict=True):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made
