"""A run in order: the folder, training, judging, everything that is written; for any bags.

`begin` comes first, before anything uses JAX; `run_bags` does the rest, given the bags.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from mil_jax import report
from mil_jax.bags import Bags, of_member
from mil_jax.ensemble import Ensemble, member_keys, same_for_all
from mil_jax.errors import InputError, RunError, checked
from mil_jax.losses import Classes
from mil_jax.members import Members
from mil_jax.model import build, param_shapes
from mil_jax.optimizer import by_member, make_hyper
from mil_jax.placement import Placement
from mil_jax.run import checkpoints, figures, screen, summary, tensorboard
from mil_jax.run.config import MembersConfig, Problem, RunConfig, settings
from mil_jax.run.fit import Task, fit_recorded
from mil_jax.run.folder import RunFolder, check_free, open_run
from mil_jax.run.processes import placement_of, start_jax
from mil_jax.run.saved import load_finished
from mil_jax.run.screen import Stopwatch
from mil_jax.sampling import Splits
from mil_jax.training import MemberKeys, blank_info

AnyConfig = TypeVar("AnyConfig", bound=MembersConfig)


def begin(config: AnyConfig, experiment: str, name: str) -> tuple[AnyConfig, Stopwatch]:
    """Refuses what cannot be run and starts JAX; what comes back is the config with its folder, and a clock.

    Raises:
        InputError: options that do not go together, or a folder that is taken.
    """
    watch = Stopwatch()
    if config.tensorboard:
        tensorboard.check_installed()
    out = config.out or default_out(experiment, name, config.seed)
    if not config.compute.resume:
        check_free(out)
    start_jax(config.compute, config.members)
    return dataclasses.replace(config, out=Path(out)), watch


def default_out(experiment: str, name: str, seed: int) -> Path:
    """A new run folder, named by data, seed and moment."""
    moment = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / experiment / f"{name.replace(':', '-').replace('/', '-')}-seed{seed}-{moment}"


@checked
def run_bags(config: RunConfig, problem: Problem, watch: Stopwatch | None = None) -> Path:
    """Trains members on bags, judges them, writes the run folder with figures and report, and prints the results.

    Args:
        config: what is asked for.
        problem: the bags.
        watch: from `begin`, where that was called.

    Returns:
        The run folder; `load_run` reads it back.

    Raises:
        InputError: bags or options that cannot be used.
        RunError: no member has converged; the folder says so, too.
    """
    if watch is None:
        config, watch = begin(config, problem.experiment, problem.name)
    if "bags" in config.varied and not problem.splits.train.by_member:
        raise InputError("vary", config.vary, "expected training bags of each member's own, or init and order alone")
    splits, mil = problem.splits, build(config.model, Classes(len(problem.class_names)))
    hyper = make_hyper(splits.train, config.hyper, mil.target)
    task = Task(mil, draw_keys(config), splits.train, splits.val, config.fit, hyper)
    content, how = describe(config, problem)
    with open_run(config.out or "", content, how, config.compute.resume) as run:
        screen.print_problem(problem.name, problem.class_names, splits, mil)
        placement = placement_of(config.compute, config.members)
        trained = train(run, task, config, problem, placement, watch)
        with watch.phase("evaluate"):
            judged = summary.judge(mil, trained, splits, placement)
            results = summary.summarize(trained, judged, splits.test, config.seed)
        run.write_arrays("attention.npz", **summary.attention_arrays(judged, splits.test))
        with watch.phase("plots"):
            draw = partial(figures.after_training, trained, judged, splits.test)
            write_figures(run, partial(draw, problem.class_names, config.plot_bags))
        results = dataclasses.replace(results, seconds=watch.read())
        write_results(run, config, results, splits.test)
        run.drop_progress()
    return announce(run.path, results, judged)


def train(
    run: RunFolder, task: Task, config: RunConfig, problem: Problem, placement: Placement, watch: Stopwatch
) -> Ensemble:
    """Trains the members; beside it, on another core, the training bags are drawn and what follows is rehearsed."""
    bags = of_member(problem.splits.train, 0)
    with ThreadPoolExecutor(1) as beside:
        draw = partial(figures.before_training, bags, problem.class_names, config.plot_bags)
        drawn = beside.submit(write_figures, run, draw)
        rehearse = partial(rehearse_end, task, problem.splits, placement)
        trained = fit_recorded(run, task, config.compute, watch, lambda: beside.submit(rehearse))
        drawn.result()
    return trained


FEW_MEMBERS = 8  # up to so many, judging takes longer to compile than to run


def rehearse_end(task: Task, splits: Splits, placement: Placement) -> None:
    """What follows training loads and compiles while training runs: members of zeros are judged, and nothing written.

    What is wrong with the bags, judging itself will say.
    """
    checkpoints.load_orbax()
    if jax.process_count() > 1 or task.members > FEW_MEMBERS:
        return
    shapes = param_shapes(task.model, splits.train.slots, splits.train.kind.shape)
    params = jax.tree.map(lambda leaf: np.zeros((task.members, *leaf.shape), leaf.dtype), shapes)
    scaler = by_member(task.hyper, task.members).scaler
    ones, members = np.ones(task.members, np.int32), Members(params, scaler, splits.train.kind)
    untrained = Ensemble(members, ones, np.ones(task.members, np.float32), ones, jax.tree.map(np.asarray, blank_info()))
    judged = summary.judge(task.model, untrained, splits, placement)
    summary.summarize(untrained, judged, splits.test, seed=0)


def draw_keys(config: MembersConfig) -> MemberKeys:
    """What decides the members' initial parameters and orders of bags; the same for all where it shall not vary."""
    _, key = jax.random.split(jax.random.key(config.seed))
    keys = member_keys(key, config.members)
    init = keys.init if "init" in config.varied else same_for_all(keys.init)
    return MemberKeys(init, keys.order if "order" in config.varied else same_for_all(keys.order))


def describe(config: MembersConfig, problem: Problem) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `config.json` says of a run: what decides its results, and what does not."""
    options, how = settings(config)
    train = problem.splits.train
    content = {
        "experiment": problem.experiment,
        "options": options,
        "model": dataclasses.asdict(config.model),
        "classes": problem.class_names,
        "instances": dataclasses.asdict(train.kind),
        "data": {"name": problem.name, "content_hash": problem.content_hash or hash_of(problem.splits)},
    }
    return content, how


def hash_of(splits: Splits) -> str:
    """The SHA-256, in hexadecimal, of all bags."""
    digest = hashlib.sha256()
    for bags in splits:
        for array in jax.tree.leaves(bags):
            values = np.ascontiguousarray(array)
            digest.update(f"{values.dtype.str}{values.shape}".encode())
            digest.update(values.data)
    return digest.hexdigest()


def write_figures(run: RunFolder, draw: Callable[[], dict[str, Any]]) -> None:
    """Writes figures by name; a process that writes nothing draws nothing."""
    for name, figure in (draw() if run.writes else {}).items():
        run.write_figure(name, figure)


def write_results(run: RunFolder, config: MembersConfig, results: summary.Summary, test: Bags) -> None:
    """Writes the results, and the report and the event files where asked for, from what the folder holds by then."""
    run.write_json("summary.json", dataclasses.asdict(results))
    run.write_log_table()
    run.write_csv("members.csv", results.rows())
    if not run.writes or not (config.report or config.tensorboard):
        return
    finished = load_finished(run.path)
    if config.report:
        run.write_text("report.html", report.report_of(finished, test.pool))
    if config.tensorboard:
        for name, content in tensorboard.event_files(finished).items():
            run.write_bytes(f"tensorboard/{name}", content)


def announce(path: Path, results: summary.Summary, judged: summary.Judged) -> Path:
    """Prints the results and where they are; what comes back is the folder.

    Raises:
        RunError: no member has converged.
    """
    screen.print_results(results)
    screen.say(f"run folder: {path}")
    if judged.diverged.all():
        raise RunError(f"training diverged in all members; {path} has what there is: try a lower learning rate")
    return path
