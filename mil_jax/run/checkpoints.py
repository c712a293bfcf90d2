"""Trees of arrays on the disk: the members' parameters (Orbax lives here), and a run's progress between two epochs.

The parameters are for others to read, too, and written once: Orbax makes the checkpoint whole or not at all. The
progress is for the run alone, and written after every epoch, which Orbax with its many small files would make several
times as long: each process writes its members as one NumPy archive, and a checkpoint counts once all its archives are
whole. Which one a run goes on from, the first process says, and no process waits at a barrier for one that took
another way. A byte that has changed on the disk is noticed: by sums of bits beside Orbax's arrays, by the archives'
own.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax.run.processes import from_first, is_first

KEPT = 3  # checkpoints of a run's progress

Facts = dict[str, Any]
FACTS = "facts"  # as an array of an archive, in JSON


# ---- the members' parameters ----


def load_orbax() -> Any:
    """The module, which takes a second to load, so that it is not loaded before it has to be."""
    from orbax.checkpoint import v1

    return v1


def save(path: Path, tree: Any) -> None:
    """Writes a tree instead of what is at the path; all processes of the run together, since Orbax will have it so.

    Args:
        path: a folder.
        tree: records, dicts and tuples of arrays, the same in every process.
    """
    # Orbax's `overwrite` hangs: a process that looks for the old folder when the first one has removed it already goes
    # on to another barrier. Here none looks before it is gone.
    if is_first() and path.exists():
        shutil.rmtree(path)
    from_first(0)
    arrays = jax.tree.map(np.asarray, tree)
    load_orbax().save(str(path.absolute()), arrays, custom_metadata={"sums": _bit_sums(arrays)})


def load(path: Path) -> Any:
    """Reads a tree as NumPy; records and tuples come back as dicts and lists.

    Raises:
        Exception: of many kinds, for a checkpoint that is missing or damaged.
    """
    ocp = load_orbax()
    on_disk = ocp.metadata(str(path.absolute()))
    wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), on_disk.metadata)
    this, alone = jax.process_index(), ocp.Context()
    alone.multiprocessing.primary_host, alone.multiprocessing.active_processes = this, {this}
    with alone:
        tree = ocp.load(str(path.absolute()), wanted)
    if _bit_sums(tree) != on_disk.custom_metadata["sums"]:
        raise ValueError("an array is not what was saved")
    return tree


def _bit_sums(tree: Any) -> list[int]:
    """The sum of the bits of each array, as whole numbers modulo 2^32."""
    raw = (np.ascontiguousarray(leaf).reshape(-1) for _, leaf in _by_name(tree))
    words = (array.view(np.uint32 if array.itemsize % 4 == 0 else np.uint8) for array in raw)
    return [int(array.sum(dtype=np.uint32)) for array in words]


def _by_name(tree: Any) -> list[tuple[str, Any]]:
    """The leaves by the names on their way, in the order of these names: alike for records and for dicts."""
    return sorted((_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree))


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


# ---- the progress of a run ----


def save_progress(folder: Path, epoch: int, tree: Any, **facts: Any) -> None:
    """Writes the checkpoint of an epoch, all processes their parts, and drops all but the newest ones.

    Args:
        folder: of all checkpoints of the run.
        epoch: from 1.
        tree: records, dicts and tuples of arrays with an axis to cut: NumPy, the same in every process, or JAX, cut
            along it in the order of the processes.
        facts: what `load_progress` gives back beside the tree, values that JSON has; `log_bytes`, the length of the
            log so far, at least.
    """
    path, this = folder / f"{epoch:06d}", jax.process_index()
    arrays: dict[str, Any] = {name: rows for name, leaf in _by_name(tree) if len(rows := _local_rows(leaf))}
    facts = {**facts, "epoch": epoch, "processes": jax.process_count()}
    arrays[FACTS] = np.array(json.dumps(facts))
    path.mkdir(parents=True, exist_ok=True)
    with (path / f"{this}.partial").open("wb") as file:
        np.savez(file, **arrays)
    (path / f"{this}.partial").replace(path / f"{this}.npz")
    if is_first():
        for old in _newest_first(folder)[KEPT:]:
            shutil.rmtree(old)


def _local_rows(leaf: Any) -> np.ndarray:
    """The rows of an array that this process writes: of what several hold, one copy."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf) if is_first() else np.empty(0)
    shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    rows = sorted(shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in rows]) if rows else np.empty(0)


def load_progress(folder: Path, like: Any, log_bytes: int, note: Callable[[str], None]) -> tuple[Any, Facts] | None:
    """The newest whole checkpoint, the same one in all processes, with its facts; None where there is none.

    The first process chooses, and the others follow: the folder may look otherwise to them.

    Args:
        folder: of all checkpoints of the run.
        like: a tree of the structure that was saved; sizes and types of the arrays are those on the disk.
        log_bytes: the length of the log now; a checkpoint that knows of more lines counts as damaged.
        note: gets a line for each damaged one that is passed over.
    """
    newest = _newest_whole(folder, like, log_bytes, note) if is_first() else None
    epoch = from_first(newest[1]["epoch"] if newest else 0)
    if not epoch:
        return None
    return newest or _read(folder / f"{epoch:06d}", like)


def _newest_whole(folder: Path, like: Any, log_bytes: int, note: Callable[[str], None]) -> tuple[Any, Facts] | None:
    for path in _newest_first(folder):
        try:
            tree, facts = _read(path, like)
            if facts["log_bytes"] > log_bytes:
                raise ValueError("metrics.jsonl is shorter than when it was made")
            return tree, facts
        except Exception as error:  # NumPy and its archives raise many kinds for one that is damaged
            first_line = (str(error).splitlines() or [""])[0]
            text = f"checkpoint {path.name} is damaged ({type(error).__name__}: {first_line:.100})"
            note(f"{text}; looking for the one before it")
    return None


def _newest_first(folder: Path) -> list[Path]:
    # One without the first process's archive is a checkpoint that was being written.
    return sorted((archive.parent for archive in folder.glob("*/0.npz")), reverse=True)


def _read(path: Path, like: Any) -> tuple[Any, Facts]:
    parts: list[dict[str, np.ndarray]] = []
    facts: Facts = {"processes": 1}
    while len(parts) < facts["processes"]:
        with (path / f"{len(parts)}.npz").open("rb") as file, np.load(file) as archive:
            parts.append(dict(archive))
        facts = json.loads(parts[-1][FACTS].item())

    def join(names: Any, _: Any) -> np.ndarray:
        return np.concatenate([part[_name(names)] for part in parts if _name(names) in part])

    return jax.tree_util.tree_map_with_path(join, like), facts
