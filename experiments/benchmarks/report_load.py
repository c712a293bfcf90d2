"""How large is a report, and how fast does a browser open and sort it?

Makes pages with a gallery of bags of MNIST digits, with weights drawn at random, and opens them in a headless Chromium,
which must be installed; Playwright, of the extra `test`, drives it.

    python experiments/benchmarks/report_load.py
"""

import itertools
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from playwright.sync_api import Browser, sync_playwright

from mil_jax import datasets, report, sampling
from mil_jax.errors import InputError, check_whole
from mil_jax.run import cli
from mil_jax.run.screen import print_table
from mil_jax.text import Table

COLUMNS = ("bags", "bag size", "MB", "made in s", "loaded in s", "drawn in s", "slowest in s", "sorted in s")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu")
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"
SORT = "document.querySelector('[data-order=\"attention entropy\"]').click()"
# From the start of loading, or from `start`, until the next frame is drawn.
DRAWN = "requestAnimationFrame(() => setTimeout(() => done((performance.now() - start) / 1000)))"
UNTIL_DRAWN = "new Promise(done => {{ const start = {start}; {action}; " + DRAWN + "; }})"


@dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    bags: tuple[int, ...] = (1000, 5000)
    """Bags on a page."""
    bag_sizes: tuple[int, ...] = (3, 10)
    """Instances per bag."""
    members: int = 8
    """Members whose weights are shown."""
    rounds: int = 5
    """How often each page is opened."""

    def __post_init__(self) -> None:
        for name in ("members", "rounds"):
            check_whole(name, getattr(self, name), 1)


def main(config: Config) -> None:
    """Makes the pages, opens them, and prints medians."""
    command = next(filter(None, map(shutil.which, BROWSERS)), None)
    if command is None:
        raise InputError("PATH", "chromium", f"expected one of {', '.join(BROWSERS)}: apt-get install chromium")
    rows = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=command, args=FLAGS)
        for count, size in itertools.product(config.bags, config.bag_sizes):
            path = Path(folder) / f"{count}-{size}.html"
            gallery = draw_gallery(count, size, config.members)
            started = time.perf_counter()
            path.write_text(report.render("Load", [gallery]), encoding="utf-8")
            made = time.perf_counter() - started
            values = (path.stat().st_size / 1e6, made, *measure(browser, path, config.rounds))
            rows.append([count, size, *(f"{value:.2f}" for value in values)])
    title = f"Reports of {config.members} members"
    print_table(Table(title, COLUMNS, rows, "medians of rounds, and the slowest drawing"))


def draw_gallery(count: int, size: int, members: int) -> report.Gallery:
    """Bags of digits with random weights and probabilities that mostly fit the labels."""
    digits = datasets.load("mnist-sample").test
    drawn = sampling.sample_bags(jax.random.key(0), digits.x, digits.label, sampling.BagLaw(bag_size=size), count=count)
    rng = np.random.default_rng(0)
    sharp = 1 + 8 * np.asarray(drawn.instance_label)
    weight = rng.gamma(sharp, size=(members, *sharp.shape))
    positive = 1 / (1 + np.exp(-rng.normal(6 * np.asarray(drawn.label) - 3, 1.5, (members, count))))
    return report.Gallery(
        "Bags", drawn.pool, drawn.rows, drawn.mask, drawn.label, drawn.instance_label,
        attention=weight / weight.sum(axis=-1, keepdims=True),
        probability=np.stack([1 - positive, positive], axis=-1),
    )  # fmt: skip


def measure(browser: Browser, path: Path, rounds: int) -> list[float]:
    """Seconds to load, to draw (median and slowest), and to sort by a click (from the click until it is drawn)."""
    loaded, drawn, sorting = [], [], []
    for _ in range(rounds):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(path.as_uri())
        drawn.append(page.evaluate(UNTIL_DRAWN.format(start="0", action="")))
        loaded.append(page.evaluate(f"{LOADED} / 1000"))
        sorting.append(page.evaluate(UNTIL_DRAWN.format(start="performance.now()", action=SORT)))
        page.close()
    return [statistics.median(loaded), statistics.median(drawn), max(drawn), statistics.median(sorting)]


if __name__ == "__main__":
    cli.command(Config, main, __doc__)
