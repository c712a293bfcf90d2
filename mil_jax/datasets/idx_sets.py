"""The public sets that come as four IDX files: where they are served and how to know them again."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mil_jax.datasets import idx
from mil_jax.datasets.files import read_bytes, wrong_file
from mil_jax.errors import InputError


@dataclass(frozen=True)
class IdxFile:
    """One served file: its name, its size in bytes and its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class IdxSet:
    """A set of images in four IDX files."""

    name: str
    """The name that ``load`` knows."""
    title: str
    """Its name for people."""
    base_url: str
    """The address under which its files are served, with the final slash."""
    files: tuple[IdxFile, ...]
    """The four files."""
    class_names: tuple[str, ...]
    """A name for each class, in the order of the labels."""
    image_shape: tuple[int, int] = (28, 28)
    """Height and width of every image, in pixels."""


def _files(*sizes_and_hashes: tuple[int, str]) -> tuple[IdxFile, ...]:
    return tuple(IdxFile(name, *about) for name, about in zip(idx.FILES, sizes_and_hashes, strict=True))


DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SOUNDS = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

IDX_SETS = (
    # LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist/, CC BY-SA 3.0.
    IdxSet("mnist", "MNIST", "https://storage.googleapis.com/cvdf-datasets/mnist/", _files(
        (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ), DIGITS),
    # Xiao, Rasul and Vollgraf 2017, https://github.com/zalandoresearch/fashion-mnist, MIT licence.
    IdxSet("fashion_mnist", "Fashion-MNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", _files(
        (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ), CLOTHES),
    # Clanuwat et al. 2018, http://codh.rois.ac.jp/kmnist, CC BY-SA 4.0. A class is a character, named by its sound.
    IdxSet("kmnist", "Kuzushiji-MNIST", "http://codh.rois.ac.jp/kmnist/dataset/kmnist/", _files(
        (18_165_135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
        (29_497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
        (3_041_136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
        (5_120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
    ), SOUNDS),
)  # fmt: skip


def files_missing_in(idx_set: IdxSet, folder: Path) -> tuple[IdxFile, ...]:
    """Returns the files of the set that the folder lacks; an InputError for one that is not as it is served."""
    if not folder.is_dir():
        expected = f"expected a folder with {', '.join(idx.FILES)}, got no such folder"
        raise InputError("manual_dir", str(folder), expected)
    there = [file for file in idx_set.files if (folder / file.name).exists()]
    for file in there:
        served = f"the file of {idx_set.name} that {idx_set.base_url}{file.name} serves"
        content = read_bytes(folder / file.name, served)
        sha256 = hashlib.sha256(content).hexdigest()
        if (len(content), sha256) != (file.size, file.sha256):
            expected = f"{served}, {file.size} bytes of SHA-256 {file.sha256}"
            raise wrong_file(folder / file.name, expected, f"{len(content)} bytes of SHA-256 {sha256}")
    return tuple(file for file in idx_set.files if file not in there)
