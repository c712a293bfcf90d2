"""The run folder: whole files or none, and one writer."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
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
from mil_jax.runs import RunFolder, load_run, open_run

from mil_jax import runs
from mil_jax.errors import InputError, RunError

CONFIG = {"experiment": "test", "options": {"seed": 0, "learning_rate": 1e-3, "hidden": (8, 4)}}
HOW = {"paths": {"data_dir": None}, "compute": {"devices": 2}}


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
