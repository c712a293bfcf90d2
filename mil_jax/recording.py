"""Training that leaves a trace: a log, checkpoints to resume from, a progress bar, and an orderly stop.

Axes: S members, E epochs.
"""

import time
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Key

from mil_jax import cli, evaluation
from mil_jax.bags import Bags
from mil_jax.ensemble import (
    Ensemble,
    Placement,
    Progress,
    default_placement,
    fit_ensemble,
    to_host,
)
from mil_jax.model import MIL
from mil_jax.runs import RunFolder
from mil_jax.training import EpochInfo, FitConfig, FitState, Hyper, blank_info, init_fit

LOGGED_SCORES = ("train_loss", "train_accuracy", "gradient_norm", "val_loss", "val_accuracy")


def placement_of(compute: cli.Compute, members: int) -> Placement:
    """Where the members run: what the options say, and the defaults of the backend for the rest.

    Raises:
        InputError: more devices than there are.
    """
    default = default_placement(members)
    devices = default.devices if compute.devices is None else compute.devices
    together = default.together if compute.together is None else compute.together
    return Placement(devices, together)


def fit_recorded(
    run: RunFolder,
    compute: cli.Compute,
    watch: cli.Stopwatch,
    model: MIL,
    keys: Key[Array, " S"],
    train: Bags,
    val: Bags,
    config: FitConfig,
    hyper: Hyper,
    order_keys: Key[Array, " S"] | None = None,
) -> Ensemble:
    """`fit_ensemble`, with a line per member and epoch in `metrics.jsonl`, and the best parameters in `checkpoint/`.

    With `compute.resume` it goes on from the newest checkpoint, cuts the log back to it, and ends with the same numbers
    as a run that was not stopped: bit by bit with the same devices. Ctrl-C and SIGTERM end it after the epoch, with a
    checkpoint.

    Raises:
        Interrupted: it was asked to stop.
        RunError: the disk is full, or another process of the run has died.
    """
    members = keys.shape[0]
    placement = placement_of(compute, members)
    progress = load_progress(run, model, train) if compute.resume else None
    infos = list(progress.infos) if progress else []
    started = time.perf_counter()
    watch.add("compile", 0.0)

    with cli.stop_requests() as stop_asked, cli.epoch_progress(config.epochs) as show:

        def on_epoch(epoch: int, info: EpochInfo, state: FitState) -> None:
            infos.append(info)
            run.log(log_lines(info))
            show(epoch, losses_text(info))
            stop = any_process(stop_asked())
            if compute.checkpoint_every and (stop or epoch % compute.checkpoint_every == 0):
                run.save_progress(epoch, progress_tree(state, infos))
            if stop and epoch < config.epochs:
                stop_here(run, epoch, state, members, bool(compute.checkpoint_every))

        with cli.lost_processes():
            trained = fit_ensemble(
                model, keys, train, val, config, hyper, placement,
                order_keys=order_keys, progress=progress, on_epoch=on_epoch,
                on_compiled=lambda: watch.add("compile", time.perf_counter() - started),
            )  # fmt: skip
    watch.add("train", time.perf_counter() - started - watch.seconds["compile"])
    run.write_params(trained.params)
    return trained


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process of the run, so that all decide alike."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def progress_tree(state: FitState, infos: list[EpochInfo]) -> dict[str, Any]:
    """What a checkpoint holds: the members, and the infos of all epochs so far, stacked."""
    return {"state": state, "infos": jax.tree.map(lambda *leaves: np.stack(leaves), *infos)}


def load_progress(run: RunFolder, model: MIL, train: Bags) -> Progress | None:
    """Where the run stood at its newest whole checkpoint; None where there is none yet."""
    member = partial(init_fit, model, bag_size=train.rows.shape[-1], instance_shape=train.pool.shape[1:])
    # Only structure and types are taken from here; the checkpoint knows how many members and epochs it holds.
    like = {"state": jax.eval_shape(member, jax.random.key(0)), "infos": jax.eval_shape(blank_info)}
    loaded = run.load_progress(like)
    if loaded is None:
        run.note("no checkpoint yet: from the start")
        return None
    epoch, tree = loaded
    run.note(f"from the checkpoint of epoch {epoch}")
    infos = to_host(tree["infos"])
    of_epoch = lambda i: jax.tree.map(lambda leaf: leaf[i], infos)  # noqa: E731
    return Progress(tree["state"], tuple(map(of_epoch, range(epoch))))


def stop_here(run: RunFolder, epoch: int, state: FitState, members: int, can_resume: bool) -> None:
    """Keeps the best parameters so far, and says what is complete."""
    best = jax.tree.map(lambda leaf: leaf[:members], to_host(state.best_params))
    run.write_params(best)
    run.note(f"stopped after epoch {epoch}")
    go_on = "; go on with --resume" if can_resume else ""
    raise cli.Interrupted(
        f"{run.path} keeps the log of {epoch} epochs and, in checkpoint/, the best parameters so far{go_on}"
    )


def log_lines(info: EpochInfo) -> list[dict[str, Any]]:
    """The epoch's line of each member that trained it."""
    scores = {name: getattr(info, name) for name in LOGGED_SCORES}
    columns = scores | evaluation.attention_columns(info.positive, info.negative)
    return [
        {"epoch": info.epoch[i], "member": i, **{name: values[i] for name, values in columns.items()}}
        for i in np.flatnonzero(info.epoch)
    ]


def losses_text(info: EpochInfo) -> str:
    """The live losses: mean over the members that are still training."""
    running = np.asarray(info.epoch) > 0
    mean = lambda values: float(np.mean(np.asarray(values)[running]))  # noqa: E731
    return (
        f"train loss {mean(info.train_loss):.4f}  val loss {mean(info.val_loss):.4f}  "
        f"val accuracy {mean(info.val_accuracy):.4f}  training {running.sum()} of {running.size}"
    )
