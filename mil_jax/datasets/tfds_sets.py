"""All that touches TensorFlow Datasets (TFDS): a builder for IDX sets, and stock image sets.

Importing this module imports TFDS, so ``load`` imports it only when a set of TFDS is asked for. It
never imports TensorFlow; a stock set may, to prepare itself. TFDS prepares a set in a folder beside
the final one and renames it when all is written, so an interrupted preparation is never taken for a
complete one.
"""

import contextlib
import dataclasses
import io
import logging
import queue
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered
from tensorflow_datasets.core.download import checksums, resource
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError
from tensorflow_datasets.core.units import Size

from mil_jax.datasets import idx, idx_sets
from mil_jax.datasets.idx_sets import IdxSet
from mil_jax.datasets.records import Dataset, Instances, content_hash
from mil_jax.errors import InputError

PROBE_SECONDS = 5.0
"""How long a host may take to answer at all. TFDS alone would go on trying for minutes."""

READ_AT_ONCE = 4096
"""How many examples are decoded in one go."""


@dataclasses.dataclass(eq=False, kw_only=True)
class IdxConfig(tfds.core.BuilderConfig):
    """The choice of one IDX set: what TFDS calls the configuration of a builder."""

    idx_set: IdxSet


with registered.skip_registration():

    class MilJaxIdx(tfds.core.GeneratorBasedBuilder):
        """Prepares the images of four IDX files, in their order, without TensorFlow.

        Stock TFDS has builders of the same sets, which need it. This one has a name of its own, so
        that both can keep their prepared sets in one folder.
        """

        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [  # noqa: RUF012
            IdxConfig(name=idx_set.name, idx_set=idx_set) for idx_set in idx_sets.IDX_SETS
        ]

        @property
        def idx_set(self) -> IdxSet:
            """The set that this builder prepares."""
            assert isinstance(self.builder_config, IdxConfig)
            return self.builder_config.idx_set

        @property
        def url_infos(  # pyright: ignore[reportIncompatibleVariableOverride]
            self,
        ) -> dict[str, checksums.UrlInfo]:
            """What TFDS checks a file against, by the file's address."""
            return {
                self.idx_set.url(file.name): checksums.UrlInfo(
                    size=Size(file.size), checksum=file.sha256, filename=file.name
                )
                for file in self.idx_set.files
            }

        def _info(self) -> tfds.core.DatasetInfo:
            # A feature of type Image would need TensorFlow to write its PNG.
            image = tfds.features.Tensor(shape=self.idx_set.image_shape, dtype=np.uint8, encoding="zlib")
            label = tfds.features.ClassLabel(names=list(self.idx_set.class_names))
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{self.idx_set.title}: grey images and their labels.",
                homepage=self.idx_set.homepage,
                features=tfds.features.FeaturesDict({"image": image, "label": label}),
                supervised_keys=("image", "label"),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            # One after the other: when one fails, no other is still being written.
            paths = {name: dl_manager.download(self.idx_set.url(name)) for name in idx.FILES}
            return {
                "train": self._generate_examples(paths[idx.TRAIN_IMAGES], paths[idx.TRAIN_LABELS]),
                "test": self._generate_examples(paths[idx.TEST_IMAGES], paths[idx.TEST_LABELS]),
            }

        def _generate_examples(self, images: Any, labels: Any) -> Iterator[tuple[int, dict]]:
            class_count = len(self.idx_set.class_names)
            pool = idx.read_instances(Path(images), Path(labels), class_count)
            for row, (image, label) in enumerate(zip(pool.x, pool.label, strict=True)):
                yield row, {"image": image, "label": int(label)}


def load_idx_set(idx_set: IdxSet, data_dir: Path | None = None, manual_dir: Path | None = None) -> Dataset:
    """Reads an IDX set from TFDS' folder, after preparing it there if need be.

    Args:
        idx_set: which set.
        data_dir: where TFDS keeps prepared sets; None for its own default.
        manual_dir: a folder, only read, with the set's files; None to download them.

    Raises:
        InputError: a file is neither in ``manual_dir`` nor to be had from its host, or is not the
            one expected; ``data_dir`` cannot be written, or holds a damaged set.
    """
    builder = _idx_builder(idx_set, data_dir)
    if _is_prepared(builder):
        source = f"the set prepared before in {builder.data_dir}"
        if manual_dir is not None:
            source += f", without need of {manual_dir}"
    else:
        origin = _prepare_idx_set(builder, manual_dir)
        source = f"{origin}, prepared in {builder.data_dir}"
        builder = _idx_builder(idx_set, data_dir)
    return _read(builder, idx_set.name, idx_set.class_names, f"{idx_set.title} from {source}")


def load_stock_set(name: str, data_dir: Path | None = None, manual_dir: Path | None = None) -> Dataset:
    """Reads any set of TFDS that has images of one size, labels, and the splits train and test.

    Args:
        name: the name that TFDS knows, with a configuration after a slash if need be.
        data_dir: where TFDS keeps prepared sets; None for its own default.
        manual_dir: a folder, only read, with files that TFDS shall not download.

    Raises:
        InputError: TFDS does not know the name, the set has other features, splits or images, or it
            cannot be prepared here.
    """
    builder = _stock_builder(name, data_dir)
    class_names = _class_names(builder, name)
    source = f"the set prepared before in {builder.data_dir}"
    if not _is_prepared(builder):
        _prepare_stock_set(builder, name, manual_dir)
        source = f"its own source, prepared in {builder.data_dir}"
        builder = _stock_builder(name, data_dir)
    splits = sorted(builder.info.splits)
    if not {"train", "test"} <= set(splits):
        remedy = f"it has the splits {', '.join(splits)}, a set with train and test would do"
        raise InputError("dataset", f"tfds:{name}", remedy)
    return _read(builder, f"tfds:{name}", class_names, f"{name} of TFDS from {source}")


# Finding a set's builder


def _idx_builder(idx_set: IdxSet, data_dir: Path | None) -> MilJaxIdx:
    known = [config for config in MilJaxIdx.BUILDER_CONFIGS if config.idx_set == idx_set]
    config = known[0] if known else IdxConfig(name=idx_set.name, idx_set=idx_set)
    try:
        with _quiet():
            return MilJaxIdx(config=config, data_dir=_expanded(data_dir))
    except Exception as error:
        # Only a prepared set's description is read here, and a damaged one can raise anything.
        remedy = f"its {idx_set.name} cannot be read ({_reason(error)}): delete that set's folder"
        raise InputError("data_dir", str(data_dir), remedy) from error


def _stock_builder(name: str, data_dir: Path | None) -> tfds.core.DatasetBuilder:
    try:
        with _quiet():
            return tfds.builder(name, data_dir=_expanded(data_dir))
    except Exception as error:
        # Builders are found by importing them, and read what is on disk: anything can raise.
        remedy = _missing_package(error) or (
            f"TFDS cannot find or open it ({_reason(error)}): the name of a labelled image set"
            " in https://www.tensorflow.org/datasets/catalog would do"
        )
        raise InputError("dataset", f"tfds:{name}", remedy) from error


def _class_names(builder: tfds.core.DatasetBuilder, name: str) -> tuple[str, ...]:
    features: dict[str, Any] = dict(builder.info.features.items())  # pyright: ignore
    image, label = features.get("image"), features.get("label")
    images = (tfds.features.Image, tfds.features.Tensor)
    if not isinstance(image, images) or not isinstance(label, tfds.features.ClassLabel):
        remedy = f"it has the features {', '.join(features)}; image and a class label would do"
        raise InputError("dataset", f"tfds:{name}", remedy)
    return tuple(label.names or ())


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # TFDS' own question logs a warning whenever the answer is no.
    return (builder.data_path / "dataset_info.json").exists()


# Preparing


def _prepare_idx_set(builder: MilJaxIdx, manual_dir: Path | None) -> str:
    """Prepares the set and says where its files came from."""
    idx_set = builder.idx_set
    missing = idx_set.files
    if manual_dir is not None:
        manual_dir = manual_dir.expanduser()
        missing = idx_sets.files_missing_in(idx_set, manual_dir)
    if missing:
        names = ", ".join(file.name for file in missing)
        hint = f"get {names} from {idx_set.base_url} and name their folder with --manual-dir"
        _require_answer(idx_set.url(missing[0].name), idx_set.name, builder, manual_dir, hint)
    with _failures_as_input_errors(builder, idx_set.name):
        builder.data_dir_root.mkdir(parents=True, exist_ok=True)
        # Downloads are kept only until the set is prepared, and not at all when that fails.
        with tempfile.TemporaryDirectory(prefix="download_", dir=builder.data_dir_root) as folder:
            _download_and_prepare(builder, Path(folder), manual_dir)
    if manual_dir is None or missing == idx_set.files:
        return idx_set.base_url
    return f"{idx_set.base_url} and {manual_dir}" if missing else str(manual_dir)


def _prepare_stock_set(builder: tfds.core.DatasetBuilder, name: str, manual_dir: Path | None) -> None:
    # TFDS' own folder of downloads: these sets can be large, and the next attempt finds them there.
    downloads = Path(builder.data_dir_root) / "downloads"
    manual_dir = _expanded(manual_dir)
    url_infos = builder.url_infos or {}
    if url_infos and not _some_file_is_here(builder, downloads, manual_dir):
        hint = "prepare it on a machine with a network and copy that folder here, or give --manual-dir"
        _require_answer(next(iter(url_infos)), f"tfds:{name}", builder, manual_dir, hint)
    with _failures_as_input_errors(builder, f"tfds:{name}"):
        _download_and_prepare(builder, downloads, manual_dir)


def _download_and_prepare(builder: tfds.core.DatasetBuilder, downloads: Path, manual_dir: Path | None) -> None:
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    with _quiet():
        builder.download_and_prepare(download_dir=downloads, download_config=config, file_format="array_record")


def _some_file_is_here(builder: tfds.core.DatasetBuilder, downloads: Path, manual_dir: Path | None) -> bool:
    """Whether TFDS may do without the network, because it has files from elsewhere or before."""
    for url, info in (builder.url_infos or {}).items():
        file = resource.get_dl_fname(url, info.checksum)
        places = [downloads / file, downloads / builder.name / file]
        if manual_dir is not None and info.filename:
            places.append(manual_dir / info.filename)
        if any(place.exists() for place in places):
            return True
    return False


# Failing fast, and in one sentence


def _require_answer(
    url: str,
    dataset: str,
    builder: tfds.core.DatasetBuilder,
    manual_dir: Path | None,
    hint: str,
) -> None:
    """Raises an InputError that says what was looked for where, unless the url's host answers."""
    trouble = _trouble_with(url)
    if trouble is None:
        return
    files = "no --manual-dir was given" if manual_dir is None else f"{manual_dir} lacks files of it"
    remedy = (
        f"no prepared set is in {builder.data_dir}, {files}, and {urlsplit(url).netloc} cannot be"
        f" reached ({trouble}): {hint}"
    )
    raise InputError("dataset", dataset, remedy)


def _trouble_with(url: str) -> str | None:
    """Says why the host of a url does not answer within PROBE_SECONDS; None if it does."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            status = requests.head(url, timeout=PROBE_SECONDS, allow_redirects=True).status_code
            # Whether the file is there, the download itself will tell: some hosts answer no HEAD.
            answers.put(f"HTTP status {status}" if status >= 500 else None)
        except requests.RequestException as error:
            answers.put(type(error).__name__)

    # In a thread, because nothing else bounds the time that the look-up of a name takes.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return f"no answer within {PROBE_SECONDS:g} s"


@contextlib.contextmanager
def _failures_as_input_errors(builder: tfds.core.DatasetBuilder, dataset: str) -> Iterator[None]:
    """Turns what can go wrong while TFDS downloads and prepares a set into an InputError."""
    try:
        yield
    except InputError:
        raise
    except NonMatchingChecksumError as error:
        remedy = (
            "a downloaded file is cut short, damaged or not the one expected"
            f" ({_reason(error)}): try again, or give --manual-dir"
        )
        raise InputError("dataset", dataset, remedy) from error
    except (DownloadError, requests.RequestException) as error:
        remedy = f"the download failed ({_reason(error)}): try again, or give --manual-dir"
        raise InputError("dataset", dataset, remedy) from error
    except Exception as error:
        if _is_prepared(builder):  # another process was faster: the complete set is there
            return
        if isinstance(error, OSError):
            remedy = f"it cannot be written ({_reason(error)}): a folder with room would do"
            raise InputError("data_dir", str(builder.data_dir_root), remedy) from error
        remedy = _missing_package(error) or f"TFDS cannot prepare it ({_reason(error)})"
        raise InputError("dataset", dataset, remedy) from error


def _missing_package(error: BaseException) -> str | None:
    """Says what to install if the cause of an error is that a package is missing."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ModuleNotFoundError) and link.name:
            package = link.name.partition(".")[0]
            extra = "'mil_jax[tensorflow]'" if package == "tensorflow" else package
            return f"preparing it needs the package {package}: pip install {extra}"
        link = link.__cause__ or link.__context__
    return None


def _reason(error: BaseException) -> str:
    """The first line of the error at the root: TFDS puts long prefixes before it on its way."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the progress bars, notices and warnings that TFDS prints and logs."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _expanded(folder: Path | None) -> Path | None:
    return None if folder is None else folder.expanduser()


# Reading


def _read(builder: tfds.core.DatasetBuilder, name: str, class_names: tuple[str, ...], source: str) -> Dataset:
    train, test = _read_split(builder, name, "train"), _read_split(builder, name, "test")
    return Dataset(name, train, test, class_names, content_hash(train, test), source)


def _read_split(builder: tfds.core.DatasetBuilder, name: str, split: str) -> Instances:
    images, labels = [], []
    for example in _examples(builder, name, split):
        if images and example["image"].shape != images[0].shape:
            remedy = (
                f"it has images of different sizes, such as {images[0].shape} and"
                f" {example['image'].shape}: a set with images of one size would do"
            )
            raise InputError("dataset", name, remedy)
        images.append(example["image"])
        labels.append(example["label"])
    # TFDS marks what has no known label with -1.
    if not images or min(labels) < 0:
        remedy = f"its split {split} has no images or some without label: another set would do"
        raise InputError("dataset", name, remedy)
    x = np.stack(images)
    if x.ndim == 4 and x.shape[-1] == 1:
        x = x[..., 0]
    if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and x.shape[-1] == 3)):
        remedy = f"its images are {x.dtype}{list(x.shape[1:])}, uint8 in grey or RGB would do"
        raise InputError("dataset", name, remedy)
    return Instances(x=x, label=np.asarray(labels, np.int32))


def _examples(builder: tfds.core.DatasetBuilder, name: str, split: str) -> Iterator[dict]:
    """Yields the examples of a prepared split, all of them or an InputError."""
    try:
        with _quiet():
            source = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
        for start in range(0, len(source), READ_AT_ONCE):
            rows = range(start, min(start + READ_AT_ONCE, len(source)))
            with _quiet():
                examples = source.__getitems__(rows)
            yield from examples
    except NotImplementedError:
        remedy = (
            f"{builder.data_dir} holds {name} in a format that only TensorFlow reads: another"
            " folder, where it is prepared anew, would do"
        )
        raise InputError("data_dir", str(builder.data_dir_root), remedy) from None
    except Exception as error:
        # Readers of records, protocol buffers and images have no common error for damaged data.
        remedy = _missing_package(error) or (
            f"{name} in {builder.data_dir} cannot be read ({_reason(error)}): delete that"
            " folder and it will be prepared anew"
        )
        raise InputError("data_dir", str(builder.data_dir_root), remedy) from error
