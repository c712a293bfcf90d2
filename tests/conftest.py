"""What several test files share: two devices on a CPU, a tiny model, and small sets of bags.

The problem is a miniature of the real one: 60 instances of 6 features, of which 20 are positive and
lie apart from the others, in bags of 3.
"""

import contextlib
import csv
import dataclasses
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mil_jax.arrays import bags_from_arrays
from mil_jax.bags import Bags, Scaler, take
from mil_jax.ensemble import Ensemble, Execution, fit_ensemble, member_keys
from mil_jax.errors import InputError
from mil_jax.model import MIL, ModelConfig, Prediction, build
from mil_jax.optimizer import Hyper
from mil_jax.placement import Placement
from mil_jax.run import cli
from mil_jax.sampling import sample_bags
from mil_jax.training import EpochInfo, FitConfig, FitState, MemberKeys

# Before anything starts a backend, so that sharding over two devices is really tested on a CPU.
jax.config.update("jax_num_cpu_devices", 2)
# Programs compile in half the time, here and in commands; `XLA_FLAGS= pytest` tests those that users get. Later
# versions do not know the flag, and XLA ends a process that is given one it does not know.
if jax.__version_info__ < (0, 11):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

FEATURES = 6

# Compiles in half the time; for programs that are compared up to rounding.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
quick_jit = partial(jax.jit, compiler_options=QUICK)


def make_pool(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """60 instances [N, 6] and their classes [N]; the 20 of class 1 lie apart from the others."""
    classes = np.arange(60) % 3
    instances = np.random.default_rng(seed).normal(size=(60, FEATURES)).astype(np.float32)
    instances[:, 0] += 3.0 * (classes == 1)
    return instances, classes


def draw_bags(seed: int, bag_count: int) -> Bags:
    """Up to 40 full bags of 3 from a pool of their own."""
    # Always 40, so that the draw is compiled once.
    return take(sample_bags(jax.random.key(seed), *make_pool(seed), count=40), np.arange(bag_count))


@pytest.fixture(scope="session")
def train_bags() -> Bags:
    """23 full bags of 3: a prime number, so that no batch size divides it."""
    return draw_bags(1, 23)


@pytest.fixture(scope="session")
def val_bags() -> Bags:
    """17 full bags of 3, of other instances than `train_bags`."""
    return draw_bags(2, 17)


@pytest.fixture(scope="session")
def bags() -> Bags:
    """40 full bags of 3, to judge predictions on."""
    return draw_bags(7, 40)


def changed(bags: Bags, **parts: Any) -> Bags:
    """The bags with other parts of their view."""
    return Bags(bags.pool, dataclasses.replace(bags.view, **parts))


@pytest.fixture(scope="session")
def ragged_bags() -> Bags:
    """19 bags of 1 to 5 instances, padded to 5 slots."""
    instances, classes = make_pool(3)
    rng = np.random.default_rng(4)
    rows = [rng.choice(60, size=1 + i % 5, replace=False) for i in range(19)]
    truth = [(classes[bag] == 1).astype(np.int32) for bag in rows]
    labels = [int(bag.max()) for bag in truth]
    return bags_from_arrays([instances[bag] for bag in rows], labels, truth)


@pytest.fixture(scope="session")
def concat_model() -> MIL:
    """The Keras example's kind of model, tiny: its bags have 3 instances."""
    return build(ModelConfig(hidden=(8, 4), attention_units=5))


@pytest.fixture(scope="session")
def sum_model() -> MIL:
    """The paper's kind of model, tiny: it takes any bag."""
    return build(ModelConfig(hidden=(8, 4), attention_units=5, head="sum"))


def hyper_of(rate: float = 0.02, l2: float | None = 0.01, weights: Sequence[float] = (1, 1), **more: Any) -> Hyper:
    """Hyperparameters of plain numbers."""
    strength = None if l2 is None else jnp.float32(l2)
    return Hyper(jnp.float32(rate), strength, jnp.array(weights, jnp.float32), **more)


def guesses(bags: Bags, members: int, slope: float, start: float = 0.0) -> Prediction:
    """Predictions [S, B, …] that tell the labels better than chance but not surely, with attention at random."""
    rng = np.random.default_rng(0)
    positive = 1 / (1 + np.exp(-rng.normal(size=(members, len(bags.label))) - slope * np.asarray(bags.label) - start))
    attention = rng.dirichlet(np.ones(bags.slots), size=positive.shape)
    probability = np.stack([1 - positive, positive], axis=-1)
    return Prediction(jnp.asarray(probability, jnp.float32), jnp.asarray(attention, jnp.float32))


def numpy_forward(params: Any, x: np.ndarray, mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Logits [C] and attention [K] of one bag, in double precision or complex; empty slots enter with weight 0."""
    hidden, pooling, head = np.asarray(x, np.float64).reshape(len(x), -1), params["pooling"], params["head"]
    for layer in sorted(params["encoder"]):
        hidden = hidden @ params["encoder"][layer]["kernel"] + params["encoder"][layer]["bias"]
        hidden = np.where(hidden.real > 0, hidden, 0)
    inner = np.tanh(hidden @ pooling["V"]["kernel"])
    if "U" in pooling:
        inner = inner / (1 + np.exp(-hidden @ pooling["U"]["kernel"]))
    exponentials = np.exp(inner @ pooling["w"]["kernel"])[:, 0] * mask
    attention = exponentials / exponentials.sum()
    weighted = attention[:, None] * hidden
    joined = weighted.ravel() if len(head["kernel"]) == weighted.size else weighted.sum(axis=0)
    return joined @ head["kernel"] + head["bias"], attention


def in_double(params: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


@pytest.fixture(scope="session")
def quick_hyper() -> Hyper:
    """A learning rate that gets somewhere within a few steps; unequal class weights."""
    return hyper_of(0.02, 0.01, (0.8, 1.5))


@pytest.fixture(scope="session")
def quick_config() -> FitConfig:
    """Few epochs, of which the last batch is a partial one, and little patience."""
    return FitConfig(epochs=6, batch_size=5, patience=2)


@dataclasses.dataclass(frozen=True)
class HostRun:
    """A run of `fit_ensemble` on one device, one member at a time, and what was seen on the way.

    Attributes:
        keys: of its members.
        ensemble: what came back.
        infos: of each epoch, all members [S].
        states: after each epoch, all members [S], as NumPy.
        compiled: (epochs done, program) of everything that was compiled on the way.
        announcements: how often `on_compiled` was called.
    """

    keys: MemberKeys
    ensemble: Ensemble
    infos: list[EpochInfo]
    states: list[FitState]
    compiled: list[tuple[int, str]]
    announcements: int


@pytest.fixture(scope="session")
def host_run(
    concat_model: MIL, train_bags: Bags, val_bags: Bags, quick_config: FitConfig, quick_hyper: Hyper
) -> HostRun:
    """Three members, of which the second trains to the end and the others stop earlier."""
    keys = member(member_keys(jax.random.key(0), 7), np.array([0, 1, 6]))
    infos: list[EpochInfo] = []
    states: list[FitState] = []
    compiled: list[tuple[int, str]] = []
    announced: list[int] = []

    def on_event(event: str, duration_secs: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append((len(infos), about["fun_name"]))

    def on_epoch(epoch: int, info: EpochInfo, state: FitState) -> None:
        assert epoch == len(infos) + 1
        infos.append(info)
        states.append(jax.tree.map(np.array, state))

    jax.monitoring.register_event_duration_secs_listener(on_event)
    execution = Execution(Placement(1, 1), on_epoch=on_epoch, on_compiled=lambda: announced.append(len(infos)))
    with quick_programs(False):  # the same programs, whatever test asks for it first
        ensemble = fit_ensemble(concat_model, keys, train_bags, val_bags, quick_config, quick_hyper, execution)
    jax.monitoring.unregister_event_duration_listener(on_event)
    return HostRun(keys, ensemble, infos, states, compiled, len(announced))


@pytest.fixture(scope="session")
def diverged_run(sum_model: MIL, train_bags: Bags, val_bags: Bags) -> Ensemble:
    """Three members, of which the second sees instances that are too large for single precision: they are infinite."""
    factor = np.array([1, 3e38, 1], np.float32)[:, None].repeat(FEATURES, axis=1)
    rates = np.array([0.02, 1e3, 0.02], np.float32)
    hyper = dataclasses.replace(hyper_of(), learning_rate=rates, scaler=Scaler(0 * factor, factor))
    keys, config = member_keys(jax.random.key(1), 3), FitConfig(epochs=3, batch_size=5, patience=2)
    with quick_programs():
        return fit_ensemble(sum_model, keys, train_bags, val_bags, config, hyper, Execution(Placement(1, 1)))


def member(tree: Any, i: Any) -> Any:
    """A member's part of a tree whose arrays have the leading axis S, or the parts of several."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def assert_same_bits(one: Any, other: Any) -> None:
    """Asserts that two trees of arrays are equal, NaN to NaN."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_close(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    """Asserts that two trees of arrays are equal up to rounding in single precision, NaN to NaN.

    The numbers are of order 1, and one rounding error is 6e-8, of which some epochs pile up a few.
    """

    def check(left: Any, right: Any) -> None:
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)

    jax.tree.map(check, one, other)


def message_of(call: Callable[..., object], *arguments: Any, **options: Any) -> str:
    """The one line of the InputError that a call ends in."""
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def unchecked(record: type, **fields: Any) -> Any:
    """A record made past the tests' type checker, as a user makes it."""
    made = object.__new__(record)
    for field in dataclasses.fields(record):
        object.__setattr__(made, field.name, fields.get(field.name, field.default))
    made.__post_init__()
    return made


def assert_parts(message: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in message


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table `stand_in.csv` in which a positive bag holds an instance whose first feature is large."""
    folder, draw, lines = tmp_path_factory.mktemp("classic"), np.random.default_rng(0), []
    for bag in range(24):
        for instance in range(1 + bag % 5):
            first = 3.0 if bag % 2 and not instance else draw.normal(0, 0.2)
            lines.append(f"{bag % 2},{bag},{first:.4f},{draw.normal():.4f},7\n")
    (folder / "stand_in.csv").write_text("".join(lines))
    return folder


@contextlib.contextmanager
def quick_programs(quick: bool = True) -> Iterator[None]:
    """Programs compile in less time, and are slower; for what is compared up to rounding."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def quickly_compiled() -> Iterator[None]:
    """`quick_programs` for all tests of a file."""
    with quick_programs():
        yield


@contextlib.contextmanager
def commands_here(cache: Path, quick: bool = False) -> Iterator[None]:
    """Lets commands in this process use the cache folder, and puts back what they change.

    With `quick`, programs are compiled in less time, and are slower.
    """
    jax.devices()  # from here on the number of devices is settled
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    absl = logging.getLogger("absl")
    level = absl.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        compilation_cache.reset_cache()
        with quick_programs() if quick else contextlib.nullcontext():
            yield
    absl.setLevel(level)
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's cache folder, in which the compiled programs of a file's runs are kept, quickly compiled."""
    cache = tmp_path_factory.mktemp("cache")
    with commands_here(cache, quick=True):
        yield cache


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command_here(script: Any, *options: str) -> tuple[int, list[str]]:
    """Runs a command in this process: (exit status, the lines that it printed on stdout and stderr)."""
    printed, status = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(printed):
        patch.setattr(sys, "argv", [f"{script.__name__}.py", *options])
        try:
            with contextlib.redirect_stdout(printed):
                cli.command(script.Config, script.main, script.__doc__)
        except SystemExit as stop:
            status = stop.code
    assert isinstance(status, int)
    return status, printed.getvalue().splitlines()
