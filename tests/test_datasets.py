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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core.units import Size

from mil_jax import datasets
from mil_jax.datasets import cut_mnist_sample, idx, tfds_sets
from mil_jax.datasets.idx_sets import IdxFile, IdxSet
from mil_jax.errors import InputError

SHARED_MNIST = Path(__file__).parents[1].parent / "shared" / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not SHARED_MNIST.is_dir(), reason="the files of MNIST are absent")

MNIST_TRAIN_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
MNIST_HASH = "212193ceac1fe2216e4f17b722bd511640924223725a7a2d8c7ea5f3e87ae31d"
SAMPLE_HASH = "a3116e97f0294d652395483b2e6a4f036467b5a9cdf2047949db7be9e33bad65"


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# IDX files


@settings(deadline=None, max_examples=30)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_an_array_survives_writing_and_reading(tmp_path_factory, shape, seed):
    values = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / "values.gz"
    idx.write_idx(path, values)
    np.testing.assert_array_equal(idx.read_idx(path, axes=len(shape)), values, strict=True)


def test_the_header_is_that_of_the_format(tmp_path):
    idx.write_idx(tmp_path / "a.gz", np.array([[1, 2, 3]], np.uint8))
    content = gzip.decompress((tmp_path / "a.gz").read_bytes())
    assert content == bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3])


def damaged_idx_files() -> dict[str, tuple[bytes, str]]:
    sound = struct.pack(">HBBI", 0, 8, 1, 4) + bytes(4)
    zipped = gzip.compress(sound)
    flipped = bytearray(zipped)
    flipped[-8] ^= 1  # the first byte of the checksum
    return {
        "no gzip": (sound, "not sound gzip"),
        "cut short": (zipped[:-9], "cut short"),
        "wrong checksum": (bytes(flipped), "not sound gzip"),
        "garbage behind": (zipped + b"x", "not sound gzip"),
        "garbage inside": (zipped[:10] + b"\xff" * 9 + zipped[19:], "not sound gzip"),
        "empty": (b"", "nothing"),
        "other type": (gzip.compress(struct.pack(">HBBI", 0, 9, 1, 4) + bytes(4)), "00 00 09 01"),
        "other axes": (gzip.compress(struct.pack(">HBBII", 0, 8, 2, 2, 2) + bytes(4)), "1 axes"),
        "half a header": (gzip.compress(sound[:6]), "its header"),
        "a value short": (gzip.compress(sound[:-1]), "holds 11 bytes"),
        "a value more": (gzip.compress(sound + b"x"), "holds 13 bytes"),
    }


@pytest.mark.parametrize("damage", damaged_idx_files())
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    content, complaint = damaged_idx_files()[damage]
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=complaint) as error:
        idx.read_idx(path, axes=1)
    assert str(path) in one_line(error)


@pytest.mark.parametrize(("name", "complaint"), [("absent.gz", "no such file"), ("", "cannot be")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        idx.read_idx(tmp_path / name, axes=1)
    assert str(tmp_path) in one_line(error)


def test_images_and_labels_must_agree(tmp_path):
    idx.write_idx(tmp_path / "x.gz", np.zeros((3, 2, 2), np.uint8))
    idx.write_idx(tmp_path / "y.gz", np.array([0, 1, 5, 0], np.uint8))
    with pytest.raises(InputError, match=r"3 images.* 4 labels"):
        idx.read_instances(tmp_path / "x.gz", tmp_path / "y.gz", class_count=9)
    idx.write_idx(tmp_path / "x.gz", np.zeros((4, 2, 2), np.uint8))
    with pytest.raises(InputError, match="label 5"):
        idx.read_instances(tmp_path / "x.gz", tmp_path / "y.gz", class_count=5)


# The sample inside the package


def test_the_sample_has_each_digit_in_its_share():
    sample = datasets.load("mnist-sample")
    assert sample.train.x.shape == (10_000, 28, 28)
    assert sample.test.x.shape == (4_000, 28, 28)
    for pool, counts in ((sample.train, MNIST_TRAIN_COUNTS), (sample.test, MNIST_TEST_COUNTS)):
        assert pool.x.dtype == np.uint8
        assert pool.label.dtype == np.int32
        exact = len(pool.label) * np.array(counts) / sum(counts)
        assert np.all(np.abs(np.bincount(pool.label) - exact) < 1)
    assert sample.class_names == tuple("0123456789")
    assert sample.content_hash == SAMPLE_HASH


def test_the_sample_is_small_and_has_its_licence():
    files = list(datasets.SAMPLE_DIR.iterdir())
    assert {file.name for file in files} == {*idx.FILES, "LICENSE.md"}
    assert sum(file.stat().st_size for file in files) <= 2_600_000
    licence = (datasets.SAMPLE_DIR / "LICENSE.md").read_text()
    for part in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "What was changed"):
        assert part in licence


@needs_mnist
def test_the_sample_can_be_cut_again(tmp_path):
    cut_mnist_sample.cut(SHARED_MNIST, tmp_path)
    for name in idx.FILES:
        axes = 3 if "images" in name else 1
        committed = idx.read_idx(datasets.SAMPLE_DIR / name, axes)
        np.testing.assert_array_equal(idx.read_idx(tmp_path / name, axes), committed, strict=True)


@settings(deadline=None, max_examples=50)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), part=st.floats(0, 1))
def test_shares_add_up_and_differ_from_exact_by_less_than_one(counts, part):
    label = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    count = int(part * len(label))
    shares = cut_mnist_sample.shares(label, count)
    assert shares.sum() == count
    assert np.all(np.abs(shares - count * np.array(counts) / len(label)) < 1)
    rows = cut_mnist_sample.choose(label, count, "train")
    np.testing.assert_array_equal(np.bincount(label[rows], minlength=len(counts)), shares)
    assert len(set(rows.tolist())) == count


def test_shares_by_largest_remainder():
    # Due are 2.5, 1.5 and 1.0: of the two halves, the lower class gets the one that is left.
    label = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2], np.int32)
    assert cut_mnist_sample.shares(label, 5).tolist() == [3, 1, 1]


def test_the_sample_imports_neither_tfds_nor_tensorflow():
    code = (
        "import sys; from mil_jax import datasets; datasets.load('mnist-sample');"
        "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_sample_reads_no_folder(tmp_path):
    with pytest.raises(InputError, match="mnist-sample is part of the package"):
        datasets.load("mnist-sample", manual_dir=tmp_path)


def test_an_unknown_name_lists_what_would_do():
    with pytest.raises(InputError) as error:
        datasets.load("minst")
    for name in ("'minst'", "mnist-sample", "mnist", "fashion_mnist", "kmnist", "tfds:NAME"):
        assert name in one_line(error)


# A small set in four IDX files, its folder, and a host that serves it


@pytest.fixture
def originals(tmp_path) -> Path:
    """A folder with the four files of a set of 60 and 20 images of 5 x 4 pixels."""
    folder = tmp_path / "originals"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for images, labels, count in (
        (idx.TRAIN_IMAGES, idx.TRAIN_LABELS, 60),
        (idx.TEST_IMAGES, idx.TEST_LABELS, 20),
    ):
        idx.write_idx(folder / images, rng.integers(0, 256, (count, 5, 4), dtype=np.uint8))
        idx.write_idx(folder / labels, rng.integers(0, 3, count, dtype=np.uint8))
    return folder


def small_set(originals: Path, base_url: str = "http://127.0.0.1:9/") -> IdxSet:
    contents = {name: (originals / name).read_bytes() for name in idx.FILES}
    files = tuple(
        IdxFile(name, len(content), hashlib.sha256(content).hexdigest()) for name, content in contents.items()
    )
    return IdxSet("small", "Small", base_url, files, ("a", "b", "c"), "http://x.invalid/", (5, 4))


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
        broken = (Path(self.directory) / "break_off").exists()
        outputfile.write(content[: len(content) // 2] if broken else content)


def assert_is_originals(found: datasets.Dataset, originals: Path) -> None:
    for pool, images, labels in (
        (found.train, idx.TRAIN_IMAGES, idx.TRAIN_LABELS),
        (found.test, idx.TEST_IMAGES, idx.TEST_LABELS),
    ):
        original = idx.read_instances(originals / images, originals / labels, 3)
        np.testing.assert_array_equal(pool.x, original.x, strict=True)
        np.testing.assert_array_equal(pool.label, original.label, strict=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_nothing_is_left(data_dir: Path) -> None:
    left = [path for path in data_dir.rglob("*") if path.is_file()]
    # TFDS notes the name of a builder's first configuration; nothing of the set may be there.
    assert [path for path in left if path.name != "metadata.json"] == []
    assert list(data_dir.rglob("*download*")) == list(data_dir.rglob("*incomplete*")) == []


def test_files_from_a_folder_are_prepared_once_in_their_order(tmp_path, originals, capfd):
    before = contents(originals)
    data_dir = tmp_path / "prepared"
    first = tfds_sets.load_idx_set(small_set(originals), data_dir, originals)
    assert_is_originals(first, originals)
    assert contents(originals) == before
    assert str(originals) in first.source
    assert str(data_dir) in first.source
    again = tfds_sets.load_idx_set(small_set(originals), data_dir)
    assert again.content_hash == first.content_hash
    assert "prepared before" in again.source
    unread = tfds_sets.load_idx_set(small_set(originals), data_dir, Path("/nowhere"))
    assert "without need of /nowhere" in unread.source
    assert not list(data_dir.rglob("*download*"))
    assert capfd.readouterr().out == ""


def test_downloads_are_checked_and_prepared(tmp_path, originals, host):
    found = tfds_sets.load_idx_set(small_set(originals, host), tmp_path / "prepared")
    assert_is_originals(found, originals)
    assert host in found.source
    assert not list((tmp_path / "prepared").rglob("*download*"))


def test_what_a_folder_lacks_is_downloaded(tmp_path, originals, host):
    folder = tmp_path / "half"
    folder.mkdir()
    for name in (idx.TRAIN_IMAGES, idx.TEST_LABELS):
        (folder / name).write_bytes((originals / name).read_bytes())
    found = tfds_sets.load_idx_set(small_set(originals, host), tmp_path / "prepared", folder)
    assert_is_originals(found, originals)
    assert host in found.source
    assert str(folder) in found.source


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [change, cut_short, Path.unlink])
def test_a_bad_download_is_refused_and_not_kept(tmp_path, originals, host, damage):
    idx_set = small_set(originals, host)
    sound = (originals / idx.TEST_LABELS).read_bytes()
    damage(originals / idx.TEST_LABELS)
    with pytest.raises(InputError, match="download") as error:
        tfds_sets.load_idx_set(idx_set, tmp_path / "prepared")
    assert "'small'" in one_line(error)
    assert idx.TEST_LABELS in one_line(error)
    assert_nothing_is_left(tmp_path / "prepared")
    (originals / idx.TEST_LABELS).write_bytes(sound)
    assert_is_originals(tfds_sets.load_idx_set(idx_set, tmp_path / "prepared"), originals)


def test_a_download_that_breaks_off_is_refused(tmp_path, originals, host):
    (originals / "break_off").touch()
    with pytest.raises(InputError, match="download") as error:
        tfds_sets.load_idx_set(small_set(originals, host), tmp_path / "prepared")
    one_line(error)
    assert_nothing_is_left(tmp_path / "prepared")


@pytest.mark.parametrize(("damage", "complaint"), [(change, "SHA-256"), (cut_short, "bytes")])
def test_a_damaged_file_in_a_folder_is_named(tmp_path, originals, damage, complaint):
    idx_set = small_set(originals)
    damage(originals / idx.TRAIN_LABELS)
    with pytest.raises(InputError, match=complaint) as error:
        tfds_sets.load_idx_set(idx_set, tmp_path / "prepared", originals)
    assert str(originals / idx.TRAIN_LABELS) in one_line(error)
    assert not (tmp_path / "prepared").exists()


def test_a_folder_that_does_not_exist_is_named(tmp_path, originals):
    with pytest.raises(InputError, match="no such folder"):
        tfds_sets.load_idx_set(small_set(originals), tmp_path, tmp_path / "nowhere")


def test_no_network_and_no_files_is_one_error_at_once(tmp_path, originals):
    idx_set = small_set(originals)
    start = time.perf_counter()
    with pytest.raises(InputError) as error:
        tfds_sets.load_idx_set(idx_set, tmp_path / "prepared")
    assert time.perf_counter() - start < 10
    for part in (str(tmp_path / "prepared"), "127.0.0.1:9", "--manual-dir", *idx.FILES):
        assert part in one_line(error)
    assert not (tmp_path / "prepared").exists()
    (originals / idx.TEST_IMAGES).unlink()
    with pytest.raises(InputError, match=f"lacks files.* get {idx.TEST_IMAGES} from http"):
        tfds_sets.load_idx_set(idx_set, tmp_path / "prepared", originals)


def test_a_host_that_never_answers_does_not_hold_us_up(tmp_path, originals, monkeypatch):
    monkeypatch.setattr(tfds_sets, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        start = time.perf_counter()
        with pytest.raises(InputError, match="cannot be reached"):
            tfds_sets.load_idx_set(small_set(originals, url), tmp_path)
        assert time.perf_counter() - start < 5


def test_a_data_dir_that_cannot_be_written_is_named(tmp_path, originals):
    (tmp_path / "file").touch()
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be written") as error:
            tfds_sets.load_idx_set(small_set(originals), data_dir, originals)
        assert one_line(error).startswith("data_dir")


def test_an_interrupted_preparation_leaves_nothing(tmp_path, originals, monkeypatch):
    def interrupted(self, images, labels):
        yield 0, {"image": np.zeros((5, 4), np.uint8), "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tfds_sets.MilJaxIdx, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tfds_sets.load_idx_set(small_set(originals), tmp_path / "prepared", originals)
    assert_nothing_is_left(tmp_path / "prepared")
    found = tfds_sets.load_idx_set(small_set(originals), tmp_path / "prepared", originals)
    assert_is_originals(found, originals)


def test_two_preparations_at_once_both_succeed(tmp_path, originals, monkeypatch):
    idx_set = small_set(originals)
    generate = tfds_sets.MilJaxIdx._generate_examples

    def overtaken(self, images, labels):
        monkeypatch.setattr(tfds_sets.MilJaxIdx, "_generate_examples", generate)
        tfds_sets.load_idx_set(idx_set, tmp_path, originals)
        yield from generate(self, images, labels)

    monkeypatch.setattr(tfds_sets.MilJaxIdx, "_generate_examples", overtaken)
    assert_is_originals(tfds_sets.load_idx_set(idx_set, tmp_path, originals), originals)


def test_a_killed_preparation_is_not_taken_for_complete(tmp_path, originals):
    data_dir = tmp_path / "prepared"
    found = tfds_sets.load_idx_set(small_set(originals), data_dir, originals)
    folder = data_dir / "mil_jax_idx" / "small" / "1.0.0"
    # What a process leaves that is killed before the last step, which is to rename its folder.
    folder.rename(folder.with_name("1.0.0.incomplete.ABCDEF"))
    again = tfds_sets.load_idx_set(small_set(originals), data_dir, originals)
    assert "prepared before" not in again.source
    assert again.content_hash == found.content_hash


@pytest.mark.parametrize("damage", ["cut short", "changed", "gone", "description"])
def test_a_damaged_prepared_set_is_named(tmp_path, originals, damage):
    tfds_sets.load_idx_set(small_set(originals), tmp_path, originals)
    folder = tmp_path / "mil_jax_idx" / "small" / "1.0.0"
    (records,) = folder.glob("*train*")
    if damage == "cut short":
        records.write_bytes(records.read_bytes()[:-70_000])
    elif damage == "changed":
        content = bytearray(records.read_bytes())
        start = next(i for i in range(len(content)) if content[i : i + 5] == b"image")
        content[start + 20] ^= 255
        records.write_bytes(content)
    elif damage == "gone":
        records.unlink()
    else:
        (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError) as error:
        tfds_sets.load_idx_set(small_set(originals), tmp_path, originals)
    assert one_line(error).startswith("data_dir")
    assert "delete that" in one_line(error)


# Full MNIST, from the public files


@needs_mnist
def test_mnist_through_tfds_without_tensorflow(tmp_path):
    """In a process of its own, because another test may have imported TensorFlow."""
    code = (
        "import sys; from pathlib import Path; from mil_jax import datasets;"
        "data = datasets.load('mnist', Path(sys.argv[1]), Path(sys.argv[2]));"
        "assert 'tensorflow' not in sys.modules; print(data.content_hash)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path), str(SHARED_MNIST)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == [MNIST_HASH]
    assert run.stderr == ""
    start = time.perf_counter()
    prepared = datasets.load("mnist", data_dir=tmp_path)
    assert time.perf_counter() - start < 20
    assert prepared.content_hash == MNIST_HASH
    assert np.bincount(prepared.train.label).tolist() == MNIST_TRAIN_COUNTS
    assert np.bincount(prepared.test.label).tolist() == MNIST_TEST_COUNTS
    assert prepared.train.x.shape == (60_000, 28, 28)


@needs_mnist
def test_the_files_of_one_set_are_not_taken_for_another(tmp_path):
    with pytest.raises(InputError, match="fashion_mnist"):
        datasets.load("fashion_mnist", tmp_path, SHARED_MNIST)


# Any other set of TFDS: small ones that this module defines


def png(value: int, shape: tuple[int, ...]) -> io.BytesIO:
    file = io.BytesIO()
    PIL.Image.fromarray(np.full(shape, value, np.uint8)).save(file, "PNG")
    return io.BytesIO(file.getvalue())


class StockBase(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Six training and three test images, written as PNG, which needs no TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: tuple = (4, 3, 3)
    SPLITS = {"train": 6, "test": 3}  # noqa: RUF012

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.SHAPE),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(count) for name, count in self.SPLITS.items()}

    def _generate_examples(self, count):
        for row in range(count):
            yield row, {"image": self.image(row), "label": row % 2}

    def image(self, row) -> Any:
        return png(row, tuple(axis for axis in self.SHAPE if axis != 1))


class StockColour(StockBase):
    """Colour images of one size."""


class StockGrey(StockBase):
    """Grey images of one size."""

    SHAPE = (4, 3, 1)


class StockSizes(StockBase):
    """Images of different sizes."""

    SHAPE = (None, None, 3)

    def image(self, row):
        return png(row, (4, 3 + row, 3))


class StockNoTest(StockBase):
    """No split named test."""

    SPLITS = {"train": 6, "validation": 3}  # noqa: RUF012


class StockUnlabelled(StockBase):
    """A test split whose labels are not known."""

    def _generate_examples(self, count):
        for row in range(count):
            yield row, {"image": self.image(row), "label": -1}


class StockArrays(StockBase):
    """Images given as arrays, which TFDS writes with TensorFlow."""

    def image(self, row):
        return np.zeros(self.SHAPE, np.uint8)


class StockBroken(StockBase):
    """A builder that fails."""

    def image(self, row):
        raise ValueError("no luck\nat all")


class StockFeatures(StockBase):
    """A set without labels."""

    def _info(self):
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=self.SHAPE)})
        return tfds.core.DatasetInfo(builder=self, features=features)


@pytest.mark.parametrize(("name", "shape"), [("colour", (4, 3, 3)), ("grey", (4, 3))])
def test_any_labelled_image_set_of_tfds(tmp_path, name, shape):
    first = datasets.load(f"tfds:stock_{name}", tmp_path)
    values = np.arange(6, dtype=np.uint8).reshape(6, *(1 for _ in shape))
    np.testing.assert_array_equal(first.train.x, np.broadcast_to(values, (6, *shape)), strict=True)
    np.testing.assert_array_equal(first.test.label, np.array([0, 1, 0], np.int32), strict=True)
    assert first.class_names == ("cat", "dog")
    assert first.name == f"tfds:stock_{name}"
    again = datasets.load(f"tfds:stock_{name}", tmp_path)
    assert again.content_hash == first.content_hash
    assert "prepared before" in again.source


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("stock_sizes", "images of different sizes"),
        ("stock_no_test", "splits train, validation"),
        ("stock_broken", "no luck"),
        ("stock_unlabelled", "without label"),
        ("stock_features", "features image"),
        ("stock_absent", "cannot find or open"),
        ("stock_grey/hue", "cannot find or open"),
        ("", "cannot find or open"),
    ],
)
def test_a_set_of_tfds_that_will_not_do_is_named(tmp_path, name, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        datasets.load(f"tfds:{name}", tmp_path)
    assert f"'tfds:{name}'" in one_line(error)


def test_a_set_that_needs_tensorflow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError) as error:
        datasets.load("tfds:stock_arrays", tmp_path)
    assert "pip install 'mil_jax[tensorflow]'" in one_line(error)


def test_a_stock_set_without_network_is_one_error_at_once(tmp_path, monkeypatch):
    info = tfds_sets.checksums.UrlInfo(Size(9), "00" * 32, "images.zip")
    monkeypatch.setattr(StockColour, "url_infos", {"http://127.0.0.1:9/images.zip": info})
    with pytest.raises(InputError) as error:
        datasets.load("tfds:stock_colour", tmp_path)
    for part in (str(tmp_path), "127.0.0.1:9", "--manual-dir"):
        assert part in one_line(error)
    (tmp_path / "images.zip").touch()
    assert len(datasets.load("tfds:stock_colour", tmp_path / "data", tmp_path).train.label) == 6


def test_a_set_in_a_format_for_tensorflow_only_is_named(tmp_path):
    StockGrey(data_dir=tmp_path).download_and_prepare(file_format="array_record")
    info = tmp_path / "stock_grey" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="only TensorFlow reads"):
        datasets.load("tfds:stock_grey", tmp_path)
