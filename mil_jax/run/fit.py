"""Training that leaves a trace: a log, checkpoints to resume from, a progress bar, and an orderly stop.

`fit_resumably` is what a run and a row of a study have in common, `fit_recorded` is a run's.

Axes: S members, E epochs.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from mil_jax import evaluation
from mil_jax.bags import Bags
from mil_jax.ensemble import Ensemble, Execution, OnEpoch, Progress, best_members, fit_ensemble, to_host
from mil_jax.members import Members
from mil_jax.model import MIL
from mil_jax.optimizer import Hyper, by_member
from mil_jax.run.config import Compute
from mil_jax.run.folder import RunFolder
from mil_jax.run.processes import Interrupted, any_process, lost_processes, placement_of, stop_requests
from mil_jax.run.screen import Stopwatch, epoch_progress, losses_text, release_memory
from mil_jax.training import EpochInfo, FitConfig, FitState, MemberKeys, blank_info, init_fit

LOGGED_SCORES = ("train_loss", "train_accuracy", "gradient_norm", "val_loss", "val_accuracy")


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be trained: the arguments of `fit_ensemble`."""

    model: MIL
    keys: MemberKeys
    train: Bags
    val: Bags
    config: FitConfig
    hyper: Hyper

    @property
    def members(self) -> int:
        """S."""
        return self.keys.init.shape[0]

    def fit(self, execution: Execution) -> Ensemble:
        """Trains all members."""
        return fit_ensemble(self.model, self.keys, self.train, self.val, self.config, self.hyper, execution)


def fit_recorded(
    run: RunFolder,
    task: Task,
    compute: Compute,
    watch: Stopwatch,
    also_when_compiled: Callable[[], object] | None = None,
) -> Ensemble:
    """`fit_ensemble`, with a line per member and epoch in `metrics.jsonl`, and the best parameters in `checkpoint/`.

    With `compute.resume` it goes on from the newest checkpoint, cuts the log back to it, and ends with the same numbers
    as a run that was not stopped: bit by bit with the same devices. Ctrl-C and SIGTERM end it after the epoch, with a
    checkpoint.

    Raises:
        Interrupted: it was asked to stop.
        RunError: the disk is full, or another process of the run has died.
    """
    started = time.perf_counter()
    watch.add("compile", 0.0)

    def on_compiled() -> None:
        release_memory()
        watch.add("compile", time.perf_counter() - started)
        if also_when_compiled:
            also_when_compiled()

    def log(epoch: int, info: EpochInfo, state: FitState) -> None:
        run.log(log_lines(info))

    def keep_best(epoch: int, state: FitState) -> str:
        members = best_members(state, task.members, by_member(task.hyper, task.members), task.train)
        run.write_members(checkpoint_tree(members))
        go_on = "; go on with --resume" if compute.checkpoint_every else ""
        return f"the log of {epoch} epochs and, in checkpoint/, the best parameters so far{go_on}"

    trained, _ = fit_resumably(run, task, compute, keep_best, on_epoch=log, on_compiled=on_compiled)
    watch.add("train", time.perf_counter() - started - watch.seconds["compile"])
    run.write_members(checkpoint_tree(trained.members))
    return trained


def fit_resumably(
    run: RunFolder,
    task: Task,
    compute: Compute,
    keep: Callable[[int, FitState], str],
    title: str = "",
    *,
    on_epoch: OnEpoch | None = None,
    on_compiled: Callable[[], None] | None = None,
) -> tuple[Ensemble, float]:
    """`fit_ensemble` with checkpoints, as `compute` says, and the seconds that it took in all sittings.

    Args:
        run: where the checkpoints are.
        task: what is trained.
        compute: how often a checkpoint is made, and whether to go on from one.
        keep: called with the epoch and the states where the run is asked to stop; says what its folder keeps then.
        title: what the screen calls it where it is one of many.
        on_epoch: called after every epoch, before its checkpoint is made.
        on_compiled: called once, when the program of an epoch is compiled.

    Raises:
        Interrupted: it was asked to stop.
        RunError: the disk is full, or another process of the run has died.
    """
    started = time.perf_counter()
    progress, before = load_progress(run, task) if compute.resume else (None, 0.0)
    infos = list(progress.infos) if progress else []
    seconds = lambda: before + time.perf_counter() - started  # noqa: E731
    with stop_requests() as stop_asked, epoch_progress(task.config.epochs, title) as show:

        def after_epoch(epoch: int, info: EpochInfo, state: FitState) -> None:
            infos.append(info)
            if on_epoch:
                on_epoch(epoch, info, state)
            show(epoch, losses_text(info))
            stop = any_process(stop_asked())
            if compute.checkpoint_every and (stop or epoch % compute.checkpoint_every == 0):
                run.save_progress(epoch, progress_tree(state, infos), seconds())
            if stop and epoch < task.config.epochs:
                kept = keep(epoch, state)
                run.note(f"stopped after epoch {epoch}")
                raise Interrupted(f"{run.path} keeps {kept}")

        with lost_processes():
            execution = Execution(placement_of(compute, task.members), progress, after_epoch, on_compiled)
            return task.fit(execution), seconds()


def checkpoint_tree(members: Members) -> dict[str, Any]:
    """What `checkpoint/` holds."""
    scaler = {} if members.scaler is None else {k: v for k, v in vars(members.scaler).items() if v is not None}
    return {"params": members.params} | ({"scaler": scaler} if scaler else {})


def progress_tree(state: FitState, infos: list[EpochInfo]) -> dict[str, Any]:
    """What a checkpoint of the progress holds: the members, and the infos of all epochs so far, stacked."""
    return {"state": state, "infos": jax.tree.map(lambda *leaves: np.stack(leaves), *infos)}


def load_progress(run: RunFolder, task: Task) -> tuple[Progress | None, float]:
    """Where the run stood at its newest whole checkpoint, and the seconds until then; None where there is none yet."""
    member = partial(init_fit, task.model, bag_size=task.train.slots, instance_shape=task.train.kind.shape)
    one = jax.tree.map(lambda key: key[0], task.keys)
    # Only structure and types are taken from here; the checkpoint knows how many members and epochs it holds.
    like = {"state": jax.eval_shape(member, one), "infos": jax.eval_shape(blank_info)}
    loaded = run.load_progress(like)
    if loaded is None:
        run.note("no checkpoint yet: from the start")
        return None, 0.0
    tree, facts = loaded
    epoch = facts["epoch"]
    run.note(f"from the checkpoint of epoch {epoch}")
    infos = to_host(tree["infos"])
    of_epoch = lambda i: jax.tree.map(lambda leaf: leaf[i], infos)  # noqa: E731
    return Progress(tree["state"], tuple(map(of_epoch, range(epoch)))), facts.get("seconds", 0.0)


def log_lines(info: EpochInfo) -> list[dict[str, Any]]:
    """The epoch's line of each member that trained it."""
    scores = {name: getattr(info, name) for name in LOGGED_SCORES}
    columns = scores | evaluation.attention_columns(info.positive, info.negative)
    return [
        {"epoch": info.epoch[i], "member": i, **{name: values[i] for name, values in columns.items()}}
        for i in np.flatnonzero(info.epoch)
    ]
