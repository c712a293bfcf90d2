"""Trees of arrays on the disk: the members' parameters, and a run's progress between two epochs. Orbax lives here.

All processes of a run save together, each its part; Orbax makes a checkpoint whole or not at all. Each process loads
alone, and which checkpoint it is the first one says: no process waits at a barrier for one that took another way.
With every checkpoint go facts for JSON, and among them the sums of the arrays' bits, since Orbax would not notice a
byte that has changed on the disk.

Orbax's own `training.Checkpointer` was tried for the progress. It keeps the newest ones just as well, but it would
replace seven lines of this file and bring as many: opening it is a matter of all processes, while the first one must
look for the newest whole checkpoint by itself. And a save of two processes takes a quarter longer.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from mil_jax.run.processes import from_first, is_first

KEPT = 3  # checkpoints of a run's progress

Facts = dict[str, Any]


# ---- one tree ----


def save(path: Path, tree: Any, **facts: Any) -> None:
    """Writes a tree and its facts instead of what is at the path; all processes of the run together.

    Args:
        path: a folder.
        tree: records, dicts and tuples of arrays: NumPy, the same in every process, or JAX, on whatever devices.
        facts: what `load` gives back beside the tree; values that JSON has.
    """
    from orbax.checkpoint import v1 as ocp

    # Orbax's `overwrite` hangs: a process that looks for the old folder when the first one has removed it already goes
    # on to another barrier. Here all exchange their sums before any of them looks.
    if is_first() and path.exists():
        shutil.rmtree(path)
    arrays = jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf), tree)
    content: Facts = {**facts, "sums": _bit_sums(arrays)}
    ocp.save(str(path.absolute()), arrays, custom_metadata=content)


def load(path: Path, like: Any = None) -> tuple[Any, Facts]:
    """Reads a tree, as NumPy, and its facts.

    Args:
        path: the folder.
        like: a tree of the structure that was saved; sizes and types of the arrays are those on the disk. Where not
            given, records and tuples come back as dicts and lists.

    Raises:
        Exception: of many kinds, for a checkpoint that is missing or damaged.
    """
    from orbax.checkpoint import v1 as ocp

    saved = ocp.metadata(str(path.absolute()))
    facts: Facts = saved.custom_metadata  # type: ignore[assignment]
    on_disk = dict(_by_name(saved.metadata))
    wanted = jax.tree_util.tree_map_with_path(
        lambda names, _: np.empty(on_disk[_name(names)].shape, on_disk[_name(names)].dtype),
        saved.metadata if like is None else like,
    )
    this = jax.process_index()
    alone = ocp.Context()
    alone.multiprocessing.primary_host, alone.multiprocessing.active_processes = this, {this}
    with alone:
        tree = ocp.load(str(path.absolute()), wanted)
    if [_sum(leaf) for _, leaf in _by_name(tree)] != facts["sums"]:
        raise ValueError("an array is not what was saved")
    return tree, facts


# ---- the progress of a run ----


def save_progress(folder: Path, epoch: int, tree: Any, **facts: Any) -> None:
    """Writes the checkpoint of an epoch, all processes together, and drops all but the newest ones.

    Args:
        folder: of all checkpoints of the run.
        epoch: from 1.
        tree: as in `save`.
        facts: likewise; `log_bytes`, the length of the log so far, at least.
    """
    save(folder / f"{epoch:06d}", tree, epoch=epoch, **facts)
    if is_first():
        for old in _newest_first(folder)[KEPT:]:
            shutil.rmtree(old)


def load_progress(folder: Path, like: Any, log_bytes: int, note: Callable[[str], None]) -> tuple[Any, Facts] | None:
    """The newest whole checkpoint, the same one in all processes, with its facts; None where there is none.

    The first process chooses, and the others follow: the folder may look otherwise to them.

    Args:
        folder: of all checkpoints of the run.
        like: as in `load`.
        log_bytes: the length of the log now; a checkpoint that knows of more lines counts as damaged.
        note: gets a line for each damaged one that is passed over.
    """
    newest = _newest_whole(folder, like, log_bytes, note) if is_first() else None
    epoch = from_first(newest[1]["epoch"] if newest else 0)
    if not epoch:
        return None
    return newest or load(folder / f"{epoch:06d}", like)


def _newest_whole(folder: Path, like: Any, log_bytes: int, note: Callable[[str], None]) -> tuple[Any, Facts] | None:
    for path in _newest_first(folder):
        try:
            tree, facts = load(path, like)
            if facts["log_bytes"] > log_bytes:
                raise ValueError("metrics.jsonl is shorter than when it was made")
            return tree, facts
        except Exception as error:  # Orbax raises many kinds for a checkpoint that is damaged
            first_line = (str(error).splitlines() or [""])[0]
            text = f"checkpoint {path.name} is damaged ({type(error).__name__}: {first_line:.100})"
            note(f"{text}; looking for the one before it")
    return None


def _newest_first(folder: Path) -> list[Path]:
    # A name with anything behind the digits is a checkpoint that was being written.
    return sorted((path for path in folder.glob("*") if path.name.isdigit()), reverse=True)


# ---- sums ----


def _by_name(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    """The leaves by the names on their way, in the order of these names: alike for records and for dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return sorted(((_name(path), leaf) for path, leaf in leaves), key=lambda named: named[0])


def _name(path: Any) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def _bit_sums(tree: Any) -> list[int]:
    """The sum of the bits of each array, as whole numbers modulo 2^32; each process adds its part, and all get it."""
    sums = np.array([_local_sum(leaf) for _, leaf in _by_name(tree)], np.uint32)
    if jax.process_count() > 1:
        sums = np.asarray(multihost_utils.process_allgather(sums)).sum(axis=0, dtype=np.uint32)
    return sums.tolist()


def _local_sum(leaf: Any) -> int:
    """The part of an array's sum that this process adds: of what is held by several, one copy."""
    if not isinstance(leaf, jax.Array):
        return _sum(leaf) if is_first() else 0
    return sum(_sum(shard.data) for shard in leaf.addressable_shards if shard.replica_id == 0) % 2**32


def _sum(array: Any) -> int:
    raw = np.ascontiguousarray(array)
    words = raw.reshape(-1).view(np.uint32 if raw.itemsize % 4 == 0 else np.uint8)
    return int(words.sum(dtype=np.uint32))
