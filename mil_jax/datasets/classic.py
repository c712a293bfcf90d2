"""The five classic benchmarks of multiple instance learning, from files that the reader of a paper finds.

MUSK1 and MUSK2 (Dietterich et al. 1997): which molecules smell of musk? A bag is a molecule, an instance a shape that
it can take. Elephant, Fox, Tiger (Andrews, Tsochantaridis and Hofmann 2002): is the animal in the picture? A bag is
a picture, an instance a segment of it. Features are not scaled, and many are constant.
"""

from dataclasses import dataclass
from pathlib import Path

from mil_jax.datasets.records import BagSet
from mil_jax.datasets.tables import read_table
from mil_jax.errors import InputError

UCI = "the UCI machine learning repository, https://archive.ics.uci.edu (Musk, CC BY 4.0)"
ANDREWS = "Andrews, Tsochantaridis and Hofmann 2002 (MATLAB files, free for research)"

FOLDERS = (".", "classic", "classic/original")
"""Where below a data directory the files are looked for, in this order."""


@dataclass(frozen=True)
class ClassicSet:
    """A benchmark: the name that ``load_classic`` knows, its public original's file name, and who has it."""

    name: str
    original: str
    origin: str

    @property
    def files(self) -> tuple[str, str]:
        """The file names that will do: plain CSV before the original."""
        return f"{self.name}.csv", self.original


CLASSIC_SETS = (
    ClassicSet("musk1", "clean1.data", UCI),
    ClassicSet("musk2", "clean2.data", UCI),
    ClassicSet("elephant", "ELEPHANT.mat", ANDREWS),
    ClassicSet("fox", "FOX.mat", ANDREWS),
    ClassicSet("tiger", "TIGER.mat", ANDREWS),
)
CLASSIC_NAMES = tuple(known.name for known in CLASSIC_SETS)


def load_classic(name: str, data_dir: Path) -> BagSet:
    """Loads one of the five benchmarks from a folder; nothing is downloaded.

    Args:
        name: musk1, musk2, elephant, fox or tiger.
        data_dir: a folder with NAME.csv (as ``tables.read_csv`` has it) or the public original, in itself, in its
            ``classic`` or in its ``classic/original``.

    Raises:
        InputError: the name is unknown, no such file is there, or there is something wrong with it.
    """
    known = [one for one in CLASSIC_SETS if one.name == name]
    if not known:
        raise InputError("dataset", name, f"{', '.join(CLASSIC_NAMES)} would do")
    return read_table(_find(known[0], data_dir.expanduser()), name)


def _find(classic_set: ClassicSet, data_dir: Path) -> Path:
    for folder in FOLDERS:
        for file in classic_set.files:
            path = data_dir / folder / file
            if path.is_file():
                return path
    places = ", ".join(str(data_dir / folder) for folder in FOLDERS)
    remedy = (
        f"none of {places} holds {classic_set.name}: {' or '.join(classic_set.files)} would do;"
        f" the original is from {classic_set.origin}"
    )
    raise InputError("data_dir", str(data_dir), remedy)
