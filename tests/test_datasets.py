"""Where instances come from: the IDX format, the sample, sets through TFDS, and every bad input."""

import functools
import gzip
import hashlib
import http.server
import io
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from conftest import assert_parts, message_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core.units import Size

from mil_jax import datasets
from mil_jax.datasets import idx, tfds_builder, tfds_sets
from mil_jax.datasets.idx_sets import IdxFile, IdxSet
from mil_jax.datasets.tfds_sets import load_idx_set

SHARED_MNIST = Path(__file__).parents[1].parent / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not SHARED_MNIST.is_dir(), reason="the files of MNIST are absent")

MNIST_TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
MNIST_HASH = "212193ceac1fe2216e4f17b722bd511640924223725a7a2d8c7ea5f3e87ae31d"
SAMPLE_HASH = "a3116e97f0294d652395483b2e6a4f036467b5a9cdf2047949db7be9e33bad65"


SPLITS = {"train": (idx.TRAIN_IMAGES, idx.TRAIN_LABELS), "test": (idx.TEST_IMAGES, idx.TEST_LABELS)}


def write_idx(path: Path, values: np.ndarray) -> None:
    """An array of bytes as a gzipped IDX file."""
    header = struct.pack(f">HBB{values.ndim}I", 0, idx.UNSIGNED_BYTE, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def assert_is_from(pool: Any, folder: Path, split: str, classes: int, choose: Callable = lambda label: slice(None)):
    """Asserts that a split is that of the four files in a folder, or the rows chosen of it."""
    images, labels = SPLITS[split]
    whole = idx.read_instances(folder / images, folder / labels, classes)
    rows = choose(whole.label)
    np.testing.assert_array_equal(pool.x, whole.x[rows], strict=True)
    np.testing.assert_array_equal(pool.label, whole.label[rows], strict=True)


@settings(deadline=None, max_examples=30)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_an_array_of_bytes_is_read(tmp_path_factory, shape, seed):
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / "values.gz"
    write_idx(path, values)
    np.testing.assert_array_equal(idx.read_idx(path, axes=len(shape)), values, strict=True)


SOUND = struct.pack(">HBBI", 0, 8, 1, 4) + bytes(4)
ZIPPED = gzip.compress(SOUND)
DAMAGED = {
    "no gzip": (SOUND, "sound gzip"), "cut short": (ZIPPED[:-9], "cut short"), "empty": (b"", "nothing"),
    "wrong checksum": (ZIPPED[:-8] + bytes([ZIPPED[-8] ^ 1]) + ZIPPED[-7:], "sound gzip"),
    "garbage behind": (ZIPPED + b"x", "sound gzip"), "half a header": (gzip.compress(SOUND[:6]), "got 6 bytes"),
    "garbage inside": (ZIPPED[:10] + b"\xff" * 9 + ZIPPED[19:], "sound gzip"), "absent": (None, "no such file"),
    "other type": (gzip.compress(b"\0\0\x09" + SOUND[3:]), "00 00 09 01"),
    "other axes": (gzip.compress(struct.pack(">HBBII", 0, 8, 2, 2, 2) + bytes(4)), "1 axes"),
    "a value short": (gzip.compress(SOUND[:-1]), "expected 12 bytes, as its header says, got 11"),
    "a value more": (gzip.compress(SOUND + b"x"), "got 13 bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "complaint"), DAMAGED.values(), ids=DAMAGED)
def test_a_bad_file_is_named_in_one_line(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "labels.gz").write_bytes(content)
    assert_parts(message_of(idx.read_idx, tmp_path / "labels.gz", axes=1), tmp_path / "labels.gz", complaint)
    assert_parts(message_of(idx.read_idx, tmp_path, axes=1), tmp_path, "got a folder")


def test_images_and_labels_must_agree(tmp_path):
    images, labels = tmp_path / "x.gz", tmp_path / "y.gz"
    write_idx(images, np.zeros((3, 2, 2), np.uint8))
    write_idx(labels, np.array([0, 1, 5, 0], np.uint8))
    assert_parts(message_of(idx.read_instances, images, labels, class_count=9), images, "4 images", "got 3")
    write_idx(images, np.zeros((4, 2, 2), np.uint8))
    assert_parts(message_of(idx.read_instances, images, labels, class_count=5), labels, "below 5, got the label 5")


def test_the_sample_has_each_digit_in_its_share():
    sample = datasets.load("mnist-sample")
    for pool, size, counts in ((sample.train, 10_000, MNIST_TRAIN_COUNTS), (sample.test, 4_000, MNIST_TEST_COUNTS)):
        assert (pool.x.shape, pool.x.dtype, pool.label.dtype) == ((size, 28, 28), np.uint8, np.int32)
        assert np.all(np.abs(np.bincount(pool.label) - size * np.array(counts) / sum(counts)) < 1)
    assert (sample.class_names, sample.content_hash) == (tuple("0123456789"), SAMPLE_HASH)


def test_the_sample_is_small_and_has_its_licence():
    files = list(datasets.SAMPLE_DIR.iterdir())
    assert {file.name for file in files} == {*idx.FILES, "LICENSE.md"}
    assert sum(file.stat().st_size for file in files) <= 2_600_000
    licence = (datasets.SAMPLE_DIR / "LICENSE.md").read_text()
    assert_parts(licence, "LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "What was changed")


@needs_mnist
@pytest.mark.parametrize(("split", "count"), [("train", 10_000), ("test", 4_000)])
def test_the_sample_was_cut_as_its_licence_says(split, count):
    def cut(label: np.ndarray) -> np.ndarray:
        due = count * np.bincount(label) / len(label)
        share = due.astype(int)
        share[np.argsort(share - due, kind="stable")[: count - share.sum()]] += 1
        digests = [hashlib.sha256(f"0 {split} {row}".encode()).digest() for row in range(len(label))]
        ranked = np.array(sorted(range(len(label)), key=digests.__getitem__))
        return np.sort(np.concatenate([ranked[label[ranked] == digit][: share[digit]] for digit in range(10)]))

    assert_is_from(getattr(datasets.load("mnist-sample"), split), SHARED_MNIST, split, 10, cut)


def output_of(code: str, *arguments: object) -> str:
    """What a program prints in a process of its own, in which any warning is an error."""
    command = [sys.executable, "-W", "error", "-c", f"import sys; from mil_jax import datasets; {code}"]
    run = subprocess.run([*command, *map(str, arguments)], check=True, capture_output=True, text=True)
    assert run.stderr == ""
    return run.stdout.strip()


def test_importing_and_loading_the_sample_imports_nothing_large():
    large = {"tensorflow", "tensorflow_datasets", "matplotlib", "h5py", "scipy", "PIL", "requests"}
    assert output_of(f"datasets.load('mnist-sample'); print({large} & set(sys.modules))") == "set()"


def test_an_unknown_name_or_a_folder_for_the_sample_is_refused(tmp_path):
    message = message_of(datasets.load, "minst")
    assert_parts(message, "'minst'", "mnist-sample", "mnist", "fashion_mnist", "kmnist", "tfds:NAME")
    assert "mnist-sample is part of the package" in message_of(datasets.load, "mnist-sample", manual_dir=tmp_path)


# A small set in four IDX files, its folder, and a host that serves it


@pytest.fixture
def originals(tmp_path) -> Path:
    """A folder with the four files of a set of 60 and 20 images of 5 x 4 pixels."""
    folder, rng = tmp_path / "originals", np.random.default_rng(0)
    folder.mkdir()
    for (images, labels), count in zip(SPLITS.values(), (60, 20), strict=True):
        write_idx(folder / images, rng.integers(0, 256, (count, 5, 4), dtype=np.uint8))
        write_idx(folder / labels, rng.integers(0, 3, count, dtype=np.uint8))
    return folder


def small_set(originals: Path, base_url: str = "http://127.0.0.1:9/") -> IdxSet:
    contents = {name: (originals / name).read_bytes() for name in idx.FILES}
    files = tuple(IdxFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items())
    return IdxSet("small", "Small", base_url, files, ("a", "b", "c"), (5, 4))


@pytest.fixture
def host(originals) -> Iterator[str]:
    """The address of a host that serves the folder of originals; it can be told to break off."""
    handler = functools.partial(QuietHandler, directory=str(originals))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        """Says nothing."""

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[: len(content) // 2] if Path(self.directory, "break_off").exists() else content)


def assert_is_originals(read: datasets.Dataset, originals: Path) -> None:
    assert_is_from(read.train, originals, "train", 3)
    assert_is_from(read.test, originals, "test", 3)


def assert_nothing_is_left(data_dir: Path) -> None:
    assert [path for path in data_dir.rglob("*") if path.is_file()] == []
    assert list(data_dir.rglob("*download*")) == list(data_dir.rglob("*incomplete*")) == []


def test_files_from_a_folder_are_prepared_once_in_their_order(tmp_path, originals, capfd):
    before = {file: file.read_bytes() for file in originals.iterdir()}
    idx_set, data_dir = small_set(originals), tmp_path / "prepared"
    first = load_idx_set(idx_set, data_dir, originals)
    assert_is_originals(first, originals)
    assert {file: file.read_bytes() for file in originals.iterdir()} == before
    assert_parts(first.source, originals, data_dir)
    again = load_idx_set(idx_set, data_dir)
    assert again.content_hash == first.content_hash
    assert "prepared before" in again.source
    assert "without need of /nowhere" in load_idx_set(idx_set, data_dir, Path("/nowhere")).source
    assert not list(data_dir.rglob("*download*"))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("there", [(), (idx.TRAIN_IMAGES, idx.TEST_LABELS)])
def test_what_a_folder_lacks_is_downloaded_and_checked(tmp_path, originals, host, there):
    (tmp_path / "half").mkdir()
    for name in there:
        (tmp_path / "half" / name).write_bytes((originals / name).read_bytes())
    read = load_idx_set(small_set(originals, host), tmp_path / "prepared", tmp_path / "half" if there else None)
    assert_is_originals(read, originals)
    assert_parts(read.source, host, tmp_path / "half" if there else "")
    assert not list((tmp_path / "prepared").rglob("*download*"))


def damage_file(path: Path, damage: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if damage == "broken off":
        (path.parent / "break_off").touch()
    elif damage != "gone":
        path.write_bytes(content[:-7] if damage == "cut short" else content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("damage", ["changed", "cut short", "gone", "broken off"])
def test_a_bad_download_is_refused_and_not_kept(tmp_path, originals, host, damage):
    idx_set, data_dir, path = small_set(originals, host), tmp_path / "prepared", originals / idx.TEST_LABELS
    sound = path.read_bytes()
    damage_file(path, damage)
    message = message_of(load_idx_set, idx_set, data_dir)
    assert_parts(message, "'small'", "download", path.name if damage != "broken off" else "")
    assert_nothing_is_left(data_dir)
    path.write_bytes(sound)
    (originals / "break_off").unlink(missing_ok=True)
    assert_is_originals(load_idx_set(idx_set, data_dir), originals)


@pytest.mark.parametrize("damage", ["changed", "cut short"])
def test_a_damaged_file_in_a_folder_is_named(tmp_path, originals, damage):
    idx_set, data_dir = small_set(originals), tmp_path / "prepared"
    damage_file(originals / idx.TRAIN_LABELS, damage)
    message = message_of(load_idx_set, idx_set, data_dir, originals)
    assert_parts(message, originals / idx.TRAIN_LABELS, "SHA-256", "bytes")
    assert "no such folder" in message_of(load_idx_set, idx_set, data_dir, tmp_path / "nowhere")
    assert not data_dir.exists()


def test_no_network_and_no_files_is_one_error_at_once(tmp_path, originals):
    idx_set, data_dir = small_set(originals), tmp_path / "prepared"
    start = time.perf_counter()
    assert_parts(message_of(load_idx_set, idx_set, data_dir), data_dir, "127.0.0.1:9", "--manual-dir", *idx.FILES)
    assert time.perf_counter() - start < 10
    assert not data_dir.exists()
    (originals / idx.TEST_IMAGES).unlink()
    message = message_of(load_idx_set, idx_set, data_dir, originals)
    assert_parts(message, "lacks files", f"get {idx.TEST_IMAGES} from http")


def test_a_host_that_never_answers_does_not_hold_us_up(tmp_path, originals, monkeypatch):
    monkeypatch.setattr(tfds_sets, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        idx_set = small_set(originals, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        start = time.perf_counter()
        assert "cannot be reached" in message_of(load_idx_set, idx_set, tmp_path)
        assert time.perf_counter() - start < 5


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path, originals):
    (tmp_path / "file").touch()
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        message = message_of(load_idx_set, small_set(originals), data_dir, originals)
        assert message.startswith("data_dir") and "cannot be written" in message


def test_an_interrupted_preparation_leaves_nothing(tmp_path, originals, monkeypatch):
    def interrupted(self, images, labels):
        yield 0, {"image": np.zeros((5, 4), np.uint8), "label": 0}
        raise KeyboardInterrupt

    idx_set, data_dir = small_set(originals), tmp_path / "prepared"
    with monkeypatch.context() as patch:
        patch.setattr(tfds_builder.MilJaxIdx, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_idx_set(idx_set, data_dir, originals)
    assert_nothing_is_left(data_dir)
    assert_is_originals(load_idx_set(idx_set, data_dir, originals), originals)


def test_two_preparations_at_once_both_succeed(tmp_path, originals, monkeypatch):
    idx_set, generate = small_set(originals), tfds_builder.MilJaxIdx._generate_examples

    def overtaken(self, images, labels):
        monkeypatch.setattr(tfds_builder.MilJaxIdx, "_generate_examples", generate)
        load_idx_set(idx_set, tmp_path, originals)
        yield from generate(self, images, labels)

    monkeypatch.setattr(tfds_builder.MilJaxIdx, "_generate_examples", overtaken)
    assert_is_originals(load_idx_set(idx_set, tmp_path, originals), originals)


def test_a_killed_preparation_is_not_taken_for_complete(tmp_path, originals):
    load_idx_set(small_set(originals), tmp_path, originals)
    folder = tmp_path / "mil_jax_idx" / "small" / "1.0.0"
    # What a process leaves that is killed before the last step, which is to rename its folder.
    folder.rename(folder.with_name("1.0.0.incomplete.ABCDEF"))
    again = load_idx_set(small_set(originals), tmp_path, originals)
    assert "prepared before" not in again.source
    assert_is_originals(again, originals)


@pytest.mark.parametrize("damage", ["cut short", "changed", "gone", "description"])
def test_a_damaged_prepared_set_is_named(tmp_path, originals, damage):
    load_idx_set(small_set(originals), tmp_path, originals)
    (records,) = (tmp_path / "mil_jax_idx" / "small" / "1.0.0").glob("*train*")
    sound = records.read_bytes()
    changed = sound.replace(b"image", b"imago", 1)
    if damage == "description":
        records.with_name("dataset_info.json").write_text("{")
    elif damage == "gone":
        records.unlink()
    else:
        records.write_bytes({"cut short": sound[:-70_000], "changed": changed}[damage])
    message = message_of(load_idx_set, small_set(originals), tmp_path, originals)
    assert message.startswith("data_dir") and "delete" in message


@needs_mnist
def test_mnist_through_tfds_without_tensorflow(tmp_path):
    """In a process of its own, because another test may have imported TensorFlow."""
    code = "print(datasets.load('mnist', *sys.argv[1:]).content_hash, 'tensorflow' in sys.modules)"
    assert output_of(code, tmp_path, SHARED_MNIST) == f"{MNIST_HASH} False"
    start = time.perf_counter()
    prepared = datasets.load("mnist", data_dir=tmp_path)
    assert time.perf_counter() - start < 120  # retries would take 205
    assert (prepared.content_hash, prepared.train.x.shape) == (MNIST_HASH, (60_000, 28, 28))
    assert np.bincount(prepared.train.label).tolist() == MNIST_TRAIN_COUNTS
    assert np.bincount(prepared.test.label).tolist() == MNIST_TEST_COUNTS
    assert "file of fashion_mnist" in message_of(datasets.load, "fashion_mnist", tmp_path, SHARED_MNIST)


# Any other set of TFDS: small ones that this module defines


def png(value: int, shape: tuple[int, ...]) -> io.BytesIO:
    file = io.BytesIO()
    PIL.Image.fromarray(np.full(shape, value, np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


class StockBase(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Six training and three test images, written as PNG, which needs no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: tuple = (4, 3, 3)
    SPLITS: ClassVar[dict[str, int]] = {"train": 6, "test": 3}
    LABELS: ClassVar[dict[str, Any]] = {"label": tfds.features.ClassLabel(names=["cat", "dog"])}
    UNKNOWN: int = 0

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=self.SHAPE), **self.LABELS})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(count) for name, count in self.SPLITS.items()}

    def _generate_examples(self, count):
        for row in range(count):
            yield row, {"image": self.image(row), "label": row % 2 - self.UNKNOWN}

    def image(self, row) -> Any:
        return png(row, tuple(axis for axis in self.SHAPE if axis != 1))


CHANGES: dict[str, dict[str, Any]] = {
    "StockColour": {},
    "StockGrey": {"SHAPE": (4, 3, 1)},
    "StockSizes": {"SHAPE": (None, None, 3), "image": lambda self, row: png(row, (4, 3 + row, 3))},
    "StockNoTest": {"SPLITS": {"train": 6, "validation": 3}},
    "StockUnlabelled": {"UNKNOWN": 1},
    "StockArrays": {"image": lambda self, row: np.zeros(self.SHAPE, np.uint8)},  # which TFDS writes with TensorFlow
    "StockBroken": {"image": mock.Mock(side_effect=ValueError("no luck\nat all"))},
    "StockFeatures": {"LABELS": {}},
}
STOCK = {name: type(name, (StockBase,), changes | {"__module__": __name__}) for name, changes in CHANGES.items()}


@pytest.mark.parametrize(("name", "shape"), [("tfds:stock_colour", (4, 3, 3)), ("tfds:stock_grey", (4, 3))])
def test_any_labelled_image_set_of_tfds(tmp_path, name, shape):
    first, again = datasets.load(name, tmp_path), datasets.load(name, tmp_path)
    values = np.full((*shape, 6), np.arange(6), np.uint8)
    np.testing.assert_array_equal(first.train.x, np.moveaxis(values, -1, 0), strict=True)
    np.testing.assert_array_equal(first.test.label, np.array([0, 1, 0], np.int32), strict=True)
    assert (first.name, first.class_names) == (name, ("cat", "dog"))
    assert again.content_hash == first.content_hash
    assert "prepared before" in again.source


REFUSED = [
    ("stock_sizes", "images of one size"), ("stock_no_test", "got train, validation"), ("stock_broken", "no luck"),
    ("stock_unlabelled", "some without label"), ("stock_features", "got the features image"),
    ("", "can find and open"), ("stock_absent", "can find and open"), ("stock_grey/hue", "can find and open"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "complaint"), REFUSED)
def test_a_set_of_tfds_that_will_not_do_is_named(tmp_path, name, complaint):
    assert_parts(message_of(datasets.load, f"tfds:{name}", tmp_path), f"'tfds:{name}'", complaint)


def test_a_set_that_needs_tensorflow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert "pip install 'mil_jax[tensorflow]'" in message_of(datasets.load, "tfds:stock_arrays", tmp_path)


def test_a_stock_set_without_network_is_one_error_at_once(tmp_path, monkeypatch):
    info = tfds_builder.checksums.UrlInfo(Size(9), "00" * 32, "images.zip")
    monkeypatch.setattr(STOCK["StockColour"], "url_infos", {"http://127.0.0.1:9/images.zip": info})
    assert_parts(message_of(datasets.load, "tfds:stock_colour", tmp_path), tmp_path, "127.0.0.1:9", "--manual-dir")
    (tmp_path / "images.zip").touch()
    assert len(datasets.load("tfds:stock_colour", tmp_path / "data", tmp_path).train.label) == 6


def test_a_set_in_a_format_for_tensorflow_only_is_named(tmp_path):
    STOCK["StockGrey"](data_dir=tmp_path).download_and_prepare(file_format="array_record")
    info = tmp_path / "stock_grey" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    assert "only TensorFlow reads" in message_of(datasets.load, "tfds:stock_grey", tmp_path)
