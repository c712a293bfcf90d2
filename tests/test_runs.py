"""The run folder: whole files or none, one writer, and checkpoints that a killed run goes on from."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from mil_jax.runs import RunFolder, load_run, open_run
from orbax.checkpoint import v1 as ocp

from mil_jax import runs
from mil_jax.errors import InputError, RunError
from mil_jax.run import checkpoints

CONFIG = {"experiment": "test", "options": {"seed": 0, "learning_rate": 1e-3, "hidden": (8, 4)}}
HOW = {"paths": {"data_dir": None}, "compute": {"devices": 2}}

# The structure of what `progress_of` makes; sizes come from the checkpoint.
LIKE = {
    "weights": jax.ShapeDtypeStruct((), jnp.float32),
    "step": jax.ShapeDtypeStruct((), jnp.int32),
    "key": jax.ShapeDtypeStruct((), jnp.uint32),
}


def progress_of(epoch: int) -> dict[str, np.ndarray]:
    """Something to save, another for each epoch; 40 kB that do not compress."""
    rng = np.random.default_rng(epoch)
    return {
        "weights": rng.normal(size=(epoch, 10_000)).astype(np.float32),
        "step": np.arange(3, dtype=np.int32) * epoch,
        "key": np.array([epoch, 2**32 - 1], np.uint32),
    }


def begun(path: Path, config: dict[str, Any], resume: bool = False) -> None:
    """Opens a run, and ends it at once."""
    with open_run(path, config, HOW, resume):
        pass


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    """A new run folder, open."""
    with open_run(tmp_path / "run", CONFIG, HOW) as run:
        yield run


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- files ----


def test_a_new_folder_holds_what_decides_the_results(run: RunFolder) -> None:
    assert files_in(run.path) == [".lock", "config.json", "log.txt"]
    config = json.loads((run.path / "config.json").read_text())
    assert config["format"] == runs.FORMAT
    assert config["options"] == {"seed": 0, "learning_rate": 1e-3, "hidden": [8, 4]}
    assert config["compute"] == {"devices": 2}
    assert config["versions"]["jax"] == jax.__version__
    assert config["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert config["versions"]["device"] == jax.devices()[0].device_kind
    assert runs.saved_options(run.path) == config["options"] | {"data_dir": None}


def half_written(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


class HalfFigure:
    """A figure that fills the disk."""

    def savefig(self, path: Path, format: str) -> None:
        assert format == "png"
        half_written(path)


def test_a_file_is_complete_or_absent(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half way leaves no file, and where there was one, the old content."""
    run.write_json("summary.json", {"accuracy": 1.0})
    before = (run.path / "summary.json").read_bytes()
    monkeypatch.setattr(Path, "write_text", lambda path, text: half_written(path))
    monkeypatch.setattr(np, "savez_compressed", lambda file, **arrays: half_written(Path(file.name)))
    for write in (
        lambda: run.write_json("summary.json", {"accuracy": 0.0}),
        lambda: run.write_json("other.json", {}),
        lambda: run.write_arrays("attention.npz", weights=np.ones(3)),
        lambda: run.write_figure("curves", HalfFigure()),
    ):
        with pytest.raises(RunError, match=r"no space left\); what was written before is whole"):
            write()
    assert (run.path / "summary.json").read_bytes() == before
    assert files_in(run.path) == [".lock", "config.json", "log.txt", "summary.json"]


def test_an_error_that_is_not_the_disks_stays_what_it_is(run: RunFolder) -> None:
    with pytest.raises(TypeError):
        run.write_json("summary.json", {"function": len})
    assert files_in(run.path) == [".lock", "config.json", "log.txt"]


def test_what_is_not_finite_becomes_null(run: RunFolder) -> None:
    run.write_json(
        "summary.json",
        {
            "numpy": np.float32(np.nan),
            "jax": jnp.array([1.0, jnp.inf]),
            "nested": [{"python": -float("inf")}, (np.int32(3), np.bool_(True))],
            "path": Path("runs"),
        },
    )
    assert json.loads((run.path / "summary.json").read_text(), parse_constant=pytest.fail) == {
        "numpy": None,
        "jax": [1.0, None],
        "nested": [{"python": None}, [3, True]],
        "path": "runs",
    }


def test_log_lines_are_appended(run: RunFolder) -> None:
    run.log([{"epoch": 1, "loss": np.float32(0.5)}, {"epoch": 1, "loss": float("nan")}])
    run.log([{"epoch": 2, "loss": 0.25}])
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {"epoch": 1, "loss": 0.5},
        {"epoch": 1, "loss": None},
        {"epoch": 2, "loss": 0.25},
    ]


def test_a_table_has_a_line_for_each_row(run: RunFolder) -> None:
    run.write_csv("table.csv", [{"rate": 0.1, "loss": np.float32(0.5)}, {"rate": 1.0, "loss": np.nan}])
    assert (run.path / "table.csv").read_text().splitlines() == ["rate,loss", "0.1,0.5", "1.0,"]


def test_the_log_and_the_members_as_tables(run: RunFolder) -> None:
    run.log([{"epoch": 1, "member": i, "loss": np.float32(0.5) if i else np.nan} for i in range(2)])
    run.write_tables({"members": [{"seed": 0, "auc": 0.5, "warnings": ["One.", "Two."]}, {"seed": 1, "auc": None}]})
    assert (run.path / "metrics.csv").read_text().splitlines() == ["epoch,member,loss", "1,0,", "1,1,0.5"]
    assert (run.path / "members.csv").read_text().splitlines() == ["seed,auc,warnings", "0,0.5,One.; Two.", "1,,"]


ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.int32, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@settings(deadline=None, max_examples=25)
@given(arrays=st.dictionaries(st.sampled_from(["attention", "rows", "label"]), ARRAYS))
def test_equal_arrays_give_equal_bytes(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> None:
    run = RunFolder(tmp_path_factory.mktemp("arrays"), "")
    for name in ("once.npz", "twice.npz"):
        run.write_arrays(name, **arrays)
    assert (run.path / "once.npz").read_bytes() == (run.path / "twice.npz").read_bytes()
    with np.load(run.path / "once.npz") as read:
        assert set(read.files) == set(arrays)
        assert_same_bits(dict(read), arrays)


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process of a run looks at nothing and writes nothing, even if the first one has begun."""
    with open_run(tmp_path / "run", CONFIG, HOW):
        before = files_in(tmp_path)
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with open_run(tmp_path / "run", CONFIG, HOW) as second:
            second.note("hello")
            second.log([{"epoch": 1}])
            second.write_json("summary.json", {})
            second.write_arrays("attention.npz", weights=np.ones(3))
            second.drop_progress()
        assert files_in(tmp_path) == before
        assert "hello" not in (tmp_path / "run" / "log.txt").read_text()


# ---- who may use the folder ----


def test_a_folder_that_holds_a_run_is_refused(run: RunFolder) -> None:
    with pytest.raises(InputError, match=r"it holds a run already: choose another folder, or .* --resume") as stop:
        begun(run.path, CONFIG)
    assert stop.value.argument == "out"


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    begun(tmp_path, CONFIG)
    assert (tmp_path / "config.json").exists()


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("something")
    with pytest.raises(InputError, match="choose") as stop:
        begun(tmp_path / "file" / below, CONFIG)
    assert stop.value.argument == "out"
    assert files_in(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system where nobody can make a folder")
def test_a_folder_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(InputError, match=r"out = '/proc/nothing/run'.*choose"):
        begun(Path("/proc/nothing/run"), CONFIG)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        begun(tmp_path / "run", CONFIG)


def test_a_lock_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match="choose a folder that can be written to") as stop:
        begun(tmp_path, CONFIG)
    assert stop.value.argument == "out"


def test_the_lock_is_given_back(tmp_path: Path) -> None:
    """At the end of a run, however it ends, even while its error is still at hand."""
    with pytest.raises(RunError) as stop, open_run(tmp_path, CONFIG, HOW):
        raise RunError("full")
    begun(tmp_path, CONFIG, resume=True)
    assert stop.value.__traceback__ is not None
    log = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ")[1] for line in log] == ["started", "resumed"]


def test_ctrl_c_says_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="go on with --resume"), open_run(tmp_path, CONFIG, HOW):
        raise KeyboardInterrupt
    assert (tmp_path / "log.txt").read_text().endswith("interrupted\n")


# ---- going on ----


def with_option(**options: Any) -> dict[str, Any]:
    return CONFIG | {"options": CONFIG["options"] | options}


@pytest.mark.parametrize(
    ("config", "argument", "remedy"),
    [
        (with_option(seed=1), "seed", "the run was started with 0"),
        (with_option(learning_rate=2e-3), "learning_rate", "the run was started with 0.001"),
        (with_option(hidden=(8,)), "hidden", r"the run was started with \[8, 4\]"),
        (with_option(new=True), "new", "the run was started with None"),
        (CONFIG | {"data": {"content_hash": "another"}}, "resume", "the data differ"),
    ],
)
def test_another_configuration_is_refused(run: RunFolder, config: dict[str, Any], argument: str, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy) as stop:
        begun(run.path, config, resume=True)
    assert stop.value.argument == argument


def test_a_run_that_has_ended_is_refused(run: RunFolder) -> None:
    run.write_json("summary.json", {})
    with pytest.raises(InputError, match="come to its end"):
        begun(run.path, CONFIG, resume=True)


def test_resume_without_a_run_is_refused_and_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run in this folder") as stop:
        begun(tmp_path / "nothing", CONFIG, resume=True)
    assert stop.value.argument == "resume"
    assert not (tmp_path / "nothing").exists()


# ---- reading a run back ----


def parameters(members: int) -> dict[str, Any]:
    rng = np.random.default_rng(members)
    kernel = rng.normal(size=(members, 70, 50)).astype(np.float32)
    kernel[0, 0, :4] = [np.nan, -0.0, np.inf, 1e-45]
    return {"encoder": {"Dense_0": {"kernel": kernel, "bias": np.zeros((members, 50), np.float32)}}}


def test_parameters_come_back_bit_by_bit(run: RunFolder) -> None:
    """Also after they have been written twice, which leaves nothing of the first time."""
    run.write_params(parameters(3))
    run.write_params(parameters(2))
    run.write_json("summary.json", {"accuracy": 1.0})
    read = load_run(str(run.path))
    as_bits = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf).view(np.uint32), tree)  # noqa: E731
    assert_same_bits(as_bits(read.params), as_bits(parameters(2)))
    assert read.summary == {"accuracy": 1.0}
    assert read.config["options"]["seed"] == 0


def test_parameters_of_several_devices_come_back(run: RunFolder) -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("member",))
    placed = jax.device_put(parameters(2 * mesh.size), NamedSharding(mesh, PartitionSpec("member")))
    run.write_params(placed)
    assert_same_bits(load_run(run.path).params, parameters(2 * mesh.size))


def newer_format(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"format": runs.FORMAT + 1}))


def damage_array(path: Path) -> None:
    """Changes one byte in the middle of the largest file, which holds the arrays."""
    file = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "remedy"),
    [
        (lambda path: shutil.rmtree(path), "no run here: config.json cannot be read"),
        (lambda path: (path / "config.json").unlink(), "no run here: config.json cannot be read"),
        (lambda path: (path / "config.json").write_text('{"format": 1'), "config.json cannot be read"),
        (lambda path: (path / "config.json").write_bytes(b"\xff\xfe"), "config.json cannot be read"),
        (lambda path: (path / "summary.json").write_text("{"), "summary.json cannot be read"),
        (newer_format, "written by a newer mil_jax; this one reads format 1"),
        (lambda path: shutil.rmtree(path / "checkpoint"), "no whole checkpoint"),
        (lambda path: (path / "checkpoint" / "_CHECKPOINT_METADATA").unlink(), "no whole checkpoint"),
        (lambda path: shutil.rmtree(path / "checkpoint" / "state"), "no whole checkpoint"),
        (lambda path: damage_array(path / "checkpoint"), "no whole checkpoint"),
    ],
)
def test_a_damaged_run_is_refused(harm: Callable[[Path], Any], remedy: str, whole_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(whole_run, copy)
    assert_same_bits(load_run(copy).params, parameters(2))
    harm(copy)
    with pytest.raises(InputError, match=remedy) as stop:
        load_run(copy)
    assert stop.value.argument == "path"
    assert "\n" not in str(stop.value)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has come to its end."""
    path = tmp_path_factory.mktemp("whole")
    with open_run(path, CONFIG, HOW) as run:
        run.write_params(parameters(2))
        run.write_json("summary.json", {})
    return path


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
    (path / "progress" / "000006.orbax-checkpoint-tmp").mkdir()
    return path


@pytest.fixture
def killed(five_epochs: Path, tmp_path: Path) -> Iterator[RunFolder]:
    """A copy of `five_epochs`, resumed."""
    shutil.copytree(five_epochs, tmp_path / "run")
    with open_run(tmp_path / "run", CONFIG, HOW, resume=True) as run:
        yield run


def logged(run: RunFolder) -> list[int]:
    return [json.loads(line)["epoch"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]


def test_the_last_checkpoints_are_kept(five_epochs: Path) -> None:
    assert checkpoints.KEPT == 3
    whole = {path.name for path in (five_epochs / "progress").iterdir() if path.name.isdigit()}
    assert whole == {"000003", "000004", "000005"}


def test_going_on_from_the_newest(killed: RunFolder) -> None:
    loaded = killed.load_progress(LIKE)
    assert loaded is not None
    epoch, tree = loaded
    assert epoch == 5 and logged(killed) == [1, 2, 3, 4, 5]
    assert_same_bits(tree, progress_of(5))


def newest(run: RunFolder, number: int) -> list[Path]:
    return sorted(path for path in (run.path / "progress").iterdir() if path.name.isdigit())[-number:]


def shorten(path: Path) -> None:
    """Cuts every file to half."""
    for file in path.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


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
    (path,) = newest(killed, 1)
    harm(path)
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
    for path in newest(killed, 3):
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
    with open_run(tmp_path / "other", with_option(seed=1), HOW) as other:
        shutil.copytree(killed.path / "progress", other.path / "progress")
        shutil.copy(killed.path / "metrics.jsonl", other.path)
        with pytest.raises(InputError, match="made with other options or data") as stop:
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
        for write in (lambda: killed.save_progress(6, progress_of(6)), lambda: killed.write_params(parameters(1))):
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
import test_runs as t

try:
    with t.open_run(Path(sys.argv[2]), t.CONFIG, t.HOW, resume=True):
        print("let in")
except t.InputError as error:
    print(error)

with t.open_run(Path(sys.argv[3]), t.CONFIG, t.HOW) as run:
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
    with ExitStack() as stack:
        stack.enter_context(open_run(held, CONFIG, HOW))
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
    with open_run(full, CONFIG, HOW, resume=True) as run:
        loaded = run.load_progress(LIKE)
        assert loaded is not None
        assert loaded[0] == 5 and logged(run) == [1, 5]
        assert_same_bits(loaded[1], progress_of(5))


# ---- runs that have ended ----


@pytest.fixture
def ended(run: RunFolder) -> RunFolder:
    run.log([{"epoch": 1, "member": 0, "loss": 0.5}])
    run.write_arrays("attention.npz", label=np.random.default_rng(0).permutation(9000))
    run.write_json("summary.json", {"members": []})
    return run


def test_what_a_run_left(ended: RunFolder) -> None:
    finished = runs.load_finished(str(ended.path))
    assert finished.config["options"]["seed"] == 0
    assert (finished.log, finished.summary) == ([{"epoch": 1, "member": 0, "loss": 0.5}], {"members": []})
    np.testing.assert_array_equal(np.sort(finished.arrays["label"]), np.arange(9000))


@pytest.mark.parametrize(
    ("harm", "remedy"),
    [
        (lambda path: (path / "config.json").unlink(), "no run here: config.json cannot be read"),
        (newer_format, "written by a newer mil_jax; this one reads format 1"),
        (lambda path: (path / "summary.json").unlink(), "has not come to its end.*--resume"),
        (lambda path: (path / "summary.json").write_text("{"), "summary.json cannot be read"),
        (lambda path: (path / "metrics.jsonl").unlink(), "is not complete: .*metrics.jsonl"),
        (lambda path: (path / "metrics.jsonl").write_text('{"epoch": 1'), "is not complete"),
        (lambda path: (path / "attention.npz").unlink(), "is not complete: .*attention.npz"),
        (lambda path: (path / "attention.npz").write_bytes(b"PK"), "is not complete"),
        (lambda path: (path / "attention.npz").write_bytes((path / "attention.npz").read_bytes()[:-9]), "not complete"),
        (damage_array, "is not complete"),
    ],
)
def test_what_a_run_did_not_leave(ended: RunFolder, harm: Any, remedy: str) -> None:
    harm(ended.path)
    before = {file: file.read_bytes() for file in ended.path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=remedy) as error:
        runs.load_finished(ended.path, "run")
    assert (error.value.argument, error.value.value) == ("run", str(ended.path))
    assert {file: file.read_bytes() for file in ended.path.rglob("*") if file.is_file()} == before
