"""Writes a cohort of features as one file with a manifest, which is read without parsing; or checks one.

    python experiments/pack_bags.py --features DIR --table cohort.csv --out packed/
    python experiments/pack_bags.py --verify packed/

A packed folder is read wherever a folder of features is: `--features packed/`.
"""

import dataclasses
import time
from pathlib import Path

from mil_jax.datasets.pack import load_packed, pack, verify
from mil_jax.errors import InputError
from mil_jax.run.cli import command
from mil_jax.run.config import FilesConfig


@dataclasses.dataclass(frozen=True)
class Config:
    """What is packed, and where to."""

    files: FilesConfig = FilesConfig()
    out: Path | None = None
    """The folder to write; a new one."""
    verify: Path | None = None
    """A packed folder to check instead, by the hash of every bag."""


def main(config: Config) -> None:
    """Packs, or verifies."""
    started = time.perf_counter()
    if config.verify is not None:
        cohort, what = load_packed(config.verify), f"{config.verify} is what was written"
        verify(cohort)
    else:
        if config.files.features is None or config.out is None:
            raise InputError("features", config.files.features, "expected --features and --out, or --verify")
        cohort = config.files.load()
        what = f"{pack(cohort, config.out)}"
    size = int(cohort.sizes.sum()) * cohort.dtype.itemsize * int(cohort.shape[0])
    seconds = time.perf_counter() - started
    print(f"{what}: {len(cohort.bags)} bags, {cohort.sizes.sum()} instances, {size / 1e6:.0f} MB in {seconds:.1f} s, "
          f"{size / 1e6 / seconds:.0f} MB/s")  # fmt: skip


if __name__ == "__main__":
    command(Config, main, __doc__)
