"""A cohort larger than memory: what an epoch of 8 members takes, in windows read from the disk.

    python experiments/benchmarks/large_cohort.py                    # makes 8 GB in /tmp, and removes them afterwards
    python experiments/benchmarks/large_cohort.py --gigabytes 2 --folder /data --keep

It prints, each from a process of its own: seconds, peak memory and MB/s of one epoch of 8 members over all bags;
seconds per instance of the first bags that fit into one window, in memory and in windows of a quarter of that; and
whether a run that was killed with SIGKILL in the middle of an epoch goes on to the same bits.
The features are normal, seeded; positive bags hold a share of shifted instances.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import mil_jax
from mil_jax.datasets.cohort import Cohort
from mil_jax.datasets.pack import PackedBag, load_packed
from mil_jax.ensemble import Ensemble, member_keys
from mil_jax.errors import InputError
from mil_jax.model import ModelConfig, build
from mil_jax.placement import to_host
from mil_jax.protocols import Folds, stack_places
from mil_jax.run.cli import command
from mil_jax.streaming import WindowExecution, WindowProgress, fit_windows, window_hyper
from mil_jax.training import FitConfig, blank_info
from mil_jax.windows import Windows

Step = Literal["all", "epoch", "memory", "windows", "killed", "whole", "resumed"]


@dataclasses.dataclass(frozen=True)
class Config:
    """How large, and where."""

    gigabytes: float = 8.0
    """Size of the features in float16."""
    features: int = 1024
    """Of an instance."""
    mean: int = 4000
    """Instances of a bag on the average; bags have a fourth to seven fourths of it."""
    window: int = 100_000
    """Instances in memory at a time."""
    members: int = 8
    """Members trained, in four folds."""
    folder: Path = Path("/tmp/mil_jax_large_cohort")
    """Where the cohort is made."""
    keep: bool = False
    """Leave the cohort there."""
    step: Step = "all"
    """One measurement, in this process; what a process of its own is asked for."""


# ---- the cohort ----


def make_cohort(config: Config) -> Cohort:
    """Writes the cohort as `pack` would, a chunk of a bag at a time, where it is not there yet."""
    if (config.folder / "manifest.json").exists():
        return load_packed(config.folder)
    count = round(config.gigabytes * 1e9 / 2 / config.features / config.mean)
    if shutil.disk_usage(config.folder.parent).free < config.gigabytes * 1.1e9:
        raise InputError("folder", str(config.folder), f"expected a disk with {config.gigabytes:g} GB to spare")
    config.folder.mkdir(parents=True)
    draw, bags, offset = np.random.default_rng(0), [], 0
    noise = draw.normal(size=(1 << 15, config.features)).astype(np.float16)
    with (config.folder / "features.bin").open("wb") as file:
        for i in range(count):
            size = int(config.mean * (0.25 + 1.5 * draw.random()))
            values = noise[draw.integers(0, len(noise), size)]
            values[: size // 20, :8] += np.float16(i % 2)
            offset += -offset % 64
            file.seek(offset)
            file.write(values.data)
            bags.append({"name": f"bag {i}", "group": f"bag {i}", "label": i % 2, "split": "", "size": size,
                         "offset": offset, "sha256": hashlib.sha256(values.data).hexdigest()})  # fmt: skip
            offset += values.nbytes
    content = {"format": 1, "name": "made up", "class_names": ["0", "1"], "shape": [config.features], "unit": "",
               "patch_size": 0.0, "source": "made up", "dtype": "<f2", "notes": [], "bags": bags}  # fmt: skip
    (config.folder / "manifest.json").write_text(json.dumps(content))
    return load_packed(config.folder)


def folds_of(bags: int, members: int) -> Folds:
    """Four folds of bags; member s is chosen on fold s and judged on the next."""
    fold = np.arange(bags) // 2 % 4
    at = lambda *numbers: np.flatnonzero(np.isin(fold, numbers))  # noqa: E731
    rows = [(at(s % 4, (s + 1) % 4), at((s + 2) % 4), at((s + 3) % 4)) for s in range(members)]
    return Folds(*(stack_places(part) for part in zip(*rows, strict=True)))


def drop_cached(config: Config) -> None:
    """Lets the system forget what it holds of the file, so that reading means the disk."""
    with (config.folder / "features.bin").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---- one measurement, in a process of its own ----


def first_bags(cohort: Cohort, instances: int) -> Cohort:
    """The first bags that have so many instances."""
    count = int(np.searchsorted(np.cumsum(cohort.sizes), instances, side="right"))
    return dataclasses.replace(cohort, bags=cohort.bags[:count])


def train(cohort: Cohort, window: int, config: Config, epochs: int, execution: WindowExecution) -> Ensemble:
    """Members of the usual model."""
    model = build(ModelConfig(hidden=(256, 128), attention_units=128, head="sum"))
    folds = folds_of(len(cohort.bags), config.members)
    windows, keys = Windows(cohort, window), member_keys(jax.random.key(0), config.members)
    fit = FitConfig(epochs=epochs, patience=epochs)
    return fit_windows(model, keys, windows, folds, fit, window_hyper(windows, folds), execution)


def measure(config: Config) -> dict[str, Any]:
    """One step: seconds of the epochs, MB read, peak memory, and the hash of the parameters."""
    mil_jax.use_all_cores()
    cohort, window, epochs = load_packed(config.folder), config.window, 1
    if config.step in ("memory", "windows"):
        cohort, epochs = first_bags(cohort, config.window), 3
        window = config.window if config.step == "memory" else config.window // 4
    if config.step in ("killed", "whole", "resumed"):
        cohort, window, epochs = first_bags(cohort, config.window), config.window // 4, 2
    saved, ends, done = config.folder / "progress.npz", [time.perf_counter()], []
    read = count_bytes()

    def on_window(progress: WindowProgress) -> None:
        done.append(progress.window)
        if config.step == "killed":
            save(saved, progress)
            if len(progress.infos) == 1 and progress.window == 2:
                print("killing", flush=True)
                time.sleep(60)

    def on_epoch(*_: Any) -> None:
        ends.append(time.perf_counter())

    progress = load(saved, config) if config.step == "resumed" else None
    execution = WindowExecution(None, progress, on_epoch, lambda: ends.append(time.perf_counter()), on_window)
    if config.step == "epoch":
        drop_cached(config)
    trained = train(cohort, window, config, epochs, execution)
    digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(trained)))
    return {
        "seconds": ends[-1] - (ends[-2] if len(ends) > 2 else ends[0]) if epochs > 1 else ends[-1] - ends[0],
        "megabytes": read[0] / 1e6, "instances": int(cohort.sizes.sum()), "windows": len(done) + 1,
        "cpu_seconds": time.process_time(), "sha256": digest.hexdigest()[:16],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def count_bytes() -> list[int]:
    """Bytes of features read from here on."""
    read, plain = [0], PackedBag.read

    def counted(bag: PackedBag) -> Any:
        values = plain(bag)
        read[0] += values[0].nbytes
        return values

    PackedBag.read = counted  # type: ignore[method-assign]
    return read


def save(path: Path, progress: WindowProgress) -> None:
    """Writes the progress, whole or not at all."""
    leaves = jax.tree.leaves(to_host((progress.state, progress.infos, progress.sums)))
    beside = path.with_suffix(".partial.npz")
    np.savez(beside, np.array([len(progress.infos), progress.window]), *leaves)
    beside.replace(path)


def load(path: Path, config: Config) -> WindowProgress:
    """Reads it; the structure comes from the first window of a run that is stopped at once."""

    class Stop(Exception):
        pass

    seen: list[WindowProgress] = []

    def stop(progress: WindowProgress) -> None:
        seen.append(dataclasses.replace(progress, state=to_host(progress.state), sums=to_host(progress.sums)))
        raise Stop

    cohort = first_bags(load_packed(config.folder), config.window)
    with contextlib.suppress(Stop):
        train(cohort, config.window // 4, config, 2, WindowExecution(on_window=stop))
    with np.load(path) as archive:
        (epochs, window), *leaves = (archive[name] for name in archive.files)
    like = (seen[0].state, tuple(blank_info() for _ in range(epochs)), seen[0].sums)
    state, infos, sums = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return WindowProgress(state, infos, int(window), sums)


# ---- all of them ----


def in_process(config: Config, step: Step) -> dict[str, Any]:
    """The measurement of another process."""
    given = {**dataclasses.asdict(config), "step": step}
    given.pop("keep")
    options = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    with subprocess.Popen([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("killing"):
                process.send_signal(signal.SIGKILL)
                return {}
            if line.startswith("{"):
                return json.loads(line)
    raise RuntimeError(f"{step} ended without a result")


def main(config: Config) -> None:
    """Makes the cohort, measures, and removes it."""
    if config.step != "all":
        print(json.dumps(measure(config)))
        return
    try:
        cohort = make_cohort(config)
        size = int(cohort.sizes.sum())
        print(f"{len(cohort.bags)} bags, {size} instances, {size * config.features * 2 / 1e9:.2f} GB", flush=True)
        epoch = in_process(config, "epoch")
        print(f"one epoch of {config.members} members: {epoch['seconds']:.0f} s with compiling, {epoch['windows']} "
              f"windows, {epoch['megabytes']:.0f} MB at {epoch['megabytes'] / epoch['seconds']:.0f} MB/s, "
              f"peak {epoch['peak_mib']:.0f} MiB", flush=True)  # fmt: skip
        memory, windows = in_process(config, "memory"), in_process(config, "windows")
        for name, one in (("memory", memory), ("windows", windows)):
            print(f"{one['instances']} instances in {name}: {one['seconds']:.2f} s an epoch, peak "
                  f"{one['peak_mib']:.0f} MiB", flush=True)  # fmt: skip
        print(f"windows / memory: {windows['seconds'] / memory['seconds']:.2f}", flush=True)
        in_process(config, "killed")
        whole, resumed = in_process(config, "whole"), in_process(config, "resumed")
        same = "the same bits" if whole["sha256"] == resumed["sha256"] else "OTHER BITS"
        print(f"killed in the middle of epoch 2 and resumed: {same}")
    finally:
        if not config.keep:
            shutil.rmtree(config.folder, ignore_errors=True)


if __name__ == "__main__":
    command(Config, main, __doc__)
