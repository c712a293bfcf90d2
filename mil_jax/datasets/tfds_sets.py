"""Sets that TensorFlow Datasets (TFDS) prepares and keeps: the IDX sets, and any labelled image set that it knows.

Importing this module imports TFDS, so ``load`` imports it only when a set of TFDS is asked for. It never imports
TensorFlow; a stock set may, to prepare itself. TFDS prepares a set in a folder beside the final one and renames it
when all is written, so an interrupted preparation is never taken for a complete one.
"""

import contextlib
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
from tensorflow_datasets.core.download import resource
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from mil_jax.datasets import idx_sets
from mil_jax.datasets.idx_sets import IdxSet
from mil_jax.datasets.records import Dataset, Instances, content_hash
from mil_jax.datasets.tfds_builder import IdxConfig, MilJaxIdx
from mil_jax.errors import InputError

PROBE_SECONDS = 5.0
"""How long a host may take to answer at all. TFDS alone would go on trying for minutes."""


def load_idx_set(idx_set: IdxSet, data_dir: Path | None = None, manual_dir: Path | None = None) -> Dataset:
    """Reads an IDX set from TFDS' folder, after preparing it there if need be; arguments and errors as of ``load``."""
    builder = _idx_builder(idx_set, data_dir)
    if _is_prepared(builder):
        unread = "" if manual_dir is None else f", without need of {manual_dir}"
        source = f"the set prepared before in {builder.data_dir}{unread}"
    else:
        source = f"{_prepare_idx_set(builder, manual_dir)}, prepared in {builder.data_dir}"
        builder = _idx_builder(idx_set, data_dir)
    return _read(builder, idx_set.name, idx_set.class_names, f"{idx_set.title} from {source}")


def load_stock_set(name: str, data_dir: Path | None = None, manual_dir: Path | None = None) -> Dataset:
    """Reads a set of TFDS that has images of one size, labels, and the splits train and test, likewise."""
    builder = _stock_builder(name, data_dir)
    class_names = _class_names(builder, name)
    source = f"the set prepared before in {builder.data_dir}"
    if not _is_prepared(builder):
        _prepare_stock_set(builder, f"tfds:{name}", manual_dir)
        source = f"its own source, prepared in {builder.data_dir}"
        builder = _stock_builder(name, data_dir)
    splits = sorted(builder.info.splits)
    if not {"train", "test"} <= set(splits):
        raise InputError("dataset", f"tfds:{name}", f"expected the splits train and test, got {', '.join(splits)}")
    return _read(builder, f"tfds:{name}", class_names, f"{name} of TFDS from {source}")


# Finding a set's builder


def _idx_builder(idx_set: IdxSet, data_dir: Path | None) -> MilJaxIdx:
    # Only a prepared set's description is read here.
    with _only_input_errors("data_dir", str(data_dir), f"a sound {idx_set.name}, got one to delete"):
        return MilJaxIdx(config=IdxConfig(name=idx_set.name, idx_set=idx_set), data_dir=data_dir)


def _stock_builder(name: str, data_dir: Path | None) -> tfds.core.DatasetBuilder:
    # Builders are found by importing them, and read what is on disk.
    expected = "a labelled image set of https://www.tensorflow.org/datasets/catalog, which TFDS can find and open"
    with _only_input_errors("dataset", f"tfds:{name}", expected):
        return tfds.builder(name, data_dir=data_dir)


def _class_names(builder: tfds.core.DatasetBuilder, name: str) -> tuple[str, ...]:
    features: dict[str, Any] = dict(builder.info.features.items())  # pyright: ignore
    image, label = features.get("image"), features.get("label")
    images = (tfds.features.Image, tfds.features.Tensor)
    if not isinstance(image, images) or not isinstance(label, tfds.features.ClassLabel):
        expected = f"expected an image and a class label, got the features {', '.join(features)}"
        raise InputError("dataset", f"tfds:{name}", expected)
    return tuple(label.names or ())


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    # TFDS' own question logs a warning whenever the answer is no.
    return (builder.data_path / "dataset_info.json").exists()


# Preparing


def _prepare_idx_set(builder: MilJaxIdx, manual_dir: Path | None) -> str:
    """Prepares the set and says where its files came from."""
    idx_set = builder.idx_set
    missing = idx_set.files if manual_dir is None else idx_sets.files_missing_in(idx_set, manual_dir)
    if missing:
        names = ", ".join(file.name for file in missing)
        hint = f"get {names} from {idx_set.base_url} and name their folder with --manual-dir"
        _require_answer(idx_set.base_url + missing[0].name, idx_set.name, builder, manual_dir, hint)
    _prepare(builder, idx_set.name, None, manual_dir)
    return " and ".join([idx_set.base_url] * bool(missing) + [str(manual_dir)] * (missing != idx_set.files))


def _prepare_stock_set(builder: tfds.core.DatasetBuilder, name: str, manual_dir: Path | None) -> None:
    # TFDS' own folder of downloads: these sets can be large, and the next attempt finds them there.
    downloads = Path(builder.data_dir_root) / "downloads"
    url_infos = builder.url_infos or {}
    if url_infos and not _some_file_is_here(builder, downloads, manual_dir):
        hint = "prepare it on a machine with a network and copy that folder here, or give --manual-dir"
        _require_answer(next(iter(url_infos)), name, builder, manual_dir, hint)
    _prepare(builder, name, downloads, manual_dir)


def _prepare(builder: tfds.core.DatasetBuilder, dataset: str, downloads: Path | None, manual_dir: Path | None) -> None:
    """Lets TFDS prepare a set; without a folder for downloads, they are kept only until that is done, or has failed."""
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    argument, value = "dataset", dataset
    try:
        with contextlib.ExitStack() as stack:
            if downloads is None:
                builder.data_dir_root.mkdir(parents=True, exist_ok=True)
                folder = tempfile.TemporaryDirectory(prefix="download_", dir=builder.data_dir_root)
                downloads = Path(stack.enter_context(folder))
            stack.enter_context(_quiet())
            builder.download_and_prepare(download_dir=downloads, download_config=config, file_format="array_record")
        return
    except InputError:
        raise
    except (NonMatchingChecksumError, DownloadError, requests.RequestException) as error:
        cause, expected = error, f"expected a sound download ({_reason(error)}): try again, or give --manual-dir"
    except Exception as error:
        if _is_prepared(builder):  # another process was faster: the complete set is there
            return
        cause = error
        expected = _missing_package(error) or f"expected a set that TFDS can prepare, got {_reason(error)}"
        if isinstance(error, OSError):
            argument, value = "data_dir", str(builder.data_dir_root)
            expected = f"expected a folder with room, got one that cannot be written ({_reason(error)})"
    raise InputError(argument, value, expected) from cause


def _some_file_is_here(builder: tfds.core.DatasetBuilder, downloads: Path, manual_dir: Path | None) -> bool:
    """Whether TFDS may do without the network, because it has files from elsewhere or before."""
    places = []
    for url, info in (builder.url_infos or {}).items():
        file = resource.get_dl_fname(url, info.checksum)
        places += [downloads / file, downloads / builder.name / file]
        places += [manual_dir / info.filename] if manual_dir is not None and info.filename else []
    return any(place.exists() for place in places)


# Failing fast, and in one sentence


def _require_answer(
    url: str, dataset: str, builder: tfds.core.DatasetBuilder, manual_dir: Path | None, hint: str
) -> None:
    """Raises an InputError that says what was looked for where, unless the url's host answers."""
    trouble = _trouble_with(url)
    if trouble is not None:
        files = "no --manual-dir was given" if manual_dir is None else f"{manual_dir} lacks files of it"
        expected = (
            f"expected a prepared set in {builder.data_dir}, files or a network; {files}, and {urlsplit(url).netloc}"
            f" cannot be reached ({trouble}): {hint}"
        )
        raise InputError("dataset", dataset, expected)


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
def _only_input_errors(argument: str, value: str, expected: str) -> Iterator[None]:
    """TFDS is quiet, and whatever goes wrong in it, which can be anything, is an InputError."""
    try:
        with _quiet():
            yield
    except InputError:
        raise
    except Exception as error:
        missing = _missing_package(error)
        raise InputError(argument, value, missing or f"expected {expected} ({_reason(error)})") from error


def _missing_package(error: BaseException) -> str | None:
    """Says what to install if the cause of an error is that a package is missing."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ModuleNotFoundError) and link.name:
            package = link.name.partition(".")[0]
            extra = "'mil_jax[tensorflow]'" if package == "tensorflow" else package
            return f"expected the package {package}, which preparing it needs: pip install {extra}"
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


# Reading


def _read(builder: tfds.core.DatasetBuilder, name: str, class_names: tuple[str, ...], source: str) -> Dataset:
    train, test = _read_split(builder, name, "train"), _read_split(builder, name, "test")
    return Dataset(name, train, test, class_names, content_hash(train, test), source)


def _read_split(builder: tfds.core.DatasetBuilder, name: str, split: str) -> Instances:
    examples = _examples(builder, name, split)
    # TFDS marks what has no known label with -1.
    if not examples or min(example["label"] for example in examples) < 0:
        got = "some without label" if examples else "none"
        raise InputError("dataset", name, f"expected labelled images in its split {split}, got {got}")
    shapes = sorted({example["image"].shape for example in examples})
    if len(shapes) > 1:
        raise InputError("dataset", name, f"expected images of one size, got sizes such as {shapes[0]} and {shapes[1]}")
    x = np.stack([example["image"] for example in examples])
    if x.ndim == 4 and x.shape[-1] == 1:
        x = x[..., 0]
    if x.dtype != np.uint8 or not (x.ndim == 3 or (x.ndim == 4 and x.shape[-1] == 3)):
        raise InputError("dataset", name, f"expected uint8 images in grey or RGB, got {x.dtype}{list(x.shape[1:])}")
    return Instances(x=x, label=np.array([example["label"] for example in examples], np.int32))


def _examples(builder: tfds.core.DatasetBuilder, name: str, split: str) -> list[dict[str, Any]]:
    """All examples of a prepared split, or an InputError."""
    expected = f"a sound {name} in {builder.data_dir}; delete that folder and it will be prepared anew"
    with _only_input_errors("data_dir", str(builder.data_dir_root), expected):
        try:
            source = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
        except NotImplementedError:
            expected = f"expected {name} in another format than {builder.data_dir} has, which only TensorFlow reads"
            raise InputError("data_dir", str(builder.data_dir_root), f"{expected}: give another folder") from None
        return source.__getitems__(range(len(source)))
