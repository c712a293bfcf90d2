"""Makes the report of a run folder again: for a run without one, or with a newer version of the page.

A named data set is loaded again, for the pictures of the bags, and must be the one that the run was made with. Of a
run on other bags, the page shows the weights alone.

    python -m mil_jax.report runs/mnist_bags/FOLDER
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mil_jax import datasets
from mil_jax.errors import InputError
from mil_jax.report.run import report_of
from mil_jax.run import cli, tensorboard
from mil_jax.run.folder import RunFolder
from mil_jax.run.saved import FinishedRun, load_finished, read_config
from mil_jax.run.screen import say

FOLDER = "run folder"  # what messages call the argument


@dataclass(frozen=True)
class Config:
    """Options of the command."""

    run: cli.Positional[Path]
    """The run folder; report.html is written into it."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps prepared sets; as in the run where not given."""
    manual_dir: Path | None = None
    """A folder, only read, with the canonical .gz files; as in the run where not given."""
    tensorboard: bool = False
    """Write the event files for TensorBoard again, too."""


def main(config: Config) -> Path:
    """Writes the report and returns its path."""
    if config.tensorboard:
        tensorboard.check_installed()
    finished = load(config.run)
    folder = RunFolder(config.run, "")
    folder.write_text("report.html", report_of(finished, load_pool(config, finished)))
    for name, content in (tensorboard.event_files(finished) if config.tensorboard else {}).items():
        folder.write_bytes(f"tensorboard/{name}", content)
    say(f"report: {config.run / 'report.html'}")
    return config.run / "report.html"


def load(path: Path) -> FinishedRun:
    """Reads the run; InputError where there is none, or one that has not come to its end or has no bags."""
    made_by = read_config(path, FOLDER).get("experiment")
    if (path / "summary.json").exists() and not (path / "attention.npz").exists():
        raise InputError(FOLDER, str(path), f"expected a run with attention.npz; this one, made by {made_by}, has none")
    return load_finished(path, FOLDER)


def load_pool(config: Config, finished: FinishedRun) -> np.ndarray | None:
    """The instances of the test bags, None where no set has the name; InputError where they are not the run's."""
    data, paths = finished.config.get("data", {}), finished.config.get("paths", {})
    name, content_hash = data.get("name", ""), data.get("content_hash")
    if not datasets.is_known(name):
        return None
    folders = [getattr(config, option) or paths.get(option) for option in ("data_dir", "manual_dir")]
    loaded = datasets.load(name, *(folder and Path(folder) for folder in folders))
    if loaded.content_hash != content_hash:
        raise InputError("dataset", name, f"expected the data of the run, whose content hash is {content_hash}")
    return np.asarray(loaded.test.x)


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
