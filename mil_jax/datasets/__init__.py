"""Where data comes from: loaders return one of two records, and nothing else reads data.

Pools of instances to draw bags from: ``load`` knows the sample of MNIST that is part of the package, three sets of the
MNIST family, and any labelled image set of TensorFlow Datasets (TFDS). Bags as the world has them: ``load_classic``
(MUSK, Elephant, Fox, Tiger), ``load_colon`` (histology), ``read_table`` (CSV of your own) and ``load_cohort`` (files of
features that an encoder left, with a table of labels).
"""

from pathlib import Path

from mil_jax.datasets import idx
from mil_jax.datasets.classic import CLASSIC_NAMES, load_classic, load_table_set
from mil_jax.datasets.cohort import Cohort, Columns, load_cohort
from mil_jax.datasets.colon import load_colon
from mil_jax.datasets.files import as_path
from mil_jax.datasets.idx_sets import DIGITS, IDX_SETS
from mil_jax.datasets.records import BagSet, Dataset, Instances, content_hash
from mil_jax.datasets.tables import read_table
from mil_jax.errors import InputError

__all__ = [
    "CLASSIC_NAMES", "SAMPLE", "BagSet", "Cohort", "Columns", "Dataset", "Instances", "check_name", "content_hash",
    "is_known", "load", "load_classic", "load_cohort", "load_colon", "load_table_set", "read_table",
]  # fmt: skip

SAMPLE = "mnist-sample"
SAMPLE_DIR = Path(__file__).parent / "mnist_sample"
STOCK_PREFIX = "tfds:"
NAMES = (SAMPLE, *(idx_set.name for idx_set in IDX_SETS))


def is_known(name: object) -> bool:
    """Whether `load` has a set of the name, or asks TFDS for it."""
    return isinstance(name, str) and (name in NAMES or name.startswith(STOCK_PREFIX))


def check_name(argument: str, name: object) -> None:
    """Refuses, by an InputError, what `load` does not know."""
    if not is_known(name):
        raise InputError(argument, name, f"expected {', '.join(NAMES)} or {STOCK_PREFIX}NAME")


def load(name: str, data_dir: str | Path | None = None, manual_dir: str | Path | None = None) -> Dataset:
    """Loads a data set by name.

    Args:
        name: ``mnist-sample`` (10,000 training and 4,000 test digits inside the package), ``mnist``,
            ``fashion_mnist``, ``kmnist``, or ``tfds:NAME`` for any labelled image set of TFDS.
        data_dir: where TFDS keeps prepared sets; None for its own default. The sample needs none.
        manual_dir: a folder, only read, with files that shall not be downloaded.

    Raises:
        InputError: the name is unknown, or the data cannot be had or is damaged; it says why.
    """
    check_name("dataset", name)
    data_dir = None if data_dir is None else as_path("data_dir", data_dir)
    manual_dir = None if manual_dir is None else as_path("manual_dir", manual_dir)
    if name == SAMPLE:
        return _load_sample(manual_dir)
    from mil_jax.datasets import tfds_sets  # it imports TFDS, a second that the sample does without

    if name in NAMES:
        return tfds_sets.load_idx_set(IDX_SETS[NAMES.index(name) - 1], data_dir, manual_dir)
    return tfds_sets.load_stock_set(name.removeprefix(STOCK_PREFIX), data_dir, manual_dir)


def _load_sample(manual_dir: Path | None) -> Dataset:
    if manual_dir is not None:
        raise InputError("manual_dir", str(manual_dir), f"expected no folder: {SAMPLE} is part of the package")
    train = idx.read_instances(SAMPLE_DIR / idx.TRAIN_IMAGES, SAMPLE_DIR / idx.TRAIN_LABELS, len(DIGITS))
    test = idx.read_instances(SAMPLE_DIR / idx.TEST_IMAGES, SAMPLE_DIR / idx.TEST_LABELS, len(DIGITS))
    source = "a sample of MNIST that is part of the package"
    return Dataset(SAMPLE, train, test, DIGITS, content_hash(train, test), source)
