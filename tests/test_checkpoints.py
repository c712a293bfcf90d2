"""Checkpoints of any tree; test_run_folder has those that a run goes on from, test_distributed several processes."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

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
    """As the records that it was where they are given, else as dicts; with its facts, and types that JAX has not."""
    checkpoints.save(tmp_path / "tree", tree, answer=42)
    same, facts = checkpoints.load(tmp_path / "tree", tree)
    assert jax.tree.structure(same) == jax.tree.structure(tree) and facts["answer"] == 42
    assert_same(same, tree)
    plain, _ = checkpoints.load(tmp_path / "tree")
    assert set(plain) == {"params", "scaler"}
    assert_same(plain["params"], tree.params)
    assert (plain["scaler"] is None) == (tree.scaler is None)


def test_arrays_of_several_devices_come_back(tmp_path: Path) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("member",))
    whole = np.arange(8 * mesh.size, dtype=np.float32).reshape(mesh.size, 8)
    placed = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("member")))
    checkpoints.save(tmp_path / "tree", {"cut": placed})
    assert_same(checkpoints.load(tmp_path / "tree")[0], {"cut": whole})


def test_orbax_never_meets_an_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one to write over, two processes could wait for each other at different barriers of it."""
    checkpoints.save(tmp_path / "tree", {"a": np.zeros(2)})
    save = ocp.save

    def look(path: str, *args: Any, **options: Any) -> None:
        assert not Path(path).exists() and "overwrite" not in options
        save(path, *args, **options)

    monkeypatch.setattr(ocp, "save", look)
    checkpoints.save(tmp_path / "tree", {"a": np.ones(2)})
    assert_same(checkpoints.load(tmp_path / "tree")[0], {"a": np.ones(2)})


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
