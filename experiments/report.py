"""Makes the report of a run folder again: for a run without one, or with a newer version of the page.

The data set is loaded again, for the pictures of the bags, and must be the one that the run was made with.

    python experiments/report.py runs/mnist_bags/FOLDER
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import jax
import mnist_bags
import numpy as np

from mil_jax import cli, datasets, runs, tensorboard_log
from mil_jax.bags import Bags
from mil_jax.errors import InputError


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
        tensorboard_log.check_installed()
    finished = runs.load_finished(config.run, "run folder")
    made_by = finished.config.get("experiment")
    if made_by != "mnist_bags":
        raise InputError("run folder", str(config.run), f"it was made by {made_by}, which writes its report itself")
    test = load_test_bags(config, finished)
    folder = runs.RunFolder(config.run, "")
    mnist_bags.write_report(folder, finished, test.pool)
    if config.tensorboard:
        mnist_bags.write_event_files(folder, finished)
    cli.say(f"report: {config.run / 'report.html'}")
    return config.run / "report.html"


def load_test_bags(config: Config, finished: runs.FinishedRun) -> Bags:
    """Draws the test bags of a run again.

    Raises:
        InputError: the data are not those of the run.
    """
    options = cli.with_options(mnist_bags.Config(), runs.saved_options(finished.path))
    paths = {name: getattr(config, name) for name in ("data_dir", "manual_dir") if getattr(config, name)}
    options = dataclasses.replace(options, **paths)
    data = datasets.load(options.dataset, options.data_dir, options.manual_dir)
    key_bags, _ = jax.random.split(jax.random.key(options.seed))
    expected = finished.config["data"]["content_hash"]
    if data.content_hash != expected:
        raise InputError("dataset", data.name, f"these are not the data of the run, whose hash is {expected}")
    test = mnist_bags.draw_bags(key_bags, data, options).test
    if not np.array_equal(test.rows, finished.arrays["rows"]):
        raise InputError("run folder", str(config.run), "its test bags cannot be drawn again by this version")
    return test


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
