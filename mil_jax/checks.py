"""What holds of a pooling: the properties that training, prediction and explanation rely on, for anyone's module.

    >>> from mil_jax import checks, pooling
    >>> checks.report(pooling.AttentionPooling(8))  # doctest: +SKIP

A check compares two routes to one result, each of them a bag drawn at random: padded and not, in another order, one bag
alone and among others. It catches softmax over padding, a critical instance that is none, a mean over slots, NaN in a
gradient, and noise where none was asked for; it says nothing of how well a pooling learns.

Axes: K slots of a bag, of which n hold an instance, D embedding, C classes; R bags that differ in what they try out.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.errors import check_whole, checked
from mil_jax.pooling import NOISE, Pooled, draws_noise

TOLERANCE = 1e-4  # of a difference relative to 1 + size; a rounding error is 1e-7, and some pile up


@dataclasses.dataclass(frozen=True)
class Check:
    """One property of a pooling."""

    name: str
    """In a word or two."""
    holds: bool | None
    """Whether it does; None where it does not apply."""
    worst: float
    """The largest difference found, relative to 1 + size; infinite for a result of another shape or not finite."""
    expected: str
    """What should hold, in a sentence."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """A pooling with parameters, and what is tried on it."""

    pooling: nn.Module
    params: Any
    embeddings: np.ndarray
    """[K, D] of a bag of n instances; what lies in empty slots is 0."""
    count: int
    """n."""

    @property
    def mask(self) -> np.ndarray:
        """[K]."""
        return np.arange(len(self.embeddings)) < self.count


@checked
def contract(
    pooling: nn.Module, *, width: int = 6, classes: int = 2, slots: int = 8, count: int = 5, seed: int = 0
) -> list[Check]:
    """What holds of a pooling of embeddings [K, D], tried on bags of `count` instances in `slots` slots.

    Args:
        pooling: a module of the signature (embeddings [K, D], mask [K]) -> `Pooled`.
        width: D; poolings of instances are given log odds, and ignore it.
        classes: C, as the pooling has it.
        slots: K.
        count: n, less than K and at least 2.
        seed: of parameters and bags.

    Raises:
        InputError: sizes that leave nothing to try.
    """
    check_whole("classes", classes, 2)
    check_whole("count", count, 2, slots - 1)
    bench = draw_bench(pooling, classes - 1 if getattr(pooling, "of_instances", False) else width, slots, count, seed)
    together, lone, single = run_trials(bench), run(bench, count), run(bench, 1)
    return [
        *same_results(together, lone, single, bench),
        attention_check(together, bench.mask),
        *gradient_checks(together, bench.mask),
        chunk_check(bench, together),
        noise_check(bench),
    ]


def report(pooling: nn.Module, **sizes: int) -> bool:
    """Prints what holds of a pooling, a line for each check, and returns whether all of it does."""
    found = contract(pooling, **sizes)
    for check in found:
        verdict = {True: "holds", False: "FAILS", None: "-"}[check.holds]
        print(f"{verdict:6}{check.name:16}{check.worst:8.1e}  {check.expected}")
    return all(check.holds is not False for check in found)


# ---- what is tried ----


def draw_bench(pooling: nn.Module, width: int, slots: int, count: int, seed: int) -> Bench:
    """Parameters near those of the initialisation, so that no bias is 0, and a bag."""
    draw = np.random.default_rng(seed)
    embeddings = draw.normal(size=(slots, width)).astype(np.float32)
    embeddings[count:] = 0
    init = jax.jit(lambda key: pooling.init(key, jnp.asarray(embeddings), jnp.ones(slots, bool)))
    start = init(jax.random.key(seed)).get("params", {})
    params = jax.tree.map(lambda leaf: leaf + 0.2 * draw.normal(size=leaf.shape).astype(np.float32), start)
    return Bench(pooling, params, embeddings, count)


def told(pooled: Pooled) -> dict[str, jax.Array]:
    """All that a pooling says to the model, by name."""
    parts = {name: getattr(pooled, name) for name in ("embedding", "attention", "logits", "scores")}
    return {name: part for name, part in parts.items() if part is not None}


Trial = Callable[..., tuple[dict[str, jax.Array], Any]]


def trial_of(pooling: nn.Module) -> Trial:
    """The function of (params, embeddings, mask, label) to what is told, with the loss, and gradients of its sum."""

    def total(params: Any, embeddings: jax.Array, mask: jax.Array, label: jax.Array) -> tuple[jax.Array, Any]:
        pooled: Any = pooling.apply({"params": params}, embeddings, mask)
        parts, loss = told(pooled), getattr(pooling, "loss", None)
        if loss is not None:
            parts["loss"] = loss(pooled, label)
        weighted = [jnp.vdot(jnp.cos(jnp.arange(1.0, 1 + part.size)), part.reshape(-1)) for part in parts.values()]
        return jnp.sum(jnp.stack(weighted)), parts

    def trial(*given: Any) -> tuple[dict[str, jax.Array], Any]:
        (_, parts), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(*given)
        return parts, gradients

    return trial


# What is tried out together: the bag as it is, junk in its empty slots, another order, no instance, a single one.
TRIALS = ("plain", "junk", "turned", "empty", "single")


def turned(count: int) -> np.ndarray:
    """Another order of the instances of a bag, in which none keeps its place."""
    return np.roll(np.arange(count)[::-1], 1) if count % 2 else np.arange(count)[::-1]


def run_trials(bench: Bench) -> dict[str, Any]:
    """What the pooling makes of the bags of `TRIALS`, which are mapped over in one program."""
    plain, mask = bench.embeddings, bench.mask
    junk = np.where(mask[:, None], plain, 1e3 * np.cos(np.arange(plain.size)).reshape(plain.shape).astype(np.float32))
    other = plain.copy()
    other[: bench.count] = plain[turned(bench.count)]
    masks = np.stack([mask, mask, mask, np.arange(len(mask)) < 0, np.arange(len(mask)) < 1])
    bags = np.stack([plain, junk, other, junk, junk])
    mapped = jax.jit(jax.vmap(trial_of(bench.pooling), in_axes=(None, 0, 0, None)))
    results = mapped(bench.params, bags, masks, jnp.int32(1))
    return {name: jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], results) for i, name in enumerate(TRIALS)}


def run(bench: Bench, count: int, pooling: nn.Module | None = None, slots: int | None = None) -> Any:
    """What the pooling, or another one with its parameters, makes of the first instances of the bag, unpadded."""
    embeddings = bench.embeddings[: count if slots is None else slots]
    mask = np.arange(len(embeddings)) < count
    results = jax.jit(trial_of(pooling or bench.pooling))(bench.params, embeddings, mask, jnp.int32(1))
    return jax.tree.map(np.asarray, results)


# ---- what is compared ----


def difference(one: Any, other: Any) -> float:
    """The largest difference of two trees relative to 1 + size; infinite for other shapes or values not finite."""
    left, right = jax.tree.leaves(one), jax.tree.leaves(other)
    if [np.shape(leaf) for leaf in left] != [np.shape(leaf) for leaf in right]:
        return float("inf")
    found = [
        np.abs(a - b) / (1 + np.abs(b)) for a, b in zip(map(np.asarray, left), map(np.asarray, right), strict=True)
    ]
    worst = max((float(part.max()) for part in found if part.size), default=0.0)
    return worst if np.isfinite(worst) else float("inf")


def check_of(name: str, worst: float, expected: str, tolerance: float = TOLERANCE) -> Check:
    """A check that holds where the largest difference is within the tolerance."""
    return Check(name, worst <= tolerance, worst, expected)


def by_slot(result: Any, index: np.ndarray) -> Any:
    """The result with what it says of slots only of those at `index`, in that order."""
    parts, (by_params, by_embedding) = result
    parts = {name: part[index] if name in ("attention", "scores") else part for name, part in parts.items()}
    return parts, (by_params, by_embedding[index])


def same_results(together: dict[str, Any], lone: Any, single: Any, bench: Bench) -> Iterator[Check]:
    """Those in which the same bag comes in two forms."""
    filled = np.arange(bench.count)
    padded = difference(by_slot(together["plain"], filled), lone)
    yield check_of("padding", padded, "empty slots behind a bag change no result and no gradient")
    junk = difference(by_slot(together["junk"], filled), by_slot(together["plain"], filled))
    yield check_of("empty slots", junk, "what lies in an empty slot changes nothing")
    parts = [by_slot(together[name], index)[0] for name, index in (("plain", turned(bench.count)), ("turned", filled))]
    # The gradients are those of a sum that weighs slots unevenly, and so only results are compared.
    worst, expected = difference(*parts), "the order of the instances changes only the order of what is said of them"
    check = check_of("order", worst, expected)
    ordered = getattr(bench.pooling, "ordered", False)
    yield Check("order", None, worst, "the pooling says that it looks at the order of instances") if ordered else check
    one = difference(by_slot(together["single"], np.arange(1)), single)
    yield check_of("one instance", one, "a bag of one is the same in one slot and in many")


def attention_check(together: dict[str, Any], mask: np.ndarray) -> Check:
    """Whether attention is a distribution over the instances."""
    worst = 0.0
    for name, filled in (("plain", mask), ("junk", mask), ("single", np.arange(len(mask)) < 1)):
        attention = together[name][0]["attention"]
        wrong = (abs(attention.sum() - 1), np.abs(attention[~filled]).max(), np.maximum(-attention, 0).max())
        worst = max(worst, *(float(part) if np.isfinite(part) else float("inf") for part in wrong))
    return check_of("attention", worst, "attention is at least 0, sums to 1, and is 0 in empty slots")


def gradient_checks(together: dict[str, Any], mask: np.ndarray) -> Iterator[Check]:
    """No gradient is NaN, and only instances have one."""
    parts, gradients = together["empty"]
    said = {name: part for name, part in parts.items() if name != "loss"}
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((parts, gradients)))
    worst = difference(said, jax.tree.map(np.zeros_like, said)) if finite else float("inf")
    expected = "a bag without instances gives zeros, and a loss and gradients that are finite"
    yield check_of("no instance", worst, expected, 0.0)
    rows = [together[name][1][1] for name in ("plain", "junk")]
    outside = max(float(np.abs(row[~mask]).max()) if np.isfinite(row).all() else float("inf") for row in rows)
    yield check_of("gradient", outside, "gradients are finite, and 0 in empty slots", 0.0)
    reached = np.abs(rows[0][mask]).max() > 0
    yield Check("reach", bool(reached), 0.0 if reached else 1.0, "the instances of a bag have a gradient")


def chunk_check(bench: Bench, together: dict[str, Any]) -> Check:
    """Whether parts of a bag at a time give what the whole bag gives."""
    expected = "instances a few at a time give the same results and gradients as all at once"
    names = {field.name for field in dataclasses.fields(bench.pooling)}
    if "chunk" not in names or getattr(bench.pooling, "sparse", False):
        return Check("chunk", None, 0.0, expected)
    chunked = dataclasses.replace(bench.pooling, chunk=3)  # pyright: ignore[reportCallIssue]
    return check_of("chunk", difference(run(bench, bench.count, chunked, len(bench.mask)), together["plain"]), expected)


def noise_check(bench: Bench) -> Check:
    """Whether the pooling draws random numbers where it says so, and where it is given a key, and nowhere else."""
    variables, bag = {"params": bench.params}, (jnp.asarray(bench.embeddings), jnp.asarray(bench.mask))

    def results(key: jax.Array) -> Any:
        return told(bench.pooling.apply(variables, *bag, rngs={NOISE: key}))  # pyright: ignore[reportArgumentType]

    drawn = jax.jit(results)
    same, other = (difference(drawn(jax.random.key(i)), drawn(jax.random.key(0))) for i in (0, 1))
    if draws_noise(bench.pooling):
        expected = "in training the key decides the noise: the same one the same, another one another"
        return Check("noise", same == 0 and other > 0, same, expected)
    return check_of("noise", max(same, other), "a pooling that does not say that it is noisy draws nothing", 0.0)
