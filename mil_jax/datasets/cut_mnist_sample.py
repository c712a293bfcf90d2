"""Cuts the sample of MNIST that is part of the package from the four original files.

    python -m mil_jax.datasets.cut_mnist_sample --manual-dir DIR --out DIR

The first folder holds the original files, the sample's four files are written to the second. An
image is chosen by the hash of its place in the original file, so the choice is the same on every
machine and with every version of NumPy.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from mil_jax.datasets import idx
from mil_jax.datasets.idx_sets import MNIST, check_file
from mil_jax.datasets.records import Instances

SEED = 0
TRAIN_COUNT = 10_000
TEST_COUNT = 4_000


def shares(label: Int32[np.ndarray, " N"], count: int) -> Int[np.ndarray, " C"]:
    """Returns how many of ``count`` instances each class gets, by largest remainder.

    Class c is due ``count * N_c / N``. It gets the whole part; what is left goes, one each, to the
    classes with the largest fractions, the lower class first among equals.
    """
    due = count * np.bincount(label)
    whole, remainder = due // len(label), due % len(label)
    left = count - whole.sum()
    whole[np.argsort(-remainder, kind="stable")[:left]] += 1
    return whole


def choose(label: Int32[np.ndarray, " N"], count: int, split: str) -> Int[np.ndarray, " count"]:
    """Returns the rows of the sample, in increasing order: each class in its share.

    Within a class the rows with the smallest SHA-256 of "SEED split row" are taken.
    """
    ranked = sorted(range(len(label)), key=lambda row: _hash(split, row))
    ranked_label = label[ranked]
    rows = [np.asarray(ranked)[ranked_label == digit][:share] for digit, share in enumerate(shares(label, count))]
    return np.sort(np.concatenate(rows))


def cut(manual_dir: Path, out: Path) -> None:
    """Writes the sample's four files to ``out``.

    Raises:
        InputError: ``manual_dir`` lacks an original file, or one in it is not the original.
    """
    for file in MNIST.files:
        check_file(MNIST, file, manual_dir / file.name)
    out.mkdir(parents=True, exist_ok=True)
    parts = (
        ("train", TRAIN_COUNT, idx.TRAIN_IMAGES, idx.TRAIN_LABELS),
        ("test", TEST_COUNT, idx.TEST_IMAGES, idx.TEST_LABELS),
    )
    for split, count, images, labels in parts:
        pool = idx.read_instances(manual_dir / images, manual_dir / labels, len(MNIST.class_names))
        rows = choose(pool.label, count, split)
        chosen = Instances(x=pool.x[rows], label=pool.label[rows])
        idx.write_idx(out / images, chosen.x)
        idx.write_idx(out / labels, chosen.label.astype(np.uint8))


def _hash(split: str, row: int) -> bytes:
    return hashlib.sha256(f"{SEED} {split} {row}".encode()).digest()


def main() -> None:
    """Runs ``cut`` from the command line."""
    parser = argparse.ArgumentParser(description="Cut the package's sample of MNIST.")
    parser.add_argument("--manual-dir", type=Path, required=True, help="folder of the originals")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the sample to")
    options = parser.parse_args()
    cut(options.manual_dir, options.out)


if __name__ == "__main__":
    main()
