"""Run folders read back: for predicting on new bags, for reports, and to see whether a run can be resumed."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax.bags import InstanceKind, Scaler
from mil_jax.errors import InputError, checked
from mil_jax.losses import Classes
from mil_jax.members import Members
from mil_jax.model import MIL, ModelConfig, build
from mil_jax.run import checkpoints
from mil_jax.run.summary import Summary

ROWS = "progress/rows.json"  # what a study has measured; floats to the last digit, and NaN as itself

FORMAT = 2  # of the folder; raised when a reader of the old one could not read the new one


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read back, with all that predicting on new bags needs."""

    path: Path
    """Its folder."""
    config: dict[str, Any]
    """What `config.json` holds."""
    summary: Summary | None
    """What `summary.json` holds; None where the run did not come to its end."""
    model: MIL
    """The members' model."""
    members: Members
    """Their best parameters, and how they standardise features."""
    class_names: tuple[str, ...]
    """A name for each class."""


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a run that has come to its end left, but for the parameters."""

    path: Path
    """Its folder."""
    config: dict[str, Any]
    """What `config.json` holds."""
    summary: Summary
    """What `summary.json` holds."""
    log: list[dict[str, Any]]
    """The lines of `metrics.jsonl`."""
    arrays: dict[str, np.ndarray]
    """What `attention.npz` holds."""


@checked
def load_run(path: Path | str) -> Run:
    """Reads a run back, to predict on new bags by `ensemble.predict`; an InputError where there is no whole one."""
    path = Path(path)
    config = read_config(path)
    if config["format"] < 2:
        raise InputError("path", str(path), "expected a run of this version: one of format 1 holds no standardisation")
    summary = _read_summary(path, "path") if (path / "summary.json").exists() else None
    try:
        class_names = tuple(config["classes"])
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in config["model"].items()
        }
        model = build(ModelConfig(**given), Classes(len(class_names)))
        kind = InstanceKind(tuple(config["instances"]["shape"]), config["instances"]["pixels"])
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError("path", str(path), f"expected a whole config.json ({error!r})") from None
    return Run(path, config, summary, model, load_members(path / "checkpoint", kind), class_names)


@checked
def load_finished(path: Path | str, argument: str = "path") -> FinishedRun:
    """Reads what a run left, touching nothing; an InputError where it has not come to its end, or is damaged."""
    path = Path(path)
    config = read_config(path, argument)
    if not (path / "summary.json").exists():
        expected = "expected a run that has come to its end: this one has no results yet, go on with it by --resume"
        raise InputError(argument, str(path), expected)
    summary = _read_summary(path, argument)
    try:
        # Opened here: NumPy would leave a damaged file open.
        with (path / "attention.npz").open("rb") as file, np.load(file) as saved:
            arrays = dict(saved)
        return FinishedRun(path, config, summary, read_log(path), arrays)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        expected = f"expected a complete run: one of its files is missing or damaged ({error})"
        raise InputError(argument, str(path), expected) from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that a study had measured when it was stopped, as they were; an InputError where they are damaged."""
    path = folder / ROWS
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError("resume", str(folder), f"expected the rows of a study in {ROWS} ({error})") from None


def load_members(path: Path, kind: InstanceKind) -> Members:
    """Reads what `RunFolder.write_members` wrote onto the first device; an InputError without a whole checkpoint."""
    try:
        tree = checkpoints.load(path)
    except Exception as error:  # Orbax raises many kinds for a checkpoint that is missing or damaged
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError("path", str(path), f"expected a whole checkpoint ({first_line:.150})") from error
    scaler = Scaler(**tree["scaler"]) if tree.get("scaler") else None
    return Members(tree["params"], scaler, kind)


def check_stopped(path: Path) -> None:
    """Refuses, by an InputError, a folder without a run to go on with; touches nothing."""
    if (path / "summary.json").exists():
        raise InputError("resume", str(path), "expected a run that was stopped: this one has come to its end")
    if not (path / "config.json").exists():
        raise InputError("resume", str(path), "expected the folder of a run, by --out: there is none")


def check_resumable(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses, by an InputError, a folder without a run to go on with, or with other options; touches nothing."""
    check_stopped(path)
    before = read_config(path, "resume")
    if before["format"] < FORMAT:
        raise InputError("resume", str(path), f"expected a run of format {FORMAT}: an older mil_jax wrote this one")
    given = jsonable(config)
    for name, value in given["options"].items():
        if value != before["options"].get(name):
            expected = f"expected {before['options'].get(name)!r}, with which the run was started"
            raise InputError(name, value, expected)
    if fingerprint(given) != fingerprint({name: before.get(name) for name in given}):
        raise InputError("resume", str(path), "expected the data that the run was started with: these differ")


def saved_options(path: Path) -> dict[str, Any]:
    """The options that a run was started with; none where there is no run."""
    if not (path / "config.json").exists():
        return {}
    config = read_config(path, "resume")
    return config["options"] | config.get("paths", {}) | config.get("output", {})


def read_config(path: Path, argument: str = "path") -> dict[str, Any]:
    """What `config.json` of a run holds; an InputError if there is none, or one of a newer format."""
    config = _read_json(path, "config.json", argument)
    groups = [config.get(name, {}) for name in ("options", "data", "paths", "output")]
    is_whole = {"format", "options", "data"} <= config.keys() and all(isinstance(group, dict) for group in groups)
    if not is_whole or not isinstance(config["format"], int):
        raise InputError(argument, str(path), "expected the folder of a run: its config.json is another program's")
    if config["format"] > FORMAT:
        expected = f"expected a run of format {FORMAT} or older: a newer mil_jax wrote this one"
        raise InputError(argument, str(path), expected)
    return config


def _read_summary(folder: Path, argument: str) -> Summary:
    content = _read_json(folder, "summary.json", argument)
    try:
        return Summary(
            **{field.name: content[field.name] for field in dataclasses.fields(Summary) if field.name in content}
        )
    except TypeError as error:
        raise InputError(argument, str(folder), f"expected the summary of a run ({error})") from None


def _read_json(folder: Path, name: str, argument: str = "path") -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise InputError(argument, str(folder), f"expected a run: {name} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise InputError(argument, str(folder), f"expected a run: {name} holds no object")
    return content


def fingerprint(config: Mapping[str, Any]) -> str:
    """A hash of what decides the results."""
    return hashlib.sha256(json.dumps(jsonable(config), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """What the results depend on besides the options: versions and the device."""
    packages = ("mil_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def jsonable(value: Any) -> Any:
    """The value with NumPy and JAX scalars and arrays as Python's own, and what is not finite as None."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return jsonable(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
