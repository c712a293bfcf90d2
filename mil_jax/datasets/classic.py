"""The five classic benchmarks of multiple instance learning, from files that the reader of a paper finds.

MUSK1 and MUSK2 (Dietterich et al. 1997): which molecules smell of musk? A bag is a molecule, an instance a shape that
it can take. Elephant, Fox, Tiger (Andrews, Tsochantaridis and Hofmann 2002): is the animal in the picture? A bag is
a picture, an instance a segment of it. Features are not scaled, and many are constant.

A name of these stands for published bags: a file that holds others is refused, and nothing else has that name.
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

from mil_jax.datasets.files import as_path, is_file, wrong_file
from mil_jax.datasets.records import BagSet
from mil_jax.datasets.tables import read_table
from mil_jax.errors import InputError

UCI = "the UCI machine learning repository, https://archive.ics.uci.edu (Musk, CC BY 4.0)"
ANDREWS = "Andrews, Tsochantaridis and Hofmann 2002 (MATLAB files, free for research)"

FOLDERS = (".", "classic", "classic/original")
"""Where below a data directory the files are looked for, in this order."""


class ClassicSet(NamedTuple):
    """A benchmark: its name, public original and who has that, what the labels 0 and 1 say, and how to know it again.

    ``counts`` are positive bags, negative bags, instances and features; ``sha256`` is the order-free hash of its bags.
    """

    name: str
    original: str
    origin: str
    class_names: tuple[str, str]
    counts: tuple[int, ...]
    sha256: str


CLASSIC_SETS = (
    ClassicSet("musk1", "clean1.data", UCI, ("non-musk", "musk"), (47, 45, 476, 166),
               "6e21d81c11823005127e5a2a667878bc4347a9f610e4d4360e50ea314b7bd859"),
    ClassicSet("musk2", "clean2.data", UCI, ("non-musk", "musk"), (39, 63, 6598, 166),
               "215325257ced42fb87b4dec5071dc3fc2bb09a56cdbbbc0c615e9d1bb69301c7"),
    ClassicSet("elephant", "ELEPHANT.mat", ANDREWS, ("no elephant", "elephant"), (100, 100, 1391, 230),
               "63c3e1b6e36cb80c8318463a041692bbeeb89cee09ab1fbea6d3129fce4b5bac"),
    ClassicSet("fox", "FOX.mat", ANDREWS, ("no fox", "fox"), (100, 100, 1320, 230),
               "36a500adaf978f60cbdab81a84b07f589d440cb284d1b593c1b3cf2a340c2129"),
    ClassicSet("tiger", "TIGER.mat", ANDREWS, ("no tiger", "tiger"), (100, 100, 1220, 230),
               "44bf3da4032999d352f58f9148bb6c0f91ad24ddb1350be10ca46161d5a1b4cb"),
)  # fmt: skip
CLASSIC_NAMES = tuple(known.name for known in CLASSIC_SETS)


def load_table_set(name: str, data_dir: str | Path) -> BagSet:
    """Loads a benchmark of ``CLASSIC_NAMES``, verified, or else the table ``NAME.csv``; an InputError without it."""
    if name in CLASSIC_NAMES:
        return load_classic(name, data_dir)
    folder = as_path("data_dir", data_dir)
    if not isinstance(name, str) or Path(name).name != name or not is_file(folder / f"{name}.csv"):
        expected = f"expected {', '.join(CLASSIC_NAMES)}, or NAME of a table NAME.csv in the folder {folder}"
        raise InputError("dataset", name, expected)
    return read_table(folder / f"{name}.csv", name)


def load_classic(name: str, data_dir: str | Path) -> BagSet:
    """Loads one of the five benchmarks from a folder, and makes sure that it is it; nothing is downloaded.

    Args:
        name: musk1, musk2, elephant, fox or tiger.
        data_dir: a folder with NAME.csv (as ``read_table`` has it) or the public original, in itself, in its
            ``classic`` or in its ``classic/original``.

    Raises:
        InputError: the name is unknown, no such file is there, there is something wrong with it, or it holds other
            bags than the published ones.
    """
    classic_set = next((known for known in CLASSIC_SETS if known.name == name), None)
    if classic_set is None:
        raise InputError("dataset", name, f"expected one of {', '.join(CLASSIC_NAMES)}")
    path = _find(classic_set, as_path("data_dir", data_dir))
    table = read_table(path, name)
    _verify(classic_set, table, path)
    return dataclasses.replace(table, class_names=classic_set.class_names)


def _fingerprint(table: BagSet) -> str:
    """Returns the SHA-256 of labels, sizes and float32 features, whatever the order of bags and of instances in a bag.

    Copies of one set in circulation differ in that order.
    """
    bags, end = [], 0
    for size, label in zip(table.sizes.tolist(), table.label.tolist(), strict=True):
        rows = table.x[end : end + size].astype("<f4") + 0  # no -0
        end += size
        bags.append(hashlib.sha256(b"".join([b"%d " % label, *sorted(row.tobytes() for row in rows)])).digest())
    return hashlib.sha256(b"".join(sorted(bags))).hexdigest()


def _find(classic_set: ClassicSet, data_dir: Path) -> Path:
    names = (f"{classic_set.name}.csv", classic_set.original)
    for path in (data_dir / folder / name for folder in FOLDERS for name in names):
        if is_file(path):
            return path
    expected = (
        f"expected a folder with {' or '.join(names)}, in itself or in {' or '.join(FOLDERS[1:])}; the original is"
        f" from {classic_set.origin}"
    )
    raise InputError("data_dir", str(data_dir), expected)


def _verify(classic_set: ClassicSet, table: BagSet, path: Path) -> None:
    sha256, positive = _fingerprint(table), int((table.label == 1).sum())
    counts = (positive, len(table.label) - positive, *table.x.shape)
    if sha256 != classic_set.sha256:
        words = "{} positive and {} negative bags of {} instances with {} features"
        expected, got = words.format(*classic_set.counts), words.format(*counts)
        if expected == got:
            expected, got = f"bags of SHA-256 {classic_set.sha256}", f"as many of {sha256}"
        hint = "another table is read by read_table(path), under its own name"
        raise wrong_file(path, f"{classic_set.name} as published, {expected}", f"{got}; {hint}")
