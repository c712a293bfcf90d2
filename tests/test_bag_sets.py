"""Bags as the world has them: tables, the classic benchmarks, colon histology, and every bad input."""

import csv
import inspect
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import scipy.io
import scipy.sparse
from conftest import assert_parts, message_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax import datasets
from mil_jax.datasets import BagSet, colon
from mil_jax.errors import InputError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
CLASSIC_DIR = SHARED / "classic"
needs_classic = pytest.mark.skipif(not CLASSIC_DIR.is_dir(), reason="the classic sets are absent")
needs_colon = pytest.mark.skipif(not (SHARED / "colon").is_dir(), reason="the colon images are absent")


def write(path: Path, content: str | bytes | dict | None, **options: Any) -> Path:
    """A file of text, of bytes, or of MATLAB's matrices; or none."""
    if isinstance(content, dict):
        scipy.io.savemat(path, content, **options)
    elif content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def assert_same_arrays(one: BagSet, other: BagSet) -> None:
    for field in ("x", "sizes", "label", "instance_label"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), strict=True)
    assert one.content_hash == other.content_hash


X = np.arange(6, dtype=np.float32).reshape(3, 2)
BAGS: dict[str, Any] = {
    "name": "a", "x": X, "sizes": [1, 2], "label": [0, 1], "bag_names": ("p", "q"), "source": "here",
}  # fmt: skip


def make(kind: type, **fields: Any) -> Any:
    """A record without jaxtyping's checks of its arguments, which only tests have."""
    record = object.__new__(kind)
    inspect.unwrap(kind.__init__)(record, **fields)
    return record


def test_the_hash_knows_every_array_and_no_name():
    one = make(BagSet, **BAGS)
    same = {"name": "b", "bag_names": ("r", "s"), "x": X.astype(np.float64), "label": [False, True]}
    other = make(BagSet, **BAGS | same)
    assert_same_arrays(one, other)
    assert (one.instance_label == -1).all()
    changes = [
        {"x": X + 1}, {"sizes": [2, 1]}, {"label": [1, 0]}, {"instance_label": [0, 0, 0]}, {"position": X},
        {"instance_class": [0, 0, 0], "instance_class_names": ("k",)},
    ]  # fmt: skip
    assert len({one.content_hash, *(make(BagSet, **BAGS | change).content_hash for change in changes)}) == 7


@pytest.mark.parametrize("change", [
    {"x": X.tolist()}, {"x": X.astype(int)}, {"x": X[0]}, {"x": X + np.nan}, {"x": X + np.float64(1e39)},
    {"x": None}, {"sizes": [1, 1]}, {"sizes": [0, 3]}, {"sizes": [-1, 4]}, {"sizes": [1.0, 2.0]}, {"sizes": None},
    {"sizes": [2**32 + 1, 2]}, {"sizes": [[1], [2, 3]]}, {"label": [2**32, 1]}, {"label": [2**70, 1]},
    {"label": [-1, 1]}, {"label": ["0", "1"]}, {"label": [0.0, 1.0]}, {"label": [0, 1, 1]}, {"bag_names": ("p",)},
    {"label": [0, 5], "class_names": ("n", "y")}, {"bag_names": "pq"}, {"name": ""}, {"name": None}, {"source": 3},
    {"instance_label": [1, 0, 0]}, {"instance_label": [0, 2, 0]}, {"instance_label": [0, 1]},
    {"instance_class": [0, 0, 1], "instance_class_names": ("k",)}, {"position": X[:2]}, {"position": X + np.inf},
], ids=str)  # fmt: skip
def test_a_record_at_odds_with_itself_is_refused(change):
    names = (*change, "sizes") if "bag_names" in change else tuple(change)
    assert message_of(make, BagSet, **BAGS | change).startswith(names)


@pytest.mark.parametrize("label", [[0, 2**32, 1], [0, -1, 1], [0, 1], ["a", "b", "c"], [0.0, 1.0, 2.0], None])
def test_labels_of_instances_are_whole_numbers_that_do_not_wrap(label):
    assert message_of(make, datasets.Instances, x=X, label=label).startswith("label = ")


@pytest.mark.parametrize("path", [None, 3, b"x", [], "", "a\0b", "~no_such_user_/x", "x" * 5000], ids=range(8))
def test_what_is_no_path_is_refused_by_every_loader(path, tmp_path):
    # Unwrapped, because in tests jaxtyping refuses some of them before the library can.
    load, table, classic, own, cells, cohort = map(inspect.unwrap, (
        datasets.load, datasets.read_table, datasets.load_classic, datasets.load_table_set, datasets.load_colon,
        datasets.load_cohort,
    ))  # fmt: skip
    for call in (
        lambda: load("mnist", path or 0), lambda: load("mnist", None, path or 0), lambda: table(path),
        lambda: classic("fox", path), lambda: own("own", path), lambda: cells(path), lambda: cohort(path, tmp_path),
        lambda: cohort(tmp_path, path or 0),
    ):  # fmt: skip
        assert "expected a path" in message_of(call)


@pytest.mark.parametrize("name", [None, 3, b"fox", ["fox"], "", "FOX", "../fox", "fox.csv", "x" * 5000], ids=str)
def test_what_is_no_name_is_refused_by_every_loader(name, tmp_path):
    for loader in (datasets.load, datasets.load_classic, datasets.load_table_set):
        assert message_of(inspect.unwrap(loader), name, tmp_path).startswith("dataset = ")


TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=6)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def ragged_bags(draw: st.DrawFn) -> list[tuple[str, int, np.ndarray]]:
    """Id, label, and features [K_i, D] of some bags."""
    width = draw(st.integers(1, 4))
    rows = st.lists(st.lists(FINITE, min_size=width, max_size=width), min_size=1, max_size=4)
    ids = draw(st.lists(TEXT, min_size=1, max_size=5, unique=True))
    return [(bag, draw(st.integers(0, 3)), np.array(draw(rows), np.float32)) for bag in ids]


@settings(deadline=None, max_examples=60)
@given(bags=ragged_bags(), header=st.booleans())
def test_any_ragged_bags_survive_writing_and_reading(tmp_path_factory, bags, header):
    ids, labels, features = zip(*bags, strict=True)
    path = tmp_path_factory.mktemp("csv") / "own.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = [[label, bag, *row] for bag, label, rows in bags for row in rows.tolist()]
        csv.writer(file).writerows([["bag_label", "bag_id", *"abcd"[: features[0].shape[1]]]] * header + lines)
    read = datasets.read_table(str(path))
    np.testing.assert_array_equal(read.x, np.concatenate(features), strict=True)
    np.testing.assert_array_equal(read.sizes, np.array([len(rows) for rows in features], np.int32), strict=True)
    np.testing.assert_array_equal(read.label, np.array(labels, np.int32), strict=True)
    assert (read.name, read.bag_names, read.position, read.class_names) == ("own", ids, None, ())
    assert (read.instance_label == -1).all()


def test_blank_lines_spaces_and_a_byte_order_mark_change_nothing(tmp_path):
    plain = datasets.read_table(write(tmp_path / "a.csv", "0,a,1,2\n1,b,3,4\n"))
    text = "\ufefflabel,bag,f1,f2\r\n-1, a , 1,2\r\n\r\n1.0,b,3e0,4\r\n \r\n"  # labels of -1 and 1 become 0 and 1
    other = datasets.read_table(write(tmp_path / "b.csv", text))
    assert_same_arrays(plain, other)
    assert plain.bag_names == other.bag_names


BAD_CSV = [
    ("", "expected lines of bag_label,bag_id,f1,f2,…, got an empty file"), ("label,id,f1\n", "a header and no bags"),
    ("0,a,1\n1,b\n", "an empty bag 'b' in line 2"), ("0,a,1,2\n1,b,,\n", "an empty bag 'b' in line 2"),
    ("0,a,1\n1,b,1\n\n0,a,2\n", "together, got bag 'a' in line 1 and, after other bags, in line 4 again"),
    ("0,a,1,2\n0,a,1,two\n", "expected numbers as features, got 'two' in line 2, column 4, of bag 'a'"),
    ("0,a,1,2\n0,a,1,\n", "'' in line 2, column 4"), ("0,a,1_0\n", "'1_0' in line 1"),
    ("0,a,1,2\n1,b,1,nan\n", "expected finite numbers of single precision, got feature 2 = nan in line 2 of bag 'b'"),
    ("0,a,1,2\n1,b,-inf,1\n", "feature 1 = -inf in line 2"), ("0,a,1e39\n", "feature 1 = 1e+39 in line 1"),
    ("0,a,1,2\n1,b,1,2,3\n", "expected 4 columns (as line 1 has), got 5 in line 2"),
    ("0;a;1\n", "expected at least 3 columns (lines of bag_label,bag_id,f1,f2,…), got 1 in line 1"),
    ("0,a,1\n1,b,1\n0,b,1\n", "expected one label for bag 'b', got 1 in line 2 and 0 in line 3"),
    ("0,a,1\nyes,b,1\n", "a whole number from 0 to 999, or -1 and 1, got 'yes' for bag 'b' in line 2"),
    ("0.5,a,1\n", "'0.5' for bag 'a'"), ("20481,1,1\n", "'20481'"), ("4294967296,a,1\n", "'4294967296'"),
    ("-1,a,1\n2,b,1\n", "got -1, 2"), ("0, ,1\n", "got none in line 1"), ('0,"a,1\n', "no plain text"),
]  # fmt: skip


@pytest.mark.parametrize("width", [167, 231])
@pytest.mark.parametrize("kind", ["csv", "data", "mat"])
def test_a_width_that_leaks_the_answer_is_refused_with_the_reason(tmp_path, width, kind):
    cells = ",".join(["1"] * width)
    contents = {
        "csv": f"0,a,{cells}\n1,b,{cells}\n", "data": f"a,1,{cells},0.\nb,1,{cells},1.\n",
        "mat": {"features": np.ones((2, width)), "bag_ids": [[1, 2]], "labels": [[-1, 1]]},
    }  # fmt: skip
    path = write(tmp_path / f"musk.{kind}", contents[kind])
    assert_parts(message_of(datasets.read_table, path), f"{path}': expected {width - 1} features", "leaks the answer")
    assert datasets.read_table(path, any_width=True).x.shape == (2, width)


MUSK = "MUSK-1,1_1,3,4,1.\nMUSK-1,1_2,5,6,1.\nNON-MUSK-2,2_1,7,8,0.\n"


def test_musk_as_uci_has_it(tmp_path):
    read = datasets.read_table(write(tmp_path / "clean.data", MUSK))
    assert read.x.tolist() == [[3, 4], [5, 6], [7, 8]]
    assert (read.sizes.tolist(), read.label.tolist()) == ([2, 1], [1, 0])
    assert read.bag_names == ("MUSK-1", "NON-MUSK-2")


MAT: dict[str, Any] = {
    "features": scipy.sparse.csc_matrix(np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])),
    "bag_ids": np.array([[4, 4, 7]], np.uint8),
    "labels": scipy.sparse.csc_matrix(np.array([[1.0, 1.0, -1.0]])),
    "comment": "not read",
}
DENSE_MAT = MAT | {key: MAT[key].toarray() for key in ("features", "labels")}


@pytest.mark.parametrize("content", [MAT, DENSE_MAT], ids=["sparse", "dense"])
@pytest.mark.parametrize("compressed", [False, True])
def test_andrews_files_may_be_sparse_dense_and_compressed(tmp_path, content, compressed):
    read = datasets.read_table(write(tmp_path / "a.mat", content, do_compression=compressed))
    assert read.x.tolist() == [[0, 1], [2, 0], [0, 0]]
    assert (read.sizes.tolist(), read.label.tolist(), read.bag_names) == ([2, 1], [1, 0], ("4", "7"))


BAD_INDEX = MAT["features"].copy()
BAD_INDEX.indices = BAD_INDEX.indices + 10**8
BAD_MAT = [
    ({"labels": [[1, -1, -1]]}, "one label for bag '4', got 1 in row 1 and -1 in row 2"),
    ({"bag_ids": [[4, 7, 4]], "labels": [[1, -1, 1]]}, "bag '4' in row 1 and, after other bags, in row 3 again"),
    ({"bag_ids": [[4, 4]]}, "bag_ids [1, 2], labels [1, 3], features [3, 2]"),
    ({"bag_ids": [[4, 4.0000001, 7]]}, "whole numbers as bag_ids, got 4.0000001 in row 2"),
    ({"features": [[1, 2], [3, np.nan], [5, 6]]}, "feature 2 = nan in row 2 of bag '4'"),
    ({"features": BAD_INDEX}, "indices do not fit its shape"), ({"labels": [[0.5, 0.5, 1]]}, "0.5 for bag '4' in"),
    ({"labels": ["abc"]}, "no matrix of real numbers"), ({"features": np.ones((3, 2)) * 1j}, "no matrix of real"),
    ({"labels": np.array([["a", 1, 2]], object)}, "no matrix of real numbers"),
]  # fmt: skip


OTHER_BAD_TABLES = [
    ("a.csv", None, "no such file"), ("a.mat", None, "no such file"), ("a.xlsx", None, ".csv, .data or .mat"),
    ("a.csv", b"\xff\xfe\x00", "no plain text"), ("a.mat", "no such thing\n" * 40, "cannot be read"),
    ("a.mat", {"features": np.ones((2, 2))}, "no bag_ids and no labels"),
    ("a.mat", b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400), "version 7.3"),
    ("a.data", MUSK.replace("6,1.", "6,0."), "bag 'MUSK-1', got 1 in line 1 and 0 in line 2"),
    ("a.data", "MUSK-1,1_1,1.\n", "got 3 in line 1"),
]  # fmt: skip
BAD_TABLES = [
    *(("bags.csv", *bad) for bad in BAD_CSV),
    *(("bags.mat", MAT | change, complaint) for change, complaint in BAD_MAT),
    *OTHER_BAD_TABLES,
]


@pytest.mark.parametrize(("name", "content", "complaint"), BAD_TABLES)
def test_a_bad_table_is_named_by_file_line_and_bag(tmp_path, name, content, complaint):
    path = write(tmp_path / name, content)
    assert_parts(message_of(datasets.read_table, path), path, complaint)


def test_a_folder_is_no_table(tmp_path):
    (tmp_path / "b.csv").mkdir()
    assert "got a folder" in message_of(datasets.read_table, tmp_path / "b.csv")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_mat_file_never_ends_the_process(tmp_path, compressed):
    path, draw, refused = write(tmp_path / "a.mat", MAT, do_compression=compressed), np.random.default_rng(0), 0
    sound = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(300):
        damaged = sound[: draw.integers(128, len(sound) + 1)].copy()
        damaged[draw.integers(128, len(sound), 3) % len(damaged)] ^= draw.integers(1, 256, 3).astype(np.uint8)
        path.write_bytes(damaged.tobytes())
        try:
            datasets.read_table(path)  # the format has no checksum: some damage makes another sound file
        except InputError as error:
            refused += "\n" not in str(error)
    assert refused > 200


# The classic benchmarks

# name: bags, positive, instances, features, constant features; smallest, median and largest bag
CLASSIC = {
    "musk1": (92, 47, 476, 166, 0, 2, 4, 40), "musk2": (102, 39, 6598, 166, 0, 1, 12, 1044),
    "elephant": (200, 100, 1391, 230, 120, 2, 7, 13), "fox": (200, 100, 1320, 230, 108, 2, 6, 13),
    "tiger": (200, 100, 1220, 230, 106, 1, 6, 13),
}  # fmt: skip


@needs_classic
@pytest.mark.parametrize("name", CLASSIC)
def test_the_classic_sets_are_the_known_ones_and_agree_with_their_originals(name):
    start = time.perf_counter()
    read = datasets.load_classic(name, str(SHARED))
    assert time.perf_counter() - start < 10  # 0.7 s for musk2 on an idle core
    sizes = (read.sizes.min(), int(np.median(read.sizes)), read.sizes.max())
    constant = (np.ptp(read.x, axis=0) == 0).sum()
    assert (len(read.sizes), read.label.sum(), *read.x.shape, constant, *sizes) == CLASSIC[name]
    assert (read.name, read.class_names[1].removeprefix("non-")) == (name, name.rstrip("12"))
    if name != "musk2":  # whose original is not among the files
        original = datasets.load_classic(name, CLASSIC_DIR / "original")
        assert original.source.endswith("clean1.data" if name == "musk1" else f"{name.upper()}.mat")
        assert_same_arrays(original, read)


CHANGES = [
    (r"42,-198", "42,-199", ["bags of SHA-256", "got as many of"]), (r"(?m)^(.)(.*)$", r"\1\2,\1", ["leaks the"]),
    (r"(?m)^0", "1", ["47 positive and 45 negative", "got 92 positive and 0 negative"]),
    (r"(?m),[^,]*$", "", ["with 166 features", "with 165 features"]),
    (r"\n.*\n$", "\n", ["of 476 instances", "of 475 instances"]),
    (r"(?s).*", "0,a,1\n1,b,2\n", ["got 1 positive and 1 negative bags of 2 instances with 1 features"]),
]  # fmt: skip


@needs_classic
@pytest.mark.parametrize(("pattern", "change", "parts"), CHANGES)
def test_a_table_that_is_not_the_published_one_is_refused_under_its_name(tmp_path, pattern, change, parts):
    text = (CLASSIC_DIR / "musk1.csv").read_text()
    path = write(tmp_path / "musk1.csv", re.sub(pattern, change, text, count=0 if "(?m)" in pattern else 1))
    message = message_of(datasets.load_classic, "musk1", tmp_path)
    assert_parts(message, path, *parts)
    assert message == message_of(datasets.load_table_set, "musk1", tmp_path)
    assert "leaks" in message or "read_table(path), under its own name" in message


@needs_classic
def test_the_order_of_bags_and_instances_does_not_make_another_set(tmp_path):
    lines = (CLASSIC_DIR / "musk1.csv").read_text().splitlines(keepends=True)
    write(tmp_path / "musk1.csv", "".join(reversed(lines)))
    assert datasets.load_classic("musk1", tmp_path).x.shape == (476, 166)


@pytest.mark.parametrize("folder", ["", "classic", "classic/original"])
@pytest.mark.parametrize(("file", "text"), [("musk2.csv", "0,a,1\n"), ("clean2.data", "a,1,1,0.\n")])
def test_a_classic_set_is_looked_for_below_the_data_directory(tmp_path, folder, file, text):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    path = write(tmp_path / folder / file, text)
    assert_parts(message_of(datasets.load_classic, "musk2", tmp_path), path, "musk2 as published")


ABSENT = [
    (datasets.load_classic, "musk2", ["musk2.csv or clean2.data", "UCI machine learning repository"]),
    (datasets.load_classic, "fox", ["fox.csv or FOX.mat", "Andrews"]),
    (datasets.load_table_set, "gone", ["dataset = 'gone'", "musk1"]),
    (lambda _, folder: datasets.load_colon(folder), "", ["nuclei.csv", "images/NAME.png", "CRCHistoPhenotypes"]),
]


@pytest.mark.parametrize(("load", "name", "parts"), ABSENT)
def test_a_set_that_is_absent_names_the_files_and_their_origin(tmp_path, load, name, parts):
    assert_parts(message_of(load, name, tmp_path), tmp_path, *parts)
    write(tmp_path / "own.csv", "0,a,1\n1,b,2\n")
    assert datasets.load_table_set("own", tmp_path).name == "own"


# Colon histology

NUCLEI = "image,class,x,y\nb,others,1,1\nb,epithelial,20.4,17.6\na,fibroblast,30,40\na,inflammatory,0.3,40.4\n"


def make_colon(folder: Path, nuclei: str = NUCLEI) -> Path:
    """Two images, 40 high and 30 wide; the colour of a pixel says its row, its column, and its image."""
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate("ab"):
        pixels = np.moveaxis(np.mgrid[:40, :30, number : number + 1].astype(np.uint8), 0, -1)[:, :, 0]
        PIL.Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    write(folder / "nuclei.csv", nuclei)
    return folder


@pytest.mark.parametrize("below", ["", "colon"])
def test_patches_are_centred_on_their_nuclei(tmp_path, below):
    make_colon(tmp_path / "data" / below)
    read = datasets.load_colon(str(tmp_path / "data"))
    # Row, column and image of the middle pixel, from 0.
    assert read.x[:, 13, 13].tolist() == [[0, 0, 1], [17, 19, 1], [39, 29, 0], [39, 0, 0]]
    assert (read.bag_names, read.sizes.tolist(), read.label.tolist()) == (("b", "a"), [2, 2], [1, 0])
    assert read.instance_label.tolist() == [0, 1, 0, 0]
    assert read.class_names == ("no epithelial nucleus", "epithelial nucleus")
    assert read.instance_class is not None and read.position is not None
    kinds = [read.instance_class_names[i] for i in read.instance_class]
    assert kinds == ["others", "epithelial", "fibroblast", "inflammatory"]
    np.testing.assert_array_equal(read.position[1], np.array([20.4, 17.6], np.float32))
    # Inside the image a patch is a part of it; beyond the border it is mirrored at the outermost pixel.
    assert read.x[1, :, 0, 0].tolist() == list(range(4, 31))
    assert read.x[1, 0, :, 1].tolist() == [*range(6, 30), 28, 27, 26]
    assert read.x[0, 0, :, 1].tolist() == [*range(13, 0, -1), *range(14)]


BAD_NUCLEI = [
    ("", "an empty file"), ("a,others,1,1\n", "line 1 'a,others,1,1'"), ("image,class,x,y\n", "and 0 more"),
    (NUCLEI + "a,others,3\n", "expected 4 columns (image,class,x,y), got 3 in line 6"),
    (NUCLEI + "a,epithelail,3,3\n", "inflammatory, others, got 'epithelail' in line 6 of image 'a'"),
    (NUCLEI + "a,others,three,3\n", "expected numbers as x and y, got 'three' and '3' in line 6 of image 'a'"),
    (NUCLEI + "a,others,nan,3\n", "to 30 and y from 1 to 40, got x = nan, y = 3 in line 6, outside of image 'a'"),
    (NUCLEI + "a,others,31.2,3\n", "x = 31.2, y = 3 in line 6"), (NUCLEI + "a,others,3,-0.1\n", "y = -0.1 in line 6"),
    (NUCLEI + "b,others,3,3\n", "in line 6 again"), (NUCLEI + "c,others,3,3\n", "c.png, which line 6 names"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "complaint"), BAD_NUCLEI)
def test_a_bad_nuclei_table_is_named_by_line_and_image(tmp_path, text, complaint):
    make_colon(tmp_path, text)
    assert_parts(message_of(datasets.load_colon, tmp_path), tmp_path / "nuclei.csv", complaint)


def test_an_image_that_is_damaged_grey_or_not_in_the_nuclei_table_is_named(tmp_path):
    images = make_colon(tmp_path) / "images"
    (images / "._a.png").touch()  # is not looked at
    datasets.load_colon(tmp_path)
    PIL.Image.new("RGB", (30, 40)).save(images / "z.png")
    assert_parts(message_of(datasets.load_colon, tmp_path), images / "z.png", "a nucleus of each image")
    (images / "z.png").unlink()
    sound = (images / "b.png").read_bytes()
    for content in (b"", b"no picture", sound[: len(sound) // 2]):
        path = write(images / "b.png", content)
        assert_parts(message_of(datasets.load_colon, tmp_path), path, "expected a sound picture")
    PIL.Image.new("L", (30, 40)).save(images / "b.png")
    assert "of the kind RGB, got L" in message_of(datasets.load_colon, tmp_path)


@needs_colon
def test_the_colon_set_is_the_known_one():
    read = datasets.load_colon(SHARED)
    assert (read.x.shape, len(read.sizes), read.label.sum()) == ((22_444, 27, 27, 3), 100, 51)
    assert read.instance_class is not None
    assert np.bincount(read.instance_class).tolist() == [7722, 5712, 6971, 2039]
    assert (read.instance_class_names, read.instance_label.sum()) == (colon.CLASSES, 7722)
    with PIL.Image.open(SHARED / "colon" / "images" / "img1.png") as image:
        pixels = np.asarray(image)
    # The first nucleus of the table: x = 148.783, y = 181.478.
    np.testing.assert_array_equal(read.x[0], pixels[180 - 13 : 180 + 14, 148 - 13 : 148 + 14])
