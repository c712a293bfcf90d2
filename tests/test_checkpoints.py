"""Checkpoints of any tree; those that a killed run goes on from are in test_run_folder."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mil_jax.record import record
from mil_jax.run import checkpoints


@record
class Record:
    """Fields whose order is not that of their names; one may hold nothing."""

    scaler: Any
    params: Any


TREE = Record(
    scaler=Record(scaler=np.array([0.1, 1 / 3]), params=np.float32(2)),
    params={"b": {"kernel": jax.numpy.array([[np.nan, -0.0], [np.inf, 1e-45]])}, "a": (np.arange(4), np.array(True))},
)


def assert_same(one: Any, other: Any) -> None:
    """The same arrays of the same types, to the bit, in whatever containers."""
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        one_array, other_array = np.asarray(left), np.asarray(right)
        assert (one_array.dtype, one_array.shape) == (other_array.dtype, other_array.shape)
        assert one_array.tobytes() == other_array.tobytes()


@pytest.mark.parametrize("tree", [TREE, dataclasses.replace(TREE, scaler=None)], ids=["full", "a field without arrays"])
def test_a_tree_comes_back(tree: Record, tmp_path: Path) -> None:
    """As dicts, with the names and types that it had; a second one takes its place."""
    checkpoints.save(tmp_path / "tree", {"params": np.zeros(2)})
    checkpoints.save(tmp_path / "tree", tree)
    plain = checkpoints.load(tmp_path / "tree")
    assert set(plain) == {"params", "scaler"}
    assert_same(plain["params"], tree.params)
    assert (plain["scaler"] is None) == (tree.scaler is None)


def test_progress_comes_back_as_the_records_that_it_was(tmp_path: Path) -> None:
    tree = Record(scaler=Record(scaler=np.array([0.1, 1 / 3]), params=None), params={"b": (np.arange(4), jnp.ones(2))})
    checkpoints.save_progress(tmp_path, 7, tree, log_bytes=5, answer=42)
    loaded = checkpoints.load_progress(tmp_path, jax.tree.map(lambda leaf: 0, tree), 5, pytest.fail)
    assert loaded and loaded[1] == {"log_bytes": 5, "answer": 42, "epoch": 7, "processes": 1}
    assert jax.tree.structure(loaded[0]) == jax.tree.structure(tree)
    assert_same(loaded[0], tree)


def test_arrays_of_several_devices_come_back(tmp_path: Path) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("member",))
    whole = np.arange(8 * mesh.size, dtype=np.float32).reshape(mesh.size, 8)
    placed = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("member")))
    checkpoints.save_progress(tmp_path, 1, {"cut": placed}, log_bytes=0)
    loaded = checkpoints.load_progress(tmp_path, {"cut": 0}, 0, pytest.fail)
    assert loaded
    assert_same(loaded[0], {"cut": whole})


def test_a_checkpoint_counts_when_all_processes_have_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    checkpoints.save_progress(tmp_path, 1, {"a": np.arange(2)}, log_bytes=0)
    notes: list[str] = []
    assert checkpoints._newest_whole(tmp_path, {"a": 0}, 0, notes.append) is None
    assert len(notes) == 1 and "000001 is damaged (FileNotFoundError" in notes[0]


def test_the_other_processes_follow_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They look at nothing themselves: here the first one found the newest checkpoint damaged, or all."""
    for epoch in (1, 2):
        checkpoints.save_progress(tmp_path, epoch, {"a": np.full(2, epoch)}, log_bytes=0)
    monkeypatch.setattr(checkpoints, "is_first", lambda: False)
    monkeypatch.setattr(checkpoints, "from_first", lambda mine: 1)
    loaded = checkpoints.load_progress(tmp_path, {"a": 0}, 0, pytest.fail)
    assert loaded and loaded[1]["epoch"] == 1
    assert_same(loaded[0], {"a": np.full(2, 1)})
    monkeypatch.setattr(checkpoints, "from_first", lambda mine: 0)
    assert checkpoints.load_progress(tmp_path, {"a": 0}, 0, pytest.fail) is None
