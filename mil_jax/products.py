"""Products of the instances of a large bag with a kernel, as fast as a CPU multiplies matrices, forwards and backwards.

XLA has a fast product on CPUs for rows that lie one after the other, and a slow one for the gradient of a kernel, whose
sum runs over the rows of both factors. Here the smaller factor is transposed first, so that both are fast. Few
instances, such as bags of digits, keep XLA's own product, and with it every bit.

Axes: K instances, I inputs, O outputs.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Precision = Literal["float32", "bfloat16"]

MANY = 512
"""Instances from which on a product takes this way."""
BLOCK = 256
"""Instances of a block, whose factors stay in the cache."""


def product(
    instances: Float[Array, "K I"], kernel: Float[Array, "I O"], precision: Precision = "float32"
) -> Float[Array, "K O"]:
    """`instances @ kernel`; from `MANY` instances on with another order of sums, and so another rounding.

    Args:
        instances: the left factor.
        kernel: the right factor.
        precision: "bfloat16" rounds both factors, forwards and backwards, to 8 bits of mantissa; sums are float32.
    """
    if precision == "float32" and len(instances) < MANY:
        return instances @ kernel
    return _product(precision, instances, kernel)


def dense_product(precision: Precision) -> Any:
    """`product` in the form in which Flax's dense layers take one."""

    def dot_general(instances: Array, kernel: Array, dimensions: Any, **_: Any) -> Array:
        del dimensions  # of a dense layer: the last axis of instances and the first one of the kernel
        return product(instances, kernel, precision)

    return dot_general


def weighted_sum(weights: Float[Array, " K"], instances: Float[Array, "K D"]) -> Float[Array, " D"]:
    """The sum of the instances, each times its weight."""
    if len(instances) < MANY:
        return (weights[:, None] * instances).sum(axis=0)
    return weights @ instances


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(precision: Precision, instances: Array, kernel: Array) -> Array:
    return _times(_rounded(instances, precision), _rounded(kernel, precision))


def _forward(precision: Precision, instances: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    factors = _rounded(instances, precision), _rounded(kernel, precision)
    return _times(*factors), factors


def _backward(precision: Precision, factors: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    instances, kernel = factors
    gradient = lax.optimization_barrier(gradient)  # what makes it is computed once
    rounded = _rounded(gradient, precision)
    by_instances = lax.dot_general(rounded, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    by_kernel = lax.platform_dependent(
        instances, gradient, cpu=partial(_kernel_gradient_cpu, precision), default=partial(_kernel_gradient, precision)
    )
    return by_instances, by_kernel


_product.defvjp(_forward, _backward)


def _kernel_gradient(precision: Precision, instances: Array, gradient: Array) -> Array:
    rounded = _rounded(gradient, precision)
    return lax.dot_general(instances, rounded, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _kernel_gradient_cpu(precision: Precision, instances: Array, gradient: Array) -> Array:
    @jax.custom_batching.sequential_vmap  # a product with an axis of bags would not be one of bfloat16
    def of_bag(instances: Array, gradient: Array) -> Array:
        # XLA undoes a loop of one turn, when it has chosen how to multiply.
        blocks = len(instances) // BLOCK if len(instances) >= 2 * BLOCK else 0
        count = blocks * BLOCK
        transposed = _rounded(gradient.T, precision)  # outside of the loop, so that XLA cannot undo it
        left = transposed[:, :count].reshape(gradient.shape[1], blocks, BLOCK).swapaxes(0, 1)
        right = instances[:count].reshape(blocks, BLOCK, instances.shape[1])
        rest = _times(transposed[:, count:], instances[count:])
        total, _ = lax.scan(lambda total, block: (total + _times(*block), None), rest, (left, right))
        return total.T

    return of_bag(instances, gradient)


def _times(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _rounded(values: Array, precision: Precision) -> Array:
    return values if precision == "float32" else values.astype(jnp.bfloat16)
