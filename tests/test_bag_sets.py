"""Bags as the world has them: tables, the classic benchmarks, colon histology, HDF5 features, and every bad input."""

import csv
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax import datasets
from mil_jax.datasets import colon, tables
from mil_jax.datasets.records import BagSet
from mil_jax.errors import InputError

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
needs_classic = pytest.mark.skipif(not (SHARED / "classic").is_dir(), reason="the classic sets are absent")
needs_colon = pytest.mark.skipif(not (SHARED / "colon").is_dir(), reason="the colon images are absent")


def message_of(call: Callable[[], object]) -> str:
    """The one line of the InputError that a call ends in."""
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def assert_same_arrays(one: BagSet, other: BagSet) -> None:
    for field in ("x", "sizes", "label", "instance_label"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field), strict=True)
    assert one.content_hash == other.content_hash


# The record


def test_the_hash_knows_every_array_and_no_name():
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    one = datasets.build_bag_set("a", x, [1, 2], [0, 1], ["p", "q"], "here")
    assert one.content_hash == datasets.build_bag_set("b", x, [1, 2], [0, 1], ["r", "s"], "there").content_hash
    place, kind = np.zeros((3, 2), np.float32), np.zeros(3, np.int32)
    others = [
        datasets.build_bag_set("a", x + 1, [1, 2], [0, 1], ["p", "q"], ""),
        datasets.build_bag_set("a", x, [2, 1], [0, 1], ["p", "q"], ""),
        datasets.build_bag_set("a", x, [1, 2], [1, 0], ["p", "q"], ""),
        datasets.build_bag_set("a", x, [1, 2], [0, 1], ["p", "q"], "", instance_label=kind),
        datasets.build_bag_set("a", x, [1, 2], [0, 1], ["p", "q"], "", instance_class=kind),
        datasets.build_bag_set("a", x, [1, 2], [0, 1], ["p", "q"], "", position=place),
    ]
    assert len({one.content_hash, *(other.content_hash for other in others)}) == 7


# Tables

TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=6)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def ragged_bags(draw: st.DrawFn) -> tuple[list[str], list[int], list[np.ndarray]]:
    """Ids, labels, and features [K_i, D] of some bags."""
    width = draw(st.integers(1, 4))
    ids = draw(st.lists(TEXT, min_size=1, max_size=5, unique=True))
    labels = [draw(st.integers(0, 3)) for _ in ids]
    rows = st.lists(st.lists(FINITE, min_size=width, max_size=width), min_size=1, max_size=4)
    return ids, labels, [np.array(draw(rows), np.float32) for _ in ids]


@settings(deadline=None, max_examples=60)
@given(bags=ragged_bags(), header=st.booleans())
def test_any_ragged_bags_survive_writing_and_reading(tmp_path_factory, bags, header):
    ids, labels, features = bags
    path = tmp_path_factory.mktemp("csv") / "own.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if header:
            writer.writerow(["bag_label", "bag_id", *(f"f{i}" for i in range(features[0].shape[1]))])
        for bag, label, rows in zip(ids, labels, features, strict=True):
            writer.writerows([label, bag, *row] for row in rows.tolist())
    read = datasets.read_table(path)
    np.testing.assert_array_equal(read.x, np.concatenate(features), strict=True)
    np.testing.assert_array_equal(read.sizes, np.array([len(rows) for rows in features], np.int32), strict=True)
    np.testing.assert_array_equal(read.label, np.array(labels, np.int32), strict=True)
    assert read.bag_names == tuple(ids)
    assert read.name == "own"
    assert (read.instance_label == -1).all()
    assert read.position is None


def test_labels_of_minus_one_and_one_become_zero_and_one(tmp_path):
    read = datasets.read_table(write(tmp_path / "a.csv", "-1,a,0.5\n1.0,b,1\n1,b,2\n"))
    assert read.label.tolist() == [0, 1]


def test_blank_lines_spaces_and_a_byte_order_mark_change_nothing(tmp_path):
    plain = datasets.read_table(write(tmp_path / "a.csv", "0,a,1,2\n1,b,3,4\n"))
    other = datasets.read_table(
        write(tmp_path / "b.csv", "\ufefflabel,bag,f1,f2\r\n0, a , 1,2\r\n\r\n1,b,3e0,4\r\n \r\n")
    )
    assert_same_arrays(plain, other)
    assert plain.bag_names == other.bag_names


BAD_CSV = {
    "empty file": ("", ["it is empty", "bag_label,bag_id,f1"]),
    "only a header": ("bag_label,bag_id,f1\n", ["a header and no bags"]),
    "an empty bag": ("0,a,1\n1,b\n", ["line 2", "bag 'b' is empty"]),
    "a bag of blanks": ("0,a,1,2\n1,b,,\n", ["line 2", "bag 'b' is empty"]),
    "a bag that comes back": ("0,a,1\n1,b,1\n\n0,a,2\n", ["line 4", "bag 'a' comes back", "line 1", "together"]),
    "a word among numbers": ("0,a,1,2\n0,a,1,two\n", ["line 2", "bag 'a'", "'two' in column 4", "a number would do"]),
    "a blank among numbers": ("0,a,1,2\n0,a,1,\n", ["line 2", "'' in column 4"]),
    "nan": ("0,a,1,2\n1,b,1,nan\n", ["line 2", "feature 2 of bag 'b' is nan", "finite"]),
    "infinite": ("0,a,1,2\n1,b,-inf,1\n", ["line 2", "feature 1 of bag 'b' is -inf"]),
    "beyond single precision": ("0,a,1e39\n", ["line 1", "is 1e+39", "single precision"]),
    "ragged": ("0,a,1,2\n1,b,1,2,3\n", ["line 2 has 5 columns", "line 1 has 4"]),
    "one column": ("0;a;1\n", ["line 1 has 1 of at least 3 columns", "bag_label,bag_id"]),
    "contradiction": (
        "0,a,1\n1,b,1\n0,b,1\n",
        ["line 3", "bag 'b' has the label 0", "1 in line 2", "one label"],
    ),
    "a label in words": ("0,a,1\nyes,b,1\n", ["line 2", "bag 'b' has the label 'yes'", "whole numbers"]),
    "half a label": ("0.5,a,1\n", ["line 1", "'0.5'"]),
    "columns swapped": ("20481,1,1\n", ["line 1", "'20481'", "at most 999"]),
    "mixed labels": ("-1,a,1\n2,b,1\n", ["labels -1, 2"]),
    "no id": ("0, ,1\n", ["line 1 has no bag id"]),
    "an open quote": ('0,"a,1\n', ["no plain text"]),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv_is_named_by_file_line_and_bag(tmp_path, case):
    text, parts = BAD_CSV[case]
    path = write(tmp_path / "bags.csv", text)
    message = message_of(lambda: datasets.read_table(path))
    for part in (str(path), *parts):
        assert part in message


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    assert "no plain text" in message_of(lambda: datasets.read_table(tmp_path / "a.csv"))


def test_a_file_that_is_absent_or_of_another_kind_is_refused(tmp_path):
    assert "no such file" in message_of(lambda: datasets.read_table(tmp_path / "a.csv"))
    assert "no such file" in message_of(lambda: datasets.read_table(tmp_path / "a.mat"))
    assert ".csv, .data, .mat would do" in message_of(lambda: datasets.read_table(tmp_path / "a.xlsx"))
    (tmp_path / "b.csv").mkdir()
    assert "cannot be read" in message_of(lambda: datasets.read_table(tmp_path / "b.csv"))


@pytest.mark.parametrize("width", [167, 231])
@pytest.mark.parametrize("kind", ["csv", "data", "mat"])
def test_a_width_that_leaks_the_answer_is_refused_with_the_reason(tmp_path, width, kind):
    path, cells = tmp_path / f"musk.{kind}", ",".join(["1"] * width)
    if kind == "mat":
        scipy.io.savemat(path, {"features": np.ones((2, width)), "bag_ids": [[1, 2]], "labels": [[-1, 1]]})
    else:
        path.write_text({"csv": f"0,a,{cells}\n1,b,{cells}\n", "data": f"a,1,{cells},0.\nb,1,{cells},1.\n"}[kind])
    message = message_of(lambda: datasets.read_table(path))
    for part in (str(path), f"{width} features", f"{width - 1} features", "leaks the answer"):
        assert part in message
    assert datasets.read_table(path, any_width=True).x.shape == (2, width)


def test_musk_as_uci_has_it(tmp_path):
    lines = "MUSK-1,1_1,3,4,1.\nMUSK-1,1_2,5,6,1.\nNON-MUSK-2,2_1,7,8,0.\n"
    read = datasets.read_table(write(tmp_path / "clean.data", lines))
    assert read.x.tolist() == [[3, 4], [5, 6], [7, 8]]
    assert (read.sizes.tolist(), read.label.tolist()) == ([2, 1], [1, 0])
    assert read.bag_names == ("MUSK-1", "NON-MUSK-2")
    contradiction = write(tmp_path / "bad.data", lines.replace("5,6,1.", "5,6,0."))
    assert "line 2: bag 'MUSK-1' has the label 0" in message_of(lambda: datasets.read_table(contradiction))
    short = write(tmp_path / "short.data", "MUSK-1,1_1,1.\n")
    assert "line 1 has 3 of at least 4 columns" in message_of(lambda: datasets.read_table(short))


MAT = {
    "features": scipy.sparse.csc_matrix(np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]])),
    "bag_ids": np.array([[4, 4, 7]], np.uint8),
    "labels": scipy.sparse.csc_matrix(np.array([[1.0, 1.0, -1.0]])),
}


def test_andrews_files_may_be_sparse_or_dense(tmp_path):
    scipy.io.savemat(tmp_path / "sparse.mat", MAT)
    dense = {key: np.asarray(value.toarray() if hasattr(value, "toarray") else value) for key, value in MAT.items()}
    scipy.io.savemat(tmp_path / "dense.mat", dense)
    sparse = datasets.read_table(tmp_path / "sparse.mat")
    assert_same_arrays(sparse, datasets.read_table(tmp_path / "dense.mat"))
    assert sparse.x.tolist() == [[0, 1], [2, 0], [0, 0]]
    assert (sparse.sizes.tolist(), sparse.label.tolist(), sparse.bag_names) == ([2, 1], [1, 0], ("4", "7"))


BAD_MAT = {
    "contradiction": ({"labels": [[1, -1, -1]]}, ["row 2: bag '4' has the label -1", "1 in row 1"]),
    "a bag that comes back": ({"bag_ids": [[4, 7, 4]], "labels": [[1, -1, 1]]}, ["row 3: bag '4' comes back"]),
    "nan": ({"features": [[1, 2], [3, np.nan], [5, 6]]}, ["row 2: feature 2 of bag '4' is nan"]),
    "lengths": ({"bag_ids": [[4, 4]]}, ["shape [3, 2], with 2 bag_ids and 3 labels"]),
    "words": ({"labels": ["a"]}, ["are matrices", "features, bag_ids, labels would do"]),
    "a label": ({"labels": [[0.5, 0.5, 1]]}, ["row 1: bag '4' has the label 0.5"]),
}


@pytest.mark.parametrize("case", BAD_MAT)
def test_bad_mat_is_named_by_file_row_and_bag(tmp_path, case):
    change, parts = BAD_MAT[case]
    path = tmp_path / "bad.mat"
    scipy.io.savemat(path, MAT | change)
    message = message_of(lambda: datasets.read_table(path))
    for part in (str(path), *parts):
        assert part in message


def test_a_mat_file_that_is_none_or_lacks_a_key_is_refused(tmp_path):
    path = write(tmp_path / "a.mat", "no such thing\n" * 40)
    assert "cannot be read" in message_of(lambda: datasets.read_table(path))
    scipy.io.savemat(path, {"features": np.ones((2, 2))})
    assert "lacks bag_ids, labels" in message_of(lambda: datasets.read_table(path))
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    assert "version 7.3" in message_of(lambda: datasets.read_table(path))


# The classic benchmarks

# name: bags, positive, instances, features, constant features; smallest, median and largest bag
CLASSIC = {
    "musk1": (92, 47, 476, 166, 0, 2, 4, 40),
    "musk2": (102, 39, 6598, 166, 0, 1, 12, 1044),
    "elephant": (200, 100, 1391, 230, 120, 2, 7, 13),
    "fox": (200, 100, 1320, 230, 108, 2, 6, 13),
    "tiger": (200, 100, 1220, 230, 106, 1, 6, 13),
}


@needs_classic
@pytest.mark.parametrize("name", CLASSIC)
def test_the_classic_sets_are_the_known_ones(name):
    start = time.perf_counter()
    read = datasets.load_classic(name, SHARED)
    assert time.perf_counter() - start < 10  # 0.7 s for musk2 on an idle core
    sizes = (read.sizes.min(), int(np.median(read.sizes)), read.sizes.max())
    constant = (np.ptp(read.x, axis=0) == 0).sum()
    assert (len(read.sizes), read.label.sum(), *read.x.shape, constant, *sizes) == CLASSIC[name]
    assert read.sizes.sum() == len(read.x)
    assert read.name == name


@needs_classic
@pytest.mark.parametrize(
    ("name", "original"),
    [("musk1", "clean1.data"), ("elephant", "ELEPHANT.mat"), ("fox", "FOX.mat"), ("tiger", "TIGER.mat")],
)
def test_csv_and_public_original_agree(name, original):
    path = SHARED / "classic" / "original" / original
    assert_same_arrays(tables.read_table(path), datasets.load_classic(name, SHARED))


@pytest.mark.parametrize("folder", ["", "classic", "classic/original"])
@pytest.mark.parametrize("file", ["musk2.csv", "clean2.data"])
def test_a_classic_set_is_found_below_the_data_directory(tmp_path, folder, file):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    write(tmp_path / folder / file, {"musk2.csv": "0,a,1\n", "clean2.data": "a,1,1,0.\n"}[file])
    read = datasets.load_classic("musk2", tmp_path)
    assert (read.name, read.bag_names) == ("musk2", ("a",))
    assert file in read.source


def test_a_classic_set_that_is_absent_names_the_files_and_their_origin(tmp_path):
    message = message_of(lambda: datasets.load_classic("musk2", tmp_path))
    for part in (str(tmp_path), "musk2.csv or clean2.data", "UCI machine learning repository"):
        assert part in message
    message = message_of(lambda: datasets.load_classic("fox", tmp_path))
    assert "fox.csv or FOX.mat" in message
    assert "Andrews" in message
    message = message_of(lambda: datasets.load_classic("lion", tmp_path))
    assert "musk1, musk2, elephant, fox, tiger would do" in message


# Colon histology

NUCLEI = "image,class,x,y\nb,others,1,1\nb,epithelial,20.4,17.6\na,fibroblast,30,40\na,inflammatory,0.3,40.4\n"


def make_colon(folder: Path, nuclei: str = NUCLEI) -> Path:
    """Two images, 40 high and 30 wide; the colour of a pixel says its row and column."""
    (folder / "images").mkdir(parents=True)
    rows, columns = np.mgrid[:40, :30].astype(np.uint8)
    for number, name in enumerate("ab"):
        image = np.stack([rows, columns, np.full_like(rows, number)], axis=-1)
        PIL.Image.fromarray(image).save(folder / "images" / f"{name}.png")
    write(folder / "nuclei.csv", nuclei)
    return folder


@pytest.mark.parametrize("below", ["", "colon"])
def test_patches_are_centred_on_their_nuclei(tmp_path, below):
    make_colon(tmp_path / "data" / below)
    read = datasets.load_colon(tmp_path / "data")
    assert read.x.shape == (4, 27, 27, 3)
    assert read.x.dtype == np.uint8
    # Row, column and image of the middle pixel, from 0.
    assert read.x[:, 13, 13].tolist() == [[0, 0, 1], [17, 19, 1], [39, 29, 0], [39, 0, 0]]
    assert (read.bag_names, read.sizes.tolist(), read.label.tolist()) == (("b", "a"), [2, 2], [1, 0])
    assert read.instance_label.tolist() == [0, 1, 0, 0]
    assert read.instance_class is not None
    assert [read.instance_class_names[i] for i in read.instance_class] == [
        "others", "epithelial", "fibroblast", "inflammatory",
    ]  # fmt: skip
    assert read.position is not None
    np.testing.assert_array_equal(read.position[1], np.array([20.4, 17.6], np.float32))
    # Inside the image a patch is a part of it; beyond the border it is mirrored at the outermost pixel.
    assert read.x[1, :, 0, 0].tolist() == list(range(4, 31))
    assert read.x[1, 0, :, 1].tolist() == [*range(6, 30), 28, 27, 26]
    assert read.x[0, 0, :, 1].tolist() == [*range(13, 0, -1), *range(14)]


BAD_NUCLEI = {
    "empty": ("", ["it is empty"]),
    "no header": ("a,others,1,1\n", ["line 1 is 'a,others,1,1'", "image,class,x,y"]),
    "no nuclei": ("image,class,x,y\n", ["a header and no nuclei"]),
    "ragged": (NUCLEI + "a,others,3\n", ["line 6 of image 'a' has 3 columns"]),
    "another class": (NUCLEI + "a,epithelail,3,3\n", ["line 6 of image 'a'", "'epithelail'", "inflammatory"]),
    "a word": (NUCLEI + "a,others,three,3\n", ["line 6 of image 'a'", "x = 'three'", "numbers would do"]),
    "nan": (NUCLEI + "a,others,nan,3\n", ["line 6", "x = nan", "outside of image 'a' of 30 x 40"]),
    "outside": (NUCLEI + "a,others,31.2,3\n", ["line 6", "x = 31.2", "outside of image 'a'"]),
    "above": (NUCLEI + "a,others,3,-0.1\n", ["line 6", "y = -0.1", "outside of image 'a'"]),
    "an image that comes back": (NUCLEI + "b,others,3,3\n", ["line 6: bag 'b' comes back", "line 2"]),
    "an image that is absent": (NUCLEI + "c,others,3,3\n", ["line 6 names the image 'c'", "no ", "c.png"]),
}


@pytest.mark.parametrize("case", BAD_NUCLEI)
def test_a_bad_nuclei_table_is_named_by_line_and_image(tmp_path, case):
    text, parts = BAD_NUCLEI[case]
    make_colon(tmp_path, text)
    message = message_of(lambda: datasets.load_colon(tmp_path))
    for part in (str(tmp_path / "nuclei.csv"), *parts):
        assert part in message


def test_an_image_that_the_nuclei_table_does_not_know_is_named(tmp_path):
    make_colon(tmp_path)
    (tmp_path / "images" / "._a.png").touch()  # is not looked at
    datasets.load_colon(tmp_path)
    PIL.Image.new("RGB", (30, 40)).save(tmp_path / "images" / "z.png")
    message = message_of(lambda: datasets.load_colon(tmp_path))
    for part in (str(tmp_path / "images" / "z.png"), "nuclei.csv has no nucleus of it", "would do"):
        assert part in message


def test_a_damaged_or_grey_image_is_named(tmp_path):
    path = make_colon(tmp_path) / "images" / "b.png"
    sound = path.read_bytes()
    for content in (b"", b"no picture", sound[: len(sound) // 2]):
        path.write_bytes(content)
        message = message_of(lambda: datasets.load_colon(tmp_path))
        assert str(path) in message
        assert "no sound picture" in message
    PIL.Image.new("L", (30, 40)).save(path)
    assert "of the kind L: RGB would do" in message_of(lambda: datasets.load_colon(tmp_path))


def test_a_folder_without_nuclei_is_named(tmp_path):
    message = message_of(lambda: datasets.load_colon(tmp_path))
    for part in (str(tmp_path), "nuclei.csv", "images/NAME.png", "CRCHistoPhenotypes"):
        assert part in message


@needs_colon
def test_the_colon_set_is_the_known_one():
    read = datasets.load_colon(SHARED)
    assert read.x.shape == (22_444, 27, 27, 3)
    assert (len(read.sizes), read.label.sum()) == (100, 51)
    assert read.instance_class_names == colon.CLASSES
    assert read.instance_class is not None
    assert np.bincount(read.instance_class).tolist() == [7722, 5712, 6971, 2039]
    assert read.instance_label.sum() == 7722
    with PIL.Image.open(SHARED / "colon" / "images" / "img1.png") as image:
        pixels = np.asarray(image)
    # The first nucleus of the table: x = 148.783, y = 181.478.
    np.testing.assert_array_equal(read.x[0], pixels[180 - 13 : 180 + 14, 148 - 13 : 148 + 14])


# Features in HDF5


def make_features(folder: Path, **bags: dict[str, np.ndarray]) -> Path:
    """A folder of BAG.h5 with some data sets each."""
    folder.mkdir()
    for bag, content in bags.items():
        with h5py.File(folder / f"{bag}.h5", "w") as file:
            for key, values in content.items():
                file[key] = values
    return folder


def feature_rows(count: int, width: int = 3) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, width)).astype(np.float32)


def test_a_folder_of_features(tmp_path):
    places = [np.array([[1, 2], [70_001, 90_003]]), np.array([[5, 6]])]
    folder = make_features(
        tmp_path / "uni",
        b={"features": feature_rows(1)[None].astype(np.float16), "coords": places[1][None]},  # as TRIDENT once wrote
        a={"feats": feature_rows(2), "coords": places[0]},  # as STAMP writes
    )
    labels = write(tmp_path / "labels.csv", "bag_id,label\nb,1\na,0\nc,1\n")
    read = datasets.load_features(folder, labels)
    assert (read.name, read.bag_names) == ("uni", ("a", "b"))
    assert (read.sizes.tolist(), read.label.tolist()) == ([2, 1], [0, 1])
    np.testing.assert_array_equal(read.x[:2], feature_rows(2), strict=True)
    np.testing.assert_array_equal(read.x[2:], feature_rows(1).astype(np.float16).astype(np.float32), strict=True)
    np.testing.assert_array_equal(read.position, np.concatenate(places).astype(np.float32), strict=True)
    assert (read.instance_label == -1).all()
    assert "1 of its bags have no file" in read.source


def test_features_under_another_name_and_without_places(tmp_path):
    folder = make_features(tmp_path / "h5", a={"embedding": feature_rows(2)})
    labels = write(tmp_path / "labels.csv", "a,-1\n")
    read = datasets.load_features(folder, labels, "own", keys=("embedding",))
    assert (read.name, read.label.tolist(), read.position) == ("own", [0], None)


BAD_FEATURES = {
    "no data set": ({"patches": feature_rows(2)}, ["no data set features or feats, but patches"]),
    "nothing": ({}, ["but nothing"]),
    "empty bag": ({"features": feature_rows(0)}, ["bag 'b' is empty", "[0, 3]"]),
    "another width": ({"features": feature_rows(2, 4)}, ["bag 'b' has 4 features, 'a' has 3"]),
    "another shape": ({"features": np.zeros((2, 3, 3))}, ["float64[2, 3, 3]", "[K, D]"]),
    "words": ({"features": np.array([[b"x"]])}, ["numbers [K, D]"]),
    "a group": ({"features/a": feature_rows(2)}, ["features is a group"]),
    "nan": ({"features": np.array([[1, 2, 3], [1, np.nan, 3]])}, ["bag 'b': features is NaN or infinite in row 1"]),
    "infinite": ({"features": np.full((2, 3), 1e39)}, ["bag 'b': features is NaN or infinite in row 0"]),
    "too few places": ({"features": feature_rows(2), "coords": feature_rows(1, 2)}, ["coords is float32[1, 2]"]),
}


@pytest.mark.parametrize("case", BAD_FEATURES)
def test_bad_features_are_named_by_file_and_bag(tmp_path, case):
    content, parts = BAD_FEATURES[case]
    folder = make_features(tmp_path / "h5", a={"features": feature_rows(2)}, b=content)
    labels = write(tmp_path / "labels.csv", "a,0\nb,1\n")
    message = message_of(lambda: datasets.load_features(folder, labels))
    for part in (str(folder / "b.h5"), *parts):
        assert part in message


def test_a_file_that_is_no_hdf5_or_a_folder_without_is_named(tmp_path):
    folder, labels = make_features(tmp_path / "h5"), write(tmp_path / "labels.csv", "a,0\n")
    assert "it holds no .h5 file" in message_of(lambda: datasets.load_features(folder, labels))
    write(folder / "a.h5", "no such thing")
    message = message_of(lambda: datasets.load_features(folder, labels))
    assert str(folder / "a.h5") in message
    assert "cannot be read as HDF5" in message


BAD_LABELS = {
    "a slide without label": ("a,0\n", ["b.h5", "no label of bag 'b'", "b,LABEL"]),
    "columns": ("a,0\nb,1,2\n", ["labels.csv", "line 2 has 3 columns"]),
    "words": ("bag,label\na,0\nb,tumour\n", ["labels.csv", "line 3: bag 'b' has the label 'tumour'"]),
    "contradiction": ("a,0\nb,1\na,1\n", ["labels.csv", "line 3: bag 'a' has the label 1 here, but 0"]),
    "mixed": ("a,-1\nb,0\n", ["labels.csv", "the labels -1, 0"]),
    "absent": (None, ["labels.csv", "no such file"]),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_bad_labels_of_features_are_named(tmp_path, case):
    text, parts = BAD_LABELS[case]
    folder = make_features(tmp_path / "h5", a={"features": feature_rows(2)}, b={"features": feature_rows(3)})
    if text is not None:
        write(tmp_path / "labels.csv", text)
    message = message_of(lambda: datasets.load_features(folder, tmp_path / "labels.csv"))
    for part in parts:
        assert part in message
