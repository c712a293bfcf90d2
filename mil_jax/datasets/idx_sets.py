"""The public sets that come as four IDX files: where they are served and how to know them again."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from mil_jax.datasets import idx
from mil_jax.errors import InputError


@dataclass(frozen=True)
class IdxFile:
    """One served file: its name, its size in bytes and its SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class IdxSet:
    """A set of images in four IDX files.

    Attributes:
        name: the name that ``load`` knows.
        title: its name for people.
        base_url: the address under which its files are served, with the final slash.
        files: the four files.
        class_names: a name for each class, in the order of the labels.
        homepage: where its authors describe it.
        image_shape: height and width of every image, in pixels.
    """

    name: str
    title: str
    base_url: str
    files: tuple[IdxFile, ...]
    class_names: tuple[str, ...]
    homepage: str
    image_shape: tuple[int, int] = (28, 28)

    def url(self, file_name: str) -> str:
        """Returns the address of one of the files."""
        return self.base_url + file_name


def _files(*sizes_and_hashes: tuple[int, str]) -> tuple[IdxFile, ...]:
    named = zip(idx.FILES, sizes_and_hashes, strict=True)
    return tuple(IdxFile(name, size, sha256) for name, (size, sha256) in named)


DIGITS = tuple("0123456789")

# MNIST: LeCun, Cortes and Burges, CC BY-SA 3.0.
MNIST = IdxSet(
    name="mnist",
    title="MNIST",
    base_url="https://storage.googleapis.com/cvdf-datasets/mnist/",
    files=_files(
        (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    class_names=DIGITS,
    homepage="http://yann.lecun.com/exdb/mnist/",
)

# Fashion-MNIST: Xiao, Rasul and Vollgraf 2017, MIT licence.
FASHION_MNIST = IdxSet(
    name="fashion_mnist",
    title="Fashion-MNIST",
    base_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    files=_files(
        (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    homepage="https://github.com/zalandoresearch/fashion-mnist",
)

# Kuzushiji-MNIST: Clanuwat et al. 2018, CC BY-SA 4.0. A class is a character, named by its sound.
KMNIST = IdxSet(
    name="kmnist",
    title="Kuzushiji-MNIST",
    base_url="http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
    files=_files(
        (18_165_135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
        (29_497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
        (3_041_136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
        (5_120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
    ),
    class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    homepage="http://codh.rois.ac.jp/kmnist/index.html.en",
)

IDX_SETS = (MNIST, FASHION_MNIST, KMNIST)


def files_missing_in(idx_set: IdxSet, folder: Path) -> tuple[IdxFile, ...]:
    """Returns the files of the set that the folder lacks, after checking those that it has.

    Raises:
        InputError: there is no such folder, or a file in it is not the file of this set.
    """
    if not folder.is_dir():
        remedy = f"there is no such folder; one that holds {', '.join(idx.FILES)} would do"
        raise InputError("manual_dir", str(folder), remedy)
    missing = []
    for file in idx_set.files:
        path = folder / file.name
        if path.exists():
            check_file(idx_set, file, path)
        else:
            missing.append(file)
    return tuple(missing)


def check_file(idx_set: IdxSet, file: IdxFile, path: Path) -> None:
    """Checks that a file has the size and the SHA-256 of the served one.

    Raises:
        InputError: it has not, or it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        remedy = f"it cannot be read ({error.strerror}): a readable copy of the file would do"
        raise InputError("manual_dir", str(path), remedy) from None
    served = f"the {file.name} of {idx_set.name} that {idx_set.url(file.name)} serves would do"
    if len(content) != file.size:
        remedy = f"it has {len(content)} bytes instead of {file.size}: {served}"
        raise InputError("manual_dir", str(path), remedy)
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        remedy = f"its SHA-256 is {found} instead of {file.sha256}: {served}"
        raise InputError("manual_dir", str(path), remedy)
