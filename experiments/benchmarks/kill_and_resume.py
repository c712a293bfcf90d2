"""Does a run that was killed end as if nothing had happened? `kill -9` at moments spread over it, each resumed.

Runs mnist_bags once to its end, then again and again, killed without warning at another moment each time and resumed,
and compares `metrics.jsonl`, `attention.npz`, the metrics of `summary.json` and the parameters, bit by bit.

    python experiments/benchmarks/kill_and_resume.py
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from mil_jax import cli, runs
from mil_jax.errors import InputError, RunError

SCRIPT = Path(__file__).parents[1] / "mnist_bags.py"


@dataclass(frozen=True)
class Config:
    """Options of the check."""

    kills: int = 20
    """Moments at which a run is killed, spread evenly from its start to its end."""
    members: int = 8
    """Members of the run."""
    epochs: int = 20
    """Epochs of the run."""


def main(config: Config) -> None:
    """Kills, resumes, compares; exits with 1 where a difference shows."""
    if config.kills < 1:
        raise InputError("kills", config.kills, "use at least 1")
    with tempfile.TemporaryDirectory() as folder:
        run_mnist_bags(config, Path(folder) / "warm")  # compiles, so that the moments fall into the training
        started = time.perf_counter()
        run_mnist_bags(config, Path(folder) / "whole")
        seconds = time.perf_counter() - started
        rows = []
        for i in range(config.kills):
            out = Path(folder) / f"killed{i}"
            moment = seconds * (i + 0.5) / config.kills
            epoch = kill_after(config, out, moment)
            run_mnist_bags(config, out, resume=(out / "config.json").exists() and not (out / "summary.json").exists())
            differences = compare(Path(folder) / "whole", out)
            rows.append([f"{moment:.1f}", epoch, ", ".join(differences) or "none"])
            cli.say(f"killed after {moment:.1f} s, {epoch}; differences: {rows[-1][2]}")
    same = sum(row[2] == "none" for row in rows)
    cli.print_table(f"kill -9 of a run of {seconds:.1f} s", ("seconds", "it was", "differences"), rows)
    cli.say(f"{same} of {config.kills} end with the same bits")
    sys.exit(same != config.kills)


def command_of(config: Config, out: Path) -> list[str]:
    return [
        sys.executable, str(SCRIPT), "--members", str(config.members), "--epochs", str(config.epochs),
        "--out", str(out),
    ]  # fmt: skip


def run_mnist_bags(config: Config, out: Path, resume: bool = False) -> None:
    """Runs to the end."""
    command = [*command_of(config, out), *(["--resume"] if resume else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-300:]}")


def kill_after(config: Config, out: Path, seconds: float) -> str:
    """Starts a run, kills it, and says how far it had come."""
    with subprocess.Popen(command_of(config, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    if not (out / "config.json").exists():
        return "before the run folder"
    if (out / "summary.json").exists():
        return "at its end"
    log = out / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return f"after epoch {json.loads(lines[-1])['epoch'] if lines else 0}, {len(lines)} lines logged"


def compare(whole: Path, resumed: Path) -> list[str]:
    """Names of what differs."""
    same_bytes = ("metrics.jsonl", "attention.npz")
    differing = [name for name in same_bytes if (whole / name).read_bytes() != (resumed / name).read_bytes()]
    before, after = runs.load_run(whole), runs.load_run(resumed)
    for part in ("members", "mean", "ensemble"):
        if (before.summary or {})[part] != (after.summary or {})[part]:
            differing.append(f"summary.json: {part}")
    equal = jax.tree.map(lambda a, b: np.array_equal(a, b), before.params, after.params)
    return differing if all(jax.tree.leaves(equal)) else [*differing, "checkpoint"]


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
