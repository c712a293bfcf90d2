"""The run folder: whole files or none, one writer, checkpoints that a killed run goes on from, and runs read back."""

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
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same_bits, message_of
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from mil_jax.errors import RunError
from mil_jax.model import ModelConfig
from mil_jax.run import checkpoints, saved
from mil_jax.run.folder import RunFolder, check_free, open_run
from mil_jax.run.saved import load_finished, load_run

CONFIG = {
    "experiment": "test", "options": {"seed": 0, "learning_rate": 1e-3, "hidden": (8, 4)},
    "model": dataclasses.asdict(ModelConfig(hidden=(8, 4))), "classes": ("negative", "positive"),
    "instances": {"shape": (6,), "pixels": False}, "data": {"name": "bags", "content_hash": "abc"},
}  # fmt: skip
HOW = {"paths": {"data_dir": None}, "compute": {"devices": 2}}
SUMMARY = {"members": [], "mean": {}, "standard_deviation": {}, "ensemble": {}, "seconds": {"total": 1.0}}

# The structure of what `progress_of` makes; sizes come from the checkpoint.
LIKE = {name: jax.ShapeDtypeStruct((), kind) for name, kind in (("weights", "f4"), ("step", "i4"), ("key", "u4"))}


def progress_of(epoch: int) -> dict[str, np.ndarray]:
    """Something to save, another for each epoch; 40 kB that do not compress."""
    weights = np.random.default_rng(epoch).normal(size=(epoch, 10_000)).astype(np.float32)
    return {"weights": weights, "step": np.arange(3, dtype=np.int32) * epoch, "key": np.array([epoch, 2**32 - 1], "u4")}


def begun(path: Path, config: dict[str, Any] = CONFIG, resume: bool = False) -> None:
    """Opens a run, and ends it at once."""
    with open_run(path, config, HOW, resume):
        pass


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    """A new run folder, open."""
    with open_run(tmp_path / "run", CONFIG, HOW) as run:
        yield run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- files ----


def test_a_new_folder_holds_what_decides_the_results(run):
    assert contents(run.path).keys() == {".lock", "config.json", "log.txt"}
    config = json.loads((run.path / "config.json").read_text())
    assert config["format"] == saved.FORMAT
    assert config["options"] == {"seed": 0, "learning_rate": 1e-3, "hidden": [8, 4]}
    assert config["compute"] == {"devices": 2}
    assert config["versions"]["jax"] == jax.__version__
    assert config["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert config["versions"]["device"] == jax.devices()[0].device_kind
    assert saved.saved_options(run.path) == config["options"] | {"data_dir": None}


def half_written(path: Path, *args: Any, **options: Any) -> None:
    Path(path).write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class HalfFigure:
    savefig = staticmethod(half_written)  # it fills the disk


def test_a_file_is_complete_or_absent(run, monkeypatch):
    """A write that fails half way leaves no file, and where there was one, the old content."""
    run.write_json("summary.json", {"accuracy": 1.0})
    before = contents(run.path)
    monkeypatch.setattr(Path, "write_text", half_written)
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: half_written(file.name))
    for write in (
        lambda: run.write_json("summary.json", {"accuracy": 0.0}),
        lambda: run.write_text("report.html", "hello"),
        lambda: run.write_arrays("attention.npz", weights=np.ones(3)),
        lambda: run.write_figure("curves", HalfFigure()),
    ):
        with pytest.raises(RunError, match=r"no space left\); what was written before is whole"):
            write()
    with pytest.raises(TypeError):  # an error that is not the disk's stays what it is
        run.write_json("other.json", {"function": len})
    assert contents(run.path) == before


def test_what_is_not_finite_becomes_null(run):
    content = {"numpy": np.float32(np.nan), "jax": jnp.array([1.0, jnp.inf]), "path": Path("runs"),
               "nested": [{"python": -float("inf")}, (np.int32(3), np.bool_(True))]}  # fmt: skip
    run.write_json("summary.json", content)
    assert json.loads((run.path / "summary.json").read_text(), parse_constant=pytest.fail) == {
        "numpy": None, "jax": [1.0, None], "path": "runs", "nested": [{"python": None}, [3, True]]
    }  # fmt: skip


def test_the_log_and_tables_and_arrays(run):
    """The same arrays give the same bytes: of any type and shape, with no axis and with no value."""
    run.log([{"epoch": 1, "loss": np.float32(0.5)}, {"epoch": 1, "loss": float("nan")}])
    run.log([{"epoch": 2, "loss": 0.25}])
    assert saved.read_log(run.path) == [
        {"epoch": 1, "loss": 0.5}, {"epoch": 1, "loss": None}, {"epoch": 2, "loss": 0.25}
    ]  # fmt: skip
    run.write_log_table()
    run.write_csv("table.csv", [{"rate": 0.1, "loss": np.float32(0.5)}, {"rate": 1.0, "loss": np.nan}])
    assert (run.path / "metrics.csv").read_text().splitlines() == ["epoch,loss", "1,0.5", "1,", "2,0.25"]
    assert (run.path / "table.csv").read_text().splitlines() == ["rate,loss", "0.1,0.5", "1.0,"]
    kinds, shapes = (np.float32, np.int32, np.bool_), ((), (0,), (4,), (2, 0, 3), (3, 4, 2))
    arrays = {f"{kind.__name__} {shape}": np.ones(shape, kind) for kind in kinds for shape in shapes}
    for name in ("once.npz", "twice.npz"):
        run.write_arrays(name, **arrays)
    assert (run.path / "once.npz").read_bytes() == (run.path / "twice.npz").read_bytes()
    with np.load(run.path / "once.npz") as read:
        assert_same_bits(dict(read), arrays)


# ---- who may use the folder ----


def test_a_folder_that_cannot_be_had_is_refused(tmp_path):
    """A run or a file is in the way, nobody or not this user can make it, or its lock cannot be made."""
    begun(tmp_path / "run")
    assert "expected another folder, or to go on with this one by --resume" in message_of(begun, tmp_path / "run")
    assert message_of(check_free, tmp_path / "run", can_resume=False).endswith("another folder: it holds a run already")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "file").write_text("something")
    (tmp_path / "taken" / ".lock").mkdir(parents=True)
    (tmp_path / "forbidden").mkdir(mode=0o500)
    paths = ["file", "file/run", "file/deep/run", "taken", *(["forbidden/run"] if os.geteuid() else [])]
    for path in (*(tmp_path / path for path in paths), Path("/proc/nothing/run")):
        message = message_of(begun, path)
        assert message.startswith(f"out = {str(path)!r}: ") and "expected a" in message
    assert contents(tmp_path) == {"file": b"something"}


def test_the_lock_is_given_back(tmp_path):
    """At the end of a run, however it ends, even while its error is still at hand; Ctrl-C says what is kept."""
    with pytest.raises(RunError) as stop, open_run(tmp_path, CONFIG, HOW):  # an empty folder will do
        raise RunError("full")
    begun(tmp_path, resume=True)
    assert stop.value.__traceback__ is not None
    with pytest.raises(KeyboardInterrupt, match="go on with --resume"), open_run(tmp_path, CONFIG, HOW, resume=True):
        raise KeyboardInterrupt
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ")[1] for line in log] == ["started", "resumed", "resumed", "interrupted"]


# ---- going on ----


def with_option(**options: Any) -> dict[str, Any]:
    return CONFIG | {"options": {**CONFIG["options"], **options}}


def test_another_configuration_is_refused(run):
    for config, message in (
        (with_option(seed=1), "seed = 1: expected 0, with which the run was started"),
        (with_option(learning_rate=2e-3), "learning_rate = 0.002: expected 0.001"),
        (with_option(hidden=(8,)), "hidden = [8]: expected [8, 4]"),
        (with_option(new=True), "new = True: expected None"),
        (CONFIG | {"data": {"content_hash": "another"}}, "expected the data that the run was started with"),
    ):
        assert message in message_of(begun, run.path, config, resume=True)


def test_a_run_that_has_ended_or_never_begun_or_is_old_is_refused(run):
    run.write_json("summary.json", {})
    assert "come to its end" in message_of(begun, run.path, resume=True)
    assert "there is none" in message_of(begun, run.path / "nothing", resume=True)
    assert not (run.path / "nothing").exists()
    remove("summary.json")(run.path)
    change("config.json", format=1)(run.path)
    message = message_of(begun, run.path, resume=True)
    assert message.startswith("resume = ") and f"expected a run of format {saved.FORMAT}" in message


# ---- reading a run back ----


def parameters(members: int) -> dict[str, Any]:
    kernel = np.random.default_rng(members).normal(size=(members, 70, 50)).astype(np.float32)
    kernel[0, 0, :4] = [np.nan, -0.0, np.inf, 1e-45]
    return {"encoder": {"Dense_0": {"kernel": kernel, "bias": np.zeros((members, 50), np.float32)}}}


def test_members_come_back_bit_by_bit(run):
    """From several devices, or after they have been written twice, and nothing is left of the first time."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("member",))
    run.write_members({"params": jax.device_put(parameters(4), NamedSharding(mesh, PartitionSpec("member")))})
    assert_same_bits(load_run(run.path).members.params, parameters(4))
    scaler = {name: np.ones((2, 6), np.float32) * value for name, value in (("mean", 0.1), ("factor", 3))}
    run.write_members({"params": parameters(2), "scaler": scaler})
    read = load_run(str(run.path))
    assert_same_bits(
        *(jax.tree.map(lambda x: np.asarray(x).view("u4"), y) for y in (read.members.params, parameters(2)))
    )
    assert read.members.scaler is not None
    assert_same_bits(vars(read.members.scaler), scaler | {"unit": None})
    assert read.summary is None and read.class_names == CONFIG["classes"]
    assert read.config["options"]["seed"] == 0 and read.members.kind.shape == (6,)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has come to its end."""
    path = tmp_path_factory.mktemp("whole")
    with open_run(path, CONFIG, HOW) as run:
        run.write_members({"params": parameters(2)})
        run.log([{"epoch": 1, "member": 0, "loss": 0.5}])
        run.write_arrays("attention.npz", label=np.random.default_rng(0).permutation(9000))
        run.write_json("summary.json", SUMMARY)
    return path


@pytest.fixture
def copy(whole_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "copy"))


def test_what_a_run_left(copy):
    finished = load_finished(str(copy))
    assert finished.config["options"]["seed"] == 0
    assert (finished.log, finished.summary.seconds) == ([{"epoch": 1, "member": 0, "loss": 0.5}], {"total": 1.0})
    np.testing.assert_array_equal(np.sort(finished.arrays["label"]), np.arange(9000))
    assert load_run(copy).summary == finished.summary


def change(name: str, **content: Any) -> Callable[[Path], Any]:
    """Changes a JSON file; None removes what it is given for."""

    def harm(path: Path) -> None:
        changed = {k: v for k, v in (json.loads((path / name).read_text()) | content).items() if v is not None}
        (path / name).write_text(json.dumps(changed))

    return harm


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda path: (path / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], Any]:
    return lambda path: shutil.rmtree(path / name) if (path / name).is_dir() else (path / name).unlink()


def damage_array(path: Path) -> None:
    """Changes one byte in the middle of the largest file, which holds the arrays."""
    file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


FOR_BOTH = [
    (remove(""), "config.json cannot be read"),
    (remove("config.json"), "config.json cannot be read"),
    (write("config.json", b'{"format": 1'), "config.json cannot be read"),
    (write("config.json", b"\xff\xfe"), "config.json cannot be read"),
    (write("config.json", b"[]"), "config.json holds no object"),
    (write("config.json", b"{}"), "its config.json is another program's"),
    (change("config.json", format="2"), "its config.json is another program's"),
    (change("config.json", options=[]), "its config.json is another program's"),
    (change("config.json", format=saved.FORMAT + 1), f"format {saved.FORMAT} or older: a newer mil_jax wrote this one"),
    (write("summary.json", b"{"), "summary.json cannot be read"),
    (write("summary.json", b"[]"), "summary.json holds no object"),
    (change("summary.json", mean=None), "expected the summary of a run"),
]
FOR_LOAD_RUN = [
    (change("config.json", format=1), "one of format 1 holds no standardisation"),
    (change("config.json", classes=None), "expected a whole config.json"),
    (change("config.json", classes=3), "expected a whole config.json"),
    (change("config.json", model={"no": 1}), "expected a whole config.json"),
    (change("config.json", model={"hidden": [0]}), "hidden = 0"),
    (change("config.json", instances=[]), "expected a whole config.json"),
    (remove("checkpoint"), "expected a whole checkpoint"),
    (remove("checkpoint/_CHECKPOINT_METADATA"), "expected a whole checkpoint"),
    (remove("checkpoint/state"), "expected a whole checkpoint"),
    (lambda path: damage_array(path / "checkpoint"), "expected a whole checkpoint"),
]
FOR_LOAD_FINISHED = [
    (remove("summary.json"), "no results yet, go on with it by --resume"),
    (remove("metrics.jsonl"), "expected a complete run"),
    (write("metrics.jsonl", b'{"epoch": 1'), "expected a complete run"),
    (remove("attention.npz"), "expected a complete run"),
    (write("attention.npz", b"PK"), "expected a complete run"),
    (lambda path: os.truncate(path / "attention.npz", 9000), "expected a complete run"),
]
DAMAGE = [
    *((load_run, *case) for case in FOR_BOTH + FOR_LOAD_RUN),
    *((load_finished, *case) for case in FOR_BOTH + FOR_LOAD_FINISHED),
]


@pytest.mark.parametrize(("load", "harm", "message"), DAMAGE)
def test_a_damaged_run_is_refused(load, harm, message, copy):
    harm(copy)
    before = contents(copy)
    assert message in message_of(load, copy)
    assert contents(copy) == before


# ---- checkpoints on the way ----


@pytest.fixture(scope="module")
def five_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its sixth epoch: five checkpoints were made, and line 6 is half written."""
    path = tmp_path_factory.mktemp("progress")
    with open_run(path, CONFIG, HOW) as run:
        for epoch in range(1, 6):
            run.log([{"epoch": epoch}])
            run.save_progress(epoch, progress_of(epoch))
    with (path / "metrics.jsonl").open("a") as log:
        log.write('{"epo')
    (path / "progress" / "000006").mkdir()
    shutil.copy(path / "progress" / "000005" / "0.npz", path / "progress" / "000006" / "0.partial")
    return path


@pytest.fixture
def killed(five_epochs: Path, tmp_path: Path) -> Iterator[RunFolder]:
    """A copy of `five_epochs`, resumed."""
    shutil.copytree(five_epochs, tmp_path / "run")
    with open_run(tmp_path / "run", CONFIG, HOW, resume=True) as run:
        yield run


def newest(run: RunFolder) -> list[Path]:
    return sorted((path.parent for path in (run.path / "progress").glob("*/0.npz")), reverse=True)


def assert_goes_on_from(run: RunFolder, *logged: int) -> None:
    """With the members of the last of these epochs, and the log of them all."""
    loaded = run.load_progress(LIKE)
    assert loaded is not None and loaded[1]["epoch"] == logged[-1]
    assert_same_bits(loaded[0], progress_of(logged[-1]))
    assert saved.read_log(run.path) == [{"epoch": epoch} for epoch in logged]


def test_going_on_from_the_newest_of_those_that_are_kept(killed):
    assert checkpoints.KEPT == 3 and [path.name for path in newest(killed)] == ["000005", "000004", "000003"]
    assert_goes_on_from(killed, 1, 2, 3, 4, 5)
    killed.drop_progress()
    killed.drop_progress()
    assert not (killed.path / "progress").exists()


def shorten(path: Path, by: int = 2) -> None:
    """Cuts every file to half, or to nothing."""
    for file in path.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // by)


@pytest.mark.parametrize(
    "harm",
    [shorten, lambda path: shorten(path, 10**9), damage_array],
    ids=["shortened", "emptied", "a byte changed"],
)
def test_a_damaged_checkpoint_is_passed_over(killed, harm):
    harm(newest(killed)[0])
    assert_goes_on_from(killed, 1, 2, 3, 4)
    last = (killed.path / "log.txt").read_text().splitlines()[-1]
    assert "checkpoint 000005 is damaged" in last and "looking for the one before it" in last
    killed.log([{"epoch": 5}])
    killed.save_progress(5, progress_of(5))
    assert_goes_on_from(killed, 1, 2, 3, 4, 5)


def test_a_log_that_lost_its_end_is_not_filled_up(killed):
    """As after a power cut: the checkpoint whose lines are still there is taken, and without one the start."""
    lines = (killed.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (killed.path / "metrics.jsonl").write_bytes(b"".join(lines[:3]) + b'{"ep')
    assert_goes_on_from(killed, 1, 2, 3)
    assert "metrics.jsonl is shorter" in (killed.path / "log.txt").read_text()
    for path in newest(killed):
        shorten(path)
    assert killed.load_progress(LIKE) is None
    assert not (killed.path / "metrics.jsonl").exists()
    assert (killed.path / "log.txt").read_text().count("is damaged") == 5


def test_a_checkpoint_of_another_run_is_refused(killed, tmp_path):
    with open_run(tmp_path / "other", with_option(seed=1), HOW) as other:
        shutil.copytree(killed.path / "progress", other.path / "progress")
        shutil.copy(killed.path / "metrics.jsonl", other.path)
        before = contents(other.path)
        assert message_of(other.load_progress, LIKE).endswith("options and data that its checkpoint was made with")
        assert contents(other.path) == before


# ---- a full disk ----


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_keeps_the_last_checkpoint(killed, number, monkeypatch):
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(ocp, "save", fail)
        patch.setattr(np, "savez", fail)
        for write in (lambda: killed.save_progress(6, progress_of(6)), lambda: killed.write_members(parameters(1))):
            with pytest.raises(RunError, match=r"what was written before is whole: make room, .* --resume") as stop:
                write()
            assert ("no space left" in str(stop.value)) == (number != errno.EIO)
        patch.setattr(Path, "open", fail)
        for append in (lambda: killed.log([{"epoch": 6}]), lambda: killed.note("hello")):
            with pytest.raises(RunError, match="cannot be written"):
                append()
    assert_goes_on_from(killed, 1, 2, 3, 4, 5)


# What a second process does with a folder that the first one has open, and then with a disk that fills up:
# no file may grow beyond 300 kB, which is met outside Python.
SECOND_PROCESS = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_run_folder as t
print(t.message_of(t.begun, Path(sys.argv[2]), resume=True))
with t.open_run(Path(sys.argv[3]), t.CONFIG, t.HOW) as run:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    for epoch in (1, 5, 20):
        run.log([{"epoch": epoch}])
        try:
            run.save_progress(epoch, t.progress_of(epoch))
        except t.RunError as error:
            print(error)
"""


def test_a_second_process_is_refused_and_a_disk_that_is_really_full(run, tmp_path):
    full = tmp_path / "full"
    command = [sys.executable, "-c", SECOND_PROCESS, str(Path(__file__).parent), str(run.path), str(full)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    refused, message = done.stdout.splitlines()
    assert "another process is running in it" in refused
    assert message.startswith(f"{full / 'progress'} cannot be written")
    assert message.endswith("what was written before is whole: make room, then go on with --resume")
    with open_run(full, CONFIG, HOW, resume=True) as resumed:
        assert_goes_on_from(resumed, 1, 5)
