"""How an experiment becomes a command: its config as options, how JAX starts, and every way out with its one line."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from conftest import commands_here, message_of
from jax.errors import JaxRuntimeError

from mil_jax.errors import InputError, RunError
from mil_jax.model import ModelConfig
from mil_jax.optimizer import HyperConfig
from mil_jax.placement import Placement
from mil_jax.run import cli, processes
from mil_jax.run.config import Compute, DataConfig, RunConfig, aside, settings, with_options
from mil_jax.run.processes import Interrupted
from mil_jax.run.saved import FORMAT
from mil_jax.training import FitConfig


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of a small experiment."""

    data: DataConfig = DataConfig()
    rates: tuple[float, ...] = (0.1,)
    """Learning rates."""
    note: str = aside("")
    """What does not decide the results."""


@pytest.fixture(autouse=True)
def keep_settings(tmp_path: Path) -> Iterator[None]:
    """Puts back what a command changes in its process."""
    with commands_here(tmp_path / "user"):
        yield


Run = Callable[..., tuple[int, list[str], list[Any]]]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command: (options, raises=what main raises) -> (exit status, lines on stderr, configs that main got)."""

    def run(*options: str, raises: BaseException | None = None) -> tuple[int, list[str], list[Any]]:
        seen, status = [], 0

        def main(config: Config) -> None:
            seen.append(config)
            if raises:
                raise raises

        monkeypatch.setattr(sys, "argv", ["experiment.py", *options])
        try:
            cli.command(Config, main, "An experiment.")
        except SystemExit as stop:
            status = stop.code
        assert isinstance(status, int)
        return status, capsys.readouterr().err.splitlines(), seen

    return run


# ---- ways out ----


def test_options_reach_the_experiment(run_command):
    """Flat on the command line, nested in the config."""
    options = "--hidden 8 4 --rates 0.1 0.2 --devices 2 --out a/b --l2 None --no-report --dataset mnist"
    status, lines, (config,) = run_command(*options.split())
    assert (status, lines) == (0, [])
    assert config == Config(
        model=ModelConfig(hidden=(8, 4)), hyper=HyperConfig(l2=None), report=False, out=Path("a/b"),
        compute=Compute(devices=2), data=DataConfig("mnist"), rates=(0.1, 0.2),
    )  # fmt: skip


@pytest.mark.parametrize(("error", "status", "line"), [
    (InputError("batch_size", 0, "expected more"), 2, "error: --batch-size 0: expected more"),
    (InputError("label", 7, "expected 0 to 1"), 2, "error: label 7: expected 0 to 1"),
    (RunError("the disk is full"), 2, "error: the disk is full"),
    (Interrupted("runs/a keeps it"), 130, "stopped: runs/a keeps it"),
    (KeyboardInterrupt("runs/a keeps it"), 130, "stopped: runs/a keeps it"),
    (KeyboardInterrupt(), 130, "stopped before there was anything to keep"),
])  # fmt: skip
def test_one_line_and_a_status(error, status, line, run_command):
    assert run_command(raises=error)[:2] == (status, [line])
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_command(raises=ZeroDivisionError())


@pytest.mark.parametrize(("options", "named"), [
    ("--batch-size many", "--batch-size"),
    ("--batch-sizes 3", "--batch-sizes"),
    ("--head max", "--head"),
    ("--out", "--out"),
    # what a record refuses comes in the same form, from however deep
    ("--batch-size 0", "error: --batch-size 0: expected a whole number from 1"),
    ("--patience 0", "error: --patience 0: expected a whole number from 1"),
    ("--epochs 0", "error: --epochs 0: expected a whole number from 1"),
    ("--checkpoint-every -1", "error: --checkpoint-every -1: expected a whole number from 0"),
    ("--learning-rate nan", "error: --learning-rate nan: expected a number, more than 0 and at most 1000"),
    ("--devices 1 --processes 2", "error: --devices 1: expected at least 2, one for each process"),
    ("--head concat --pooling instance_max", "error: --head concat: expected 'sum' with the pooling"),
    ("--seed 4294967296", "error: --seed 4294967296: expected a whole number from 0 to 4294967295"),
    ("--vary weather", "error: --vary weather: expected one or more of init, order, bags"),
    ("--vary ,", "error: --vary ,: expected one or more"),
    ("--out ''", "error: --out "),  # it would be the folder that one stands in
    ("--out .", "error: --out .: expected the name of a folder"),
    # by default each of several processes would make a folder of its own
    ("--distributed", "error: --out None: expected the folder of the run, the same one for all processes"),
    ("--coordinator a:1 --processes 2 --process-id 0", "error: --out None: expected the folder of the run"),
])  # fmt: skip
def test_refused_options(options, named, run_command):
    status, lines, seen = run_command(*shlex.split(options))
    assert status == 2 and seen == []
    assert named in " ".join(lines) and "Traceback" not in " ".join(lines)
    assert len(lines) == 1 or not named.startswith("error")


# ---- going on ----


def test_resume_takes_the_options_of_the_run(run_command, tmp_path):
    options = {"batch_size": 5, "rates": [0.1, 0.2], "head": "sum", "seed": 3, "gone": 1}
    content = {"format": FORMAT, "options": options, "data": {}, "paths": {"data_dir": "data"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    status, _, (config,) = run_command("--resume", "--out", str(tmp_path))
    started = Config(
        seed=3, model=ModelConfig(head="sum"), fit=FitConfig(batch_size=5), data=DataConfig(data_dir=Path("data")),
        rates=(0.1, 0.2), out=tmp_path, compute=Compute(resume=True),
    )  # fmt: skip
    assert status == 0 and config == started
    (config,) = run_command("--resume", "--out", str(tmp_path), "--seed", "4", "--devices", "1")[2]
    assert config == dataclasses.replace(started, seed=4, compute=Compute(devices=1, resume=True))
    (config,) = run_command("--out", str(tmp_path))[2]
    assert config == Config(out=tmp_path), "without --resume the folder says nothing"
    (config,) = run_command("--resume", "--out", "empty")[2]
    assert config == Config(out=Path("empty"), compute=Compute(resume=True))


@pytest.mark.parametrize(
    "content",
    ["[]", '{"format": 99, "options": {}, "data": {}}', '{"format": 2, "options": {}, "data": {}, "paths": 3}',
     '{"format": 2, "options": {}, "data": {}, "paths": {"data_dir": 3}}'],
)  # fmt: skip
def test_resume_of_what_cannot_be_read(content, run_command, tmp_path):
    (tmp_path / "config.json").write_text(content)
    status, lines, seen = run_command("--resume", "--out", str(tmp_path))
    assert status == 2 and seen == []
    assert len(lines) == 1 and lines[0].startswith("error: --r")


def test_a_config_says_what_decides_and_what_does_not():
    """Every field in one of the two; and back again."""
    config = Config(seed=3, note="hello", rates=(0.2,), out=Path("run"), data=DataConfig(data_dir=Path("data")))
    options, how = settings(config)
    assert {"seed", "members", "vary", "rates", "dataset", "hidden", "learning_rate", "epochs"} < options.keys()
    assert how["paths"] == {"data_dir": Path("data"), "manual_dir": None}
    assert how["output"] == {"plot_bags": 3, "report": True, "tensorboard": False, "note": "hello"}
    assert how["compute"] == dataclasses.asdict(Compute())
    given = json.loads(json.dumps(options | how["output"] | {"data_dir": "data", "gone": 1}))
    assert with_options(Config(out=Path("run")), given) == config


# ---- starting JAX ----


@pytest.mark.parametrize(("compute", "argument", "expected"), [
    ({"devices": 0}, "devices", "whole number from 1"),
    ({"devices": 99}, "devices", "devices there are"),
    ({"together": 0}, "together", "whole number from 1"),
    ({"heartbeat": 0}, "heartbeat", "whole number from 1"),
    ({"coordinator": "127.0.0.1:1"}, "coordinator", "together"),
    ({"processes": 2}, "coordinator", "together"),
    ({"process_id": 0}, "coordinator", "together"),
    ({"coordinator": "127.0.0.1:1", "processes": 6, "process_id": 0}, "processes", "at most 5, the number of"),
    ({"coordinator": "127.0.0.1:1", "processes": 2, "process_id": 2}, "process_id", "0 to 1"),
    ({"coordinator": "127.0.0.1:1", "processes": 2, "process_id": -1}, "process_id", "0 to 1"),
])  # fmt: skip
def test_options_that_do_not_go_together(compute, argument, expected):
    message = message_of(lambda: processes.start_jax(Compute(**compute), members=5))
    assert message.startswith(f"{argument} = ") and expected in message


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `jax.distributed.initialize` was called with; nothing is joined."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((*args, options)))
    monkeypatch.setattr(processes, "say_why_on_abort", lambda: calls.append(("say why",)))
    return calls


def test_processes_are_joined(joined, monkeypatch):
    """By hand, or as the cluster says; one alone joins nobody."""
    processes.join_processes(Compute(), 5)
    assert joined == []
    processes.join_processes(Compute(coordinator="10.0.0.1:1234", processes=2, process_id=1, heartbeat=7), 5)
    assert joined == [("say why",), ("10.0.0.1:1234", 2, 1, {"heartbeat_timeout_seconds": 7})]
    processes.join_processes(Compute(distributed=True), 5)
    assert joined[3][:3] == (None, None, None)
    monkeypatch.setattr(jax, "process_count", lambda: 6)
    assert "at most 5" in message_of(processes.join_processes, Compute(distributed=True), 5)


def test_processes_that_cannot_be_joined(joined, monkeypatch):
    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("nobody there\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    for compute in (Compute(coordinator="nowhere", processes=2, process_id=0), Compute(distributed=True)):
        message = message_of(processes.join_processes, compute, 5)
        assert message.startswith("distributed" if compute.distributed else "coordinator")
        assert "expected processes that can be joined (nobody there): give --coordinator ADDRESS:PORT" in message


def test_devices_and_placement_follow_the_options(monkeypatch):
    """Each process makes its part of the devices."""
    default = processes.placement_of(Compute(), 3)
    assert default.devices == 2
    assert processes.placement_of(Compute(devices=1), 3) == Placement(1, default.together)
    assert processes.placement_of(Compute(together=2), 3) == Placement(2, 2)
    assert "devices" in message_of(processes.placement_of, Compute(devices=3), 3)
    made = {}
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    monkeypatch.setattr(processes, "core_count", lambda: 1)
    for devices, count, wanted in ((None, None, 2), (1, None, 1), (4, 2, 2), (5, 2, 3)):
        processes.make_cpu_devices(Compute(devices=devices, processes=count))
        assert made == {"jax_num_cpu_devices": wanted}


def test_a_lost_process_is_told_in_one_sentence(monkeypatch):
    """Where there are several; alone, the error is another one."""
    for error in (JaxRuntimeError("Gloo failed\nand more"), TimeoutError("waiting at barrier")):
        with pytest.raises(type(error)), processes.lost_processes():
            raise error
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: 2)
            with pytest.raises(RunError) as stop, processes.lost_processes():
                raise error
        first_line = str(error).splitlines()[0]
        assert str(stop.value) == f"{processes.LOST_PROCESS} ({first_line}); {processes.LOST_REMEDY}"


def test_where_jax_would_abort_the_process_says_why():
    code = "import os; from mil_jax.run import processes; processes.say_why_on_abort(); os.abort()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {processes.LOST_PROCESS}; {processes.LOST_REMEDY}"


# ---- the compilation cache ----


def test_the_cache_is_in_the_users_folder_or_elsewhere_or_off(monkeypatch, tmp_path):
    """One that cannot be made is an error where it is named; in the user's cache folder, it is done without."""
    monkeypatch.chdir(tmp_path)
    for choice, folder in (("auto", "user/mil_jax/compiled"), ("here", "here"), ("off", None)):
        processes.start_jax(Compute(compilation_cache=choice), 1)
        assert jax.config.values["jax_compilation_cache_dir"] == (folder and str(tmp_path / folder))
        assert folder is None or Path(folder).is_dir()
    (tmp_path / "file").write_text("something")
    assert message_of(processes.cache_folder, str(tmp_path / "file")).startswith("compilation_cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert processes.cache_folder("auto") is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert processes.cache_folder("auto") == tmp_path / "home/.cache/mil_jax/compiled"


# ---- being asked to stop ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_a_second_ctrl_c_interrupts(number):
    """A cluster may ask twice; the handlers come back, also after an error, and the next run is not asked."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(RunError), processes.stop_requests() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() and asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        raise RunError("full")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with processes.stop_requests() as asked:
        assert not asked()
