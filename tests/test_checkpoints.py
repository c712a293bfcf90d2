"""Checkpoints: of any tree, and those that a killed run goes on from; several processes are in test_distributed."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import assert_same_bits
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from mil_jax.errors import InputError, RunError
from mil_jax.record import record
from mil_jax.run import checkpoints
from mil_jax.run.folder import RunFolder, open_run


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


# ---- the progress of a run ----

CONFIG = {"experiment": "test", "options": {"seed": 0}, "data": {"name": "none"}}
LIKE = {"weights": 0, "step": 0, "key": 0}  # the structure of what `progress_of` makes


def progress_of(epoch: int) -> dict[str, np.ndarray]:
    """Something to save, another for each epoch; 40 kB that do not compress."""
    rng = np.random.default_rng(epoch)
    return {
        "weights": rng.normal(size=(epoch, 10_000)).astype(np.float32),
        "step": np.arange(3, dtype=np.int32) * epoch,
        "key": np.array([epoch, 2**32 - 1], np.uint32),
    }


@pytest.fixture(scope="module")
def five_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its sixth epoch: five checkpoints were made, and line 6 is half written."""
    path = tmp_path_factory.mktemp("progress")
    with open_run(path, CONFIG, {}) as run:
        for epoch in range(1, 6):
            run.log([{"epoch": epoch}])
            run.save_progress(epoch, progress_of(epoch))
    with (path / "metrics.jsonl").open("a") as log:
        log.write('{"epo')
    (path / "progress" / "000006.orbax-checkpoint-tmp").mkdir()
    return path


@pytest.fixture
def killed(five_epochs: Path, tmp_path: Path) -> Iterator[RunFolder]:
    """A copy of `five_epochs`, resumed."""
    shutil.copytree(five_epochs, tmp_path / "run")
    with open_run(tmp_path / "run", CONFIG, {}, resume=True) as run:
        yield run


def logged(run: RunFolder) -> list[int]:
    return [json.loads(line)["epoch"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def whole(run: Path) -> list[Path]:
    return sorted(path for path in (run / "progress").iterdir() if path.name.isdigit())


def test_the_last_checkpoints_are_kept(five_epochs: Path) -> None:
    assert [path.name for path in whole(five_epochs)] == ["000003", "000004", "000005"]


def test_going_on_from_the_newest(killed: RunFolder) -> None:
    loaded = killed.load_progress(LIKE)
    assert loaded is not None
    epoch, tree = loaded
    assert epoch == 5 and logged(killed) == [1, 2, 3, 4, 5]
    assert_same_bits(tree, progress_of(5))


def shorten(path: Path) -> None:
    """Cuts every file to half."""
    for file in path.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


def damage_array(path: Path) -> None:
    """Changes one byte in the middle of the largest file, which holds the arrays."""
    file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        shorten,
        damage_array,
        lambda path: shutil.rmtree(path / "state"),
        lambda path: (path / "_CHECKPOINT_METADATA").unlink(),
        lambda path: [os.truncate(file, 0) for file in path.rglob("*") if file.is_file()],
    ],
    ids=["shortened", "a byte changed", "arrays deleted", "metadata deleted", "emptied"],
)
def test_a_damaged_checkpoint_is_passed_over(killed: RunFolder, harm: Callable[[Path], Any]) -> None:
    harm(whole(killed.path)[-1])
    loaded = killed.load_progress(LIKE)
    assert loaded is not None
    assert loaded[0] == 4 and logged(killed) == [1, 2, 3, 4]
    assert_same_bits(loaded[1], progress_of(4))
    last = (killed.path / "log.txt").read_text().splitlines()[-1]
    assert "checkpoint 000005 is damaged" in last and "looking for the one before it" in last
    killed.log([{"epoch": 5}])
    killed.save_progress(5, progress_of(5))
    again = killed.load_progress(LIKE)
    assert again is not None and again[0] == 5, "the damaged one is written anew"


def test_no_whole_checkpoint_means_from_the_start(killed: RunFolder) -> None:
    for path in whole(killed.path):
        shorten(path)
    assert killed.load_progress(LIKE) is None
    assert not (killed.path / "metrics.jsonl").exists()
    assert (killed.path / "log.txt").read_text().count("is damaged") == 3


def test_a_log_that_lost_its_end_is_not_filled_up(killed: RunFolder) -> None:
    """As after a power cut: the checkpoint whose lines are still there is taken."""
    lines = (killed.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (killed.path / "metrics.jsonl").write_bytes(b"".join(lines[:3]) + b'{"ep')
    loaded = killed.load_progress(LIKE)
    assert loaded is not None
    assert loaded[0] == 3 and logged(killed) == [1, 2, 3]
    assert "metrics.jsonl is shorter" in (killed.path / "log.txt").read_text()


def test_a_checkpoint_of_another_run_is_refused(killed: RunFolder, tmp_path: Path) -> None:
    before = (killed.path / "metrics.jsonl").read_bytes()
    with open_run(tmp_path / "other", CONFIG | {"experiment": "another"}, {}) as other:
        shutil.copytree(killed.path / "progress", other.path / "progress")
        shutil.copy(killed.path / "metrics.jsonl", other.path)
        with pytest.raises(InputError, match="options and data that its checkpoint was made with") as stop:
            other.load_progress(LIKE)
        assert stop.value.argument == "resume"
        assert (other.path / "metrics.jsonl").read_bytes() == before


def test_the_checkpoints_of_a_run_that_has_ended_are_dropped(killed: RunFolder) -> None:
    killed.drop_progress()
    killed.drop_progress()
    assert not (killed.path / "progress").exists()


# ---- a full disk ----


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_keeps_the_last_checkpoint(killed: RunFolder, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(ocp, "save", fail)
        for write in (lambda: killed.save_progress(6, progress_of(6)), lambda: killed.write_members(progress_of(1))):
            with pytest.raises(RunError, match=r"what was written before is whole: make room, .* --resume") as stop:
                write()
            assert ("no space left" in str(stop.value)) == (number != errno.EIO)
        patch.setattr(Path, "open", fail)
        for append in (lambda: killed.log([{"epoch": 6}]), lambda: killed.note("hello")):
            with pytest.raises(RunError, match="cannot be written"):
                append()
    loaded = killed.load_progress(LIKE)
    assert loaded is not None and loaded[0] == 5


# What a second process does with a folder that the first one has open, and then with a disk that fills up:
# no file may grow beyond 300 kB, which Orbax meets in its own code, outside Python.
SECOND_PROCESS = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_checkpoints as t

try:
    with t.open_run(Path(sys.argv[2]), t.CONFIG, {}, resume=True):
        print("let in")
except t.InputError as error:
    print(error)

with t.open_run(Path(sys.argv[3]), t.CONFIG, {}) as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for epoch in (1, 5, 20):
        run.log([{"epoch": epoch}])
        try:
            run.save_progress(epoch, t.progress_of(epoch))
        except t.RunError as error:
            print(error)
"""


@pytest.fixture(scope="module")
def second_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """What the second process printed, and the folder on its full disk."""
    held, full = tmp_path_factory.mktemp("held"), tmp_path_factory.mktemp("full")
    with open_run(held, CONFIG, {}):
        command = [sys.executable, "-c", SECOND_PROCESS, str(Path(__file__).parent), str(held), str(full)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), full


def test_a_second_process_is_refused(second_process: tuple[list[str], Path]) -> None:
    assert "another process is running in it" in second_process[0][0]


def test_a_disk_that_is_really_full(second_process: tuple[list[str], Path]) -> None:
    (_, message), full = second_process
    assert message.startswith(str(full / "progress")) and "cannot be written" in message
    assert message.endswith("what was written before is whole: make room, then go on with --resume")
    with open_run(full, CONFIG, {}, resume=True) as run:
        loaded = run.load_progress(LIKE)
        assert loaded is not None
        assert loaded[0] == 5 and logged(run) == [1, 5]
        assert_same_bits(loaded[1], progress_of(5))
