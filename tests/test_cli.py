"""How an experiment becomes a command: every way out has its status and its one line."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import pytest
from jax.errors import JaxRuntimeError
from mil_jax.cli import Compute, ComputeOptions, Interrupted, Stopwatch

from mil_jax import cli, runs
from mil_jax.errors import InputError, RunError

JAX_OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_num_cpu_devices")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of a small experiment."""

    bag_size: int = 3
    """Instances per bag."""
    rates: tuple[float, ...] = (0.1,)
    """Learning rates."""
    head: Literal["concat", "sum"] = "concat"
    """What comes last."""
    data_dir: Path | None = None
    """Where data are."""
    out: Path | None = None
    """The run folder."""
    compute: ComputeOptions = Compute()


@pytest.fixture(autouse=True)
def keep_settings() -> Iterator[None]:
    """Puts back what a command changes in its process."""
    jax.devices()  # from here on the number of devices is settled
    before = {name: getattr(jax.config, name) for name in JAX_OPTIONS}
    absl = logging.getLogger("absl")
    level = absl.level
    yield
    absl.setLevel(level)
    for name, value in before.items():
        if getattr(jax.config, name) != value:
            jax.config.update(name, value)


Outcome = tuple[int, list[str], list[Any]]


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command: (options, raises=what main raises) -> (exit status, lines on stderr, configs that main got)."""

    def run(*options: str, raises: BaseException | None = None) -> Outcome:
        seen = []

        def main(config: Config) -> None:
            seen.append(config)
            if raises:
                raise raises

        monkeypatch.setattr(sys, "argv", ["experiment.py", *options])
        try:
            cli.command(Config, main, "An experiment.", runs.saved_options)
            status = 0
        except SystemExit as stop:
            status = stop.code
        assert isinstance(status, int)
        return status, capsys.readouterr().err.splitlines(), seen

    return run


# ---- ways out ----


def test_options_reach_the_experiment(run_command: Callable[..., Outcome]) -> None:
    status, lines, (config,) = run_command("--bag-size", "5", "--rates", "0.1", "0.2", "--devices", "2", "--out", "a/b")
    assert (status, lines) == (0, [])
    assert config == Config(5, (0.1, 0.2), out=Path("a/b"), compute=Compute(devices=2))


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("bag_size", 0, "use 1 or more"), 2, "error: --bag-size 0: use 1 or more"),
        (InputError("checkpoint_every", -1, "use 0 or more"), 2, "error: --checkpoint-every -1: use 0 or more"),
        (InputError("label", 7, "use 0 to 1"), 2, "error: label 7: use 0 to 1"),
        (RunError("the disk is full"), 2, "error: the disk is full"),
        (Interrupted("runs/a keeps it"), 130, "stopped: runs/a keeps it"),
        (KeyboardInterrupt("runs/a keeps it"), 130, "stopped: runs/a keeps it"),
        (KeyboardInterrupt(), 130, "stopped before there was anything to keep"),
    ],
)
def test_one_line_and_a_status(
    error: BaseException, status: int, line: str, run_command: Callable[..., Outcome]
) -> None:  # fmt: skip
    assert run_command(raises=error)[:2] == (status, [line])


def test_a_bug_keeps_its_traceback(run_command: Callable[..., Outcome]) -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raises=ZeroDivisionError())
    with pytest.raises(JaxRuntimeError):
        run_command(raises=JaxRuntimeError("a bug"))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--bag-size", "many"], "--bag-size"),
        (["--bag-sizes", "3"], "--bag-sizes"),
        (["--head", "max"], "--head"),
        (["--out"], "--out"),
    ],
)
def test_options_that_cannot_be_read(options: list[str], named: str, run_command: Callable[..., Outcome]) -> None:
    status, lines, seen = run_command(*options)
    assert status == 2 and seen == []
    assert named in " ".join(lines) and "Traceback" not in " ".join(lines)


def test_help_lists_every_option_with_its_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["experiment.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.command(Config, lambda config: pytest.fail("it ran"), "An experiment.")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    fields = [field.name for record in (Config, Compute) for field in dataclasses.fields(record)]
    fields.remove("compute")
    assert all(f"--{name.replace('_', '-')}" in text for name in fields)
    assert text.count("(default:") == len(fields)


# ---- going on ----


@pytest.fixture
def stopped_run(tmp_path: Path) -> Path:
    """A run that was started with options of its own."""
    options = {"bag_size": 5, "rates": [0.1, 0.2], "head": "sum", "gone": 1}
    content = {"format": runs.FORMAT, "options": options, "paths": {"data_dir": "data"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    return tmp_path


def test_resume_takes_the_options_of_the_run(run_command: Callable[..., Outcome], stopped_run: Path) -> None:
    out = str(stopped_run)
    status, _, (config,) = run_command("--resume", "--out", out)
    started = Config(5, (0.1, 0.2), "sum", Path("data"), stopped_run, Compute(resume=True))
    assert status == 0 and config == started
    (config,) = run_command("--resume", "--out", out, "--bag-size", "3", "--devices", "1")[2]
    assert config == dataclasses.replace(started, bag_size=3, compute=Compute(devices=1, resume=True))
    (config,) = run_command("--out", out)[2]
    assert config == Config(out=stopped_run), "without --resume the folder says nothing"


def test_resume_without_a_run_keeps_the_defaults(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    (config,) = run_command("--resume", "--out", str(tmp_path))[2]
    assert config == Config(out=tmp_path, compute=Compute(resume=True))


@pytest.mark.parametrize("content", ["{", '{"format": 99}'])
def test_resume_of_what_cannot_be_read(content: str, run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    status, lines, seen = run_command("--resume", "--out", str(tmp_path))
    assert status == 2 and seen == []
    assert len(lines) == 1 and lines[0].startswith(f"error: --resume {tmp_path}: ")


def test_with_options_ignores_what_there_is_not() -> None:
    assert cli.with_options(Config(), {"rates": [1.0], "data_dir": None, "gone": 1}) == Config(rates=(1.0,))


# ---- starting JAX ----


@pytest.mark.parametrize(
    ("compute", "argument", "remedy"),
    [
        (Compute(devices=0), "devices", "use at least 1"),
        (Compute(devices=99), "devices", "devices there are"),
        (Compute(together=0), "together", "use at least 1"),
        (Compute(heartbeat=0), "heartbeat", "use at least 1"),
        (Compute(checkpoint_every=-1), "checkpoint_every", "use 0 or more"),
        (Compute(coordinator="127.0.0.1:1"), "coordinator", "together"),
        (Compute(processes=2), "coordinator", "together"),
        (Compute(process_id=0), "coordinator", "together"),
        (Compute(coordinator="127.0.0.1:1", processes=6, process_id=0), "processes", "use at most 5, the number of"),
        (Compute(coordinator="127.0.0.1:1", processes=2, process_id=2), "process_id", "use 0 to 1"),
        (Compute(coordinator="127.0.0.1:1", processes=2, process_id=-1), "process_id", "use 0 to 1"),
        (Compute(coordinator="127.0.0.1:1", processes=2, process_id=0, devices=1), "devices", "use at least 2"),
    ],
)
def test_options_that_do_not_go_together(compute: Compute, argument: str, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy) as stop:
        cli.start_jax(compute, members=5)
    assert stop.value.argument == argument


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `jax.distributed.initialize` was called with; nothing is joined."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: calls.append((*args, options)))
    monkeypatch.setattr(cli, "say_why_on_abort", lambda: calls.append(("say why",)))
    return calls


def test_processes_are_joined_by_hand(joined: list[tuple[Any, ...]]) -> None:
    cli.join_processes(Compute(coordinator="10.0.0.1:1234", processes=2, process_id=1, heartbeat=7), 5)
    assert joined == [("say why",), ("10.0.0.1:1234", 2, 1, {"heartbeat_timeout_seconds": 7})]


def test_processes_are_joined_as_the_cluster_says(
    joined: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.join_processes(Compute(distributed=True), 5)
    assert joined[1][:3] == (None, None, None)
    monkeypatch.setattr(jax, "process_count", lambda: 6)
    with pytest.raises(InputError, match="use at most 5"):
        cli.join_processes(Compute(distributed=True), 5)


def test_a_process_alone_joins_nobody(joined: list[tuple[Any, ...]]) -> None:
    cli.join_processes(Compute(), 5)
    assert joined == []


@pytest.mark.parametrize("address", [None, "nowhere"])
def test_processes_that_cannot_be_joined(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("nobody there\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(cli, "say_why_on_abort", lambda: None)
    by_hand = Compute(coordinator=address, processes=2, process_id=0) if address else Compute(distributed=True)
    with pytest.raises(InputError, match=r"cannot be joined \(nobody there\): give --coordinator ADDRESS:PORT") as stop:
        cli.join_processes(by_hand, 5)
    assert stop.value.argument == ("coordinator" if address else "distributed")


def test_several_processes_need_a_folder(run_command: Callable[..., Outcome]) -> None:
    """By default each would make one of its own."""
    for options in (["--distributed"], ["--coordinator", "127.0.0.1:1", "--processes", "2", "--process-id", "0"]):
        status, lines, seen = run_command(*options)
        assert status == 2 and seen == []
        assert lines == ["error: --out None: name the folder of the run, the same one for all processes"]
        assert run_command(*options, "--out", "run")[0] == 0


def test_each_process_makes_its_part_of_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    monkeypatch.setattr(cli, "core_count", lambda: 1)
    for compute, wanted in (
        (Compute(), 2),
        (Compute(devices=1), 1),
        (Compute(devices=4, processes=2), 2),
        (Compute(devices=5, processes=2), 3),
    ):
        cli.make_cpu_devices(compute)
        assert made == {"jax_num_cpu_devices": wanted}


def test_cores_are_counted_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= cli.core_count() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cli.core_count() == os.cpu_count()


def test_a_lost_process_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are several; alone, the error is another one."""
    for error in (JaxRuntimeError("Gloo failed\nand more"), TimeoutError("waiting at barrier")):
        with pytest.raises(type(error)), cli.lost_processes():
            raise error
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: 2)
            with pytest.raises(RunError) as stop, cli.lost_processes():
                raise error
        first_line = str(error).splitlines()[0]
        assert str(stop.value) == f"{cli.LOST_PROCESS} ({first_line}); {cli.LOST_REMEDY}"


def test_where_jax_would_abort_the_process_says_why() -> None:
    code = "import os; from mil_jax import cli; cli.say_why_on_abort(); os.abort()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {cli.LOST_PROCESS}; {cli.LOST_REMEDY}"


# ---- the compilation cache ----


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli.cache_folder("auto") == tmp_path / "cache" / "mil_jax" / "compiled"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cli.cache_folder("auto") == tmp_path / "home" / ".cache" / "mil_jax" / "compiled"
    assert (tmp_path / "home" / ".cache" / "mil_jax" / "compiled").is_dir()


def test_the_cache_moves_or_goes_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cli.start_jax(Compute(compilation_cache="here"), 1)
    assert getattr(jax.config, JAX_OPTIONS[0]) == str(tmp_path / "here")
    assert (tmp_path / "here").is_dir()
    cli.start_jax(Compute(compilation_cache="off"), 1)
    assert getattr(jax.config, JAX_OPTIONS[0]) is None


def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Named, it is an error; in the user's cache folder, it is done without."""
    (tmp_path / "file").write_text("something")
    with pytest.raises(InputError, match="name a folder that can be made") as stop:
        cli.cache_folder(str(tmp_path / "file"))
    assert stop.value.argument == "compilation_cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cli.cache_folder("auto") is None


# ---- being asked to stop ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag(number: int) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with cli.stop_requests() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked() and asked()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    with cli.stop_requests() as asked:
        assert not asked(), "the next run is not asked"


def test_a_second_ctrl_c_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with cli.stop_requests() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked(), "a cluster may ask twice"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunError), cli.stop_requests():
        raise RunError("full")
    assert signal.getsignal(signal.SIGTERM) is before


# ---- what is shown ----


def test_the_stopwatch_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 10.0, 14.0, 20.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    for _ in range(2):
        with watch.phase("plots"):
            pass
    watch.add("compile", 0.5)
    assert watch.read() == {"plots": 6.0, "compile": 0.5, "total": 20.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.1235"), (1.0, "1.0000"), (float("nan"), "–"), (142146, "142,146"), (True, "True"), ("sum", "sum")],
)
def test_cells(value: object, text: str) -> None:
    assert cli.format_cell(value) == text


def test_tables_and_progress_are_plain_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    cli.print_table("Results", ("set", "bags", "loss"), [("train", 1000, 0.5), ("test", 20, float("nan"))], "A caption")
    with cli.epoch_progress(20) as show:
        show(1, "val loss 0.5" + "0" * 200)
        show(2, "val loss 0.4")
    cli.say("run folder: " + "deep/" * 50 + "[red]")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "Results" and "A caption" in lines
    assert "│ train │ 1,000 │ 0.5000 │" in lines and "│ test  │    20 │      – │" in lines
    assert "epoch   1/20  val loss 0.5" + "0" * 200 in lines and "epoch   2/20  val loss 0.4" in lines
    assert lines[-1] == "run folder: " + "deep/" * 50 + "[red]"


def test_only_the_first_process_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    cli.say("hello")
    with cli.epoch_progress(2) as show:
        show(1, "val loss 0.5")
    assert capsys.readouterr().out == ""
