"""Cohorts of files: the same bags from every layout and every table, and each bad file, row and column by name."""

import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import assert_parts, message_of
from test_tensors import save, tensor

from mil_jax.datasets import BagSet, Cohort, Columns, load_cohort
from mil_jax.datasets.bag_sources import BagSource
from mil_jax.datasets.cohort import cohort_of_arrays, read_instance_labels
from mil_jax.datasets.digits_cohort import digits_cohort
from mil_jax.memory import is_finite

COHORT = Path(__file__).parents[1].parent / "shared" / "data" / "cohort"
needs_cohort = pytest.mark.skipif(not COHORT.is_dir(), reason="the cohort is absent")
Bags = dict[str, tuple[np.ndarray, np.ndarray]]
X = np.arange(6, dtype=np.float32).reshape(3, 2)


def make_bags(*sizes: int, width: int = 3) -> Bags:
    """Features that are float16 and float32 alike, and whole numbers as places, of the bags a, b, c and so on."""
    draw = np.random.default_rng(0)
    return {
        name: (draw.integers(-99, 99, (size, width)).astype(np.float16), draw.integers(0, 99_999, (size, 2)))
        for name, size in zip("abcdefgh", sizes, strict=False)
    }


def write_h5(path: Path, arrays: dict[str, Any], *, about: dict | None = None, chunks: Any = None, **of_coords: Any):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, chunks=chunks if np.size(values) else None)
        file.attrs.update(about or {})
        if of_coords:
            file["coords"].attrs.update(of_coords)


def write_clam(folder: Path, name: str, x: np.ndarray, at: np.ndarray) -> None:
    of_coords = {"patch_size": 8, "downsample": (4.0, 4.0)}
    write_h5(folder / "h5_files" / f"{name}.h5", {"features": x, "coords": at.astype(np.int32)}, **of_coords)
    write_pt(folder / "pt_files", name, -x, at)  # not read where there is HDF5


def write_trident(folder: Path, name: str, x: np.ndarray, at: np.ndarray) -> None:
    arrays = {"features": x.astype(np.float32)[None], "coords": at[None]}
    write_h5(folder / f"{name}.h5", arrays, chunks=True, patch_size=256, patch_size_level0=32)


def write_stamp(folder: Path, name: str, x: np.ndarray, at: np.ndarray) -> None:
    arrays = {"feats": x, "coords": at.astype(np.float32)}
    write_h5(folder / f"{name}.h5", arrays, about={"unit": "um", "tile_size_um": 32.0, "tile_size_px": 224})


def write_torchmil(folder: Path, name: str, x: np.ndarray, at: np.ndarray) -> None:
    arrays = {"features": x, "coords": at, "labels": np.array(ord(name[-1]) % 2)}
    for kind, values in (arrays | {"patch_labels": np.zeros(len(x), int)}).items():
        (folder / kind).mkdir(parents=True, exist_ok=True)
        np.save(folder / kind / f"{name}.npy", values)


def write_torchmil_h5(folder: Path, name: str, x: np.ndarray, at: np.ndarray) -> None:
    write_h5(
        folder / f"{name}.h5", {"features": x, "coords": at, "labels": [1.0], "patch_labels": np.zeros(len(x), int)}
    )


def write_npy(folder: Path, name: str, x: np.ndarray, at: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", np.asfortranarray(x).astype(">f8"))


def write_npz(folder: Path, name: str, x: np.ndarray, at: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", feats=x, position=at)


def write_pt(folder: Path, name: str, x: np.ndarray, at: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    (count, width), code = x.shape, b"}X\x08\0\0\0features"
    code += tensor(x.shape, (width, 1), kind="HalfStorage", count=x.size) + b"sX\x06\0\0\0coords"
    code += tensor((count, 2), (2, 1), kind="LongStorage", record="1", count=2 * count) + b"s"
    save(folder / f"{name}.pt", code, x.astype("<f2").tobytes(), at.astype("<i8").tobytes())


LAYOUTS: dict[Callable, tuple[str, float, type]] = {
    write_clam: ("px", 32, np.float16), write_trident: ("px", 32, np.float32), write_stamp: ("um", 32, np.float16),
    write_torchmil: ("px", 0, np.float16), write_torchmil_h5: ("px", 0, np.float16), write_npy: ("", 0, np.float32),
    write_npz: ("px", 0, np.float16), write_pt: ("px", 0, np.float16),
}  # fmt: skip


def write_bags(folder: Path, bags: Bags, write: Callable = write_stamp) -> Path:
    folder.mkdir(exist_ok=True)
    for name, (x, at) in bags.items():
        write(folder, name, x, at)
    return folder


def write_table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def assert_same(read: BagSet, bags: Bags, placed: bool = True) -> None:
    for i, values in enumerate((read.x, read.position)):
        if placed or not i:
            np.testing.assert_array_equal(values, np.concatenate([bags[name][i] for name in read.bag_names]))


@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_gives_the_same_bags(tmp_path, write):
    bags = make_bags(2, 4, 1)
    unit, patch_size, dtype = LAYOUTS[write]
    cohort = load_cohort(
        str(write_bags(tmp_path / "uni", bags, write)), write_table(tmp_path / "t.csv", "bag,y\na,n\nb,y\nc,n")
    )
    read = cohort.read()
    assert (cohort.name, cohort.unit, cohort.patch_size, read.x.dtype) == ("uni", unit, patch_size, dtype)
    assert (read.bag_names, read.sizes.tolist(), read.label.tolist()) == (("a", "b", "c"), [2, 4, 1], [0, 1, 0])
    assert (read.position is None) == (unit == "")
    assert_same(read, bags, placed=unit != "")


@needs_cohort
@pytest.mark.parametrize("write", LAYOUTS)
def test_every_layout_and_both_tables_give_the_bags_of_the_cohort(tmp_path, write):
    original = load_cohort(COHORT, COHORT / "cohort.csv")
    bags: Any = {bag.name: bag.read() for bag in original.bags[:20]}
    write_bags(tmp_path, bags, write)
    stamp: dict[str, Any] = {"table": COHORT / "clini.csv", "slide_table": COHORT / "slide.csv"}
    clam: dict[str, Any] = {"table": COHORT / "cohort.csv"}
    for options in (stamp, clam):
        cohort = load_cohort(tmp_path, **options, missing="skip")
        assert (cohort.bag_names, cohort.groups) == (original.bag_names[:20], original.groups[:20])
        assert (cohort.class_names, cohort.label.tolist()) == (original.class_names, original.label[:20].tolist())
        assert_same(cohort.read(), bags, placed=cohort.unit != "")
        assert any(note.startswith("left out, 80 rows without a file: ") for note in cohort.notes)


@needs_cohort
def test_the_cohort_is_the_known_one():
    options: dict[str, Any] = {
        "columns": Columns(classes=("other", "epithelial")),
        "instance_labels": COHORT / "patch_truth.csv",
    }
    cohort = load_cohort(COHORT, COHORT / "cohort.csv", **options)
    read = cohort.read()
    assert (read.x.shape, read.x.dtype, cohort.patch_size, int(cohort.label.sum())) == (
        (49_202, 52),
        np.float16,
        32,
        51,
    )
    assert round((read.instance_label == 1).mean(), 2) == 0.19
    joined = load_cohort(COHORT, COHORT / "clini.csv", slide_table=COHORT / "slide.csv", slides="join", **options)
    assert (len(joined.bags), joined.unit, joined.read().position) == (50, "", None)
    assert (joined.read([7]).instance_label == 1).sum() == sum((cohort.read([i]).instance_label == 1).sum() for i, name
        in enumerate(cohort.groups) if name == joined.bag_names[7])  # fmt: skip
    assert "a bag of 'epithelial', the first class" in message_of(
        load_cohort, COHORT, COHORT / "cohort.csv", instance_labels=COHORT / "patch_truth.csv"
    )


# ---- tables ----

TABLES = [
    ("case_id,slide_id,label\np,a,n\np,b,y\nq,c,n\n", {}),
    ("slide_id,patient_id,split,label\na.svs,p,,n\nb,p,,y\nc,q,,n\n", {}),
    ('\ufeff"bag_name","split", patient ,"y"\r\n"a",train,p,n\r\n\r\nb,val,p,y\r\nc,test,q,n\r\n,,,\r\n', {}),
    ("who,what,which\np,n,a.h5\np,y,b\nq,n,c\n", {"columns": Columns("which", "what", "who")}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options"), TABLES)
def test_columns_are_found_by_their_names(tmp_path, text, options):
    folder = write_bags(tmp_path / "f", make_bags(1, 1, 1))
    cohort = load_cohort(folder, write_table(tmp_path / "t.csv", text), **options)
    assert (cohort.class_names, cohort.label.tolist(), cohort.groups) == (("n", "y"), [0, 1, 0], ("p", "p", "q"))
    assert cohort.split == (("train", "val", "test") if "train" in text else ("", "", ""))


def test_two_tables_as_stamp_has_them_and_patients_as_bags(tmp_path):
    bags = make_bags(1, 2, 3, 4)
    folder = write_bags(tmp_path / "f", bags)
    clini = write_table(tmp_path / "clini.csv", "PATIENT,AGE,KRAS\np,7,mut\nq,8,wt\nr,9,wt\ns,9,\n")
    slide = write_table(tmp_path / "slide.csv", "PATIENT,FILENAME\nq,a.h5\np,b.h5\nq,c.h5\ns,d.h5\nu,e.h5\n")
    options: Any = {"slide_table": slide, "columns": Columns(label="KRAS"), "missing": "skip"}
    apart = load_cohort(folder, clini, **options)
    assert (apart.bag_names, apart.groups, apart.label.tolist()) == (("a", "b", "c"), ("q", "p", "q"), [1, 0, 1])
    assert apart.notes == ("left out, 1 rows without a file: r", "left out, 1 rows without a label: d")
    joined = load_cohort(folder, clini, **options, slides="join")
    assert (joined.bag_names, joined.sizes.tolist(), joined.unit) == (("q", "p"), [4, 2], "")
    np.testing.assert_array_equal(joined.read([0]).x, np.concatenate([bags["a"][0], bags["c"][0]]))
    assert_parts(joined.notes[-1], "positions")
    write_table(clini, "PATIENT,KRAS\np,mut\np,wt\n")
    assert_parts(message_of(load_cohort, folder, clini, **options), clini, "two that differ for 'p', in line 3 again")
    write_table(clini, "PATIENT,KRAS\nx,mut\n")
    assert_parts(message_of(load_cohort, folder, clini, **options), slide, "values of PATIENT that", "none of them")
    assert "to which" in message_of(load_cohort, folder, slide_table=slide)
    write_table(clini, "ID,KRAS\np,mut\n")
    assert "expected a column of both tables" in message_of(load_cohort, folder, clini, **options)


def test_a_table_may_be_a_sheet(tmp_path, monkeypatch):
    folder, path = write_bags(tmp_path / "f", make_bags(1, 1)), tmp_path / "t.xlsx"
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    assert_parts(message_of(load_cohort, folder, path), path, "pip install 'mil_jax[xlsx]'")
    monkeypatch.undo()
    book = pytest.importorskip("openpyxl").Workbook()
    for row in (["slide_id", "label", None], ["a", 10, None], ["b", 9, None], [None] * 3):
        book.active.append(row)
    book.save(path)
    cohort = load_cohort(folder, path)
    assert (cohort.class_names, cohort.label.tolist()) == (("9", "10"), [1, 0])
    path.write_bytes(path.read_bytes()[:200])
    assert_parts(message_of(load_cohort, folder, path), path, "cannot be read")


def test_classes_are_ordered_by_value_by_alphabet_or_as_given(tmp_path):
    folder, path = write_bags(tmp_path / "f", make_bags(1, 1, 1)), tmp_path / "t.csv"
    for labels, names in (("10,9,-1", ("-1", "9", "10")), ("1,0,1", ("0", "1")), ("b,10,a", ("10", "a", "b"))):
        write_table(
            path, "bag,label\n" + "".join(f"{bag},{y}\n" for bag, y in zip("abc", labels.split(","), strict=True))
        )
        assert load_cohort(folder, path).class_names == names
    assert load_cohort(folder, path, columns=Columns(classes=("b", "a", "10"))).label.tolist() == [0, 2, 1]
    assert "label = '10': expected one of a, b for 'b'" in message_of(
        load_cohort, folder, path, columns=Columns(classes=("a", "b"))
    )
    assert "expected each class once" in message_of(load_cohort, folder, path, columns=Columns(classes=("a", "a")))


BAD_TABLES = [
    ("bag,label\na,n\nb,y\nz.svs,y\n", {}, "1 rows without a file: z.svs': expected a labelled row for each file, or"),
    ("bag,label\na,n\n", {}, "1 files without a row: b"), ("bag,label\na,n\nb,\n", {}, "1 rows without a label: b"),
    ("bag,label\nu,n\nv,\n", {"missing": "skip"}, "expected labels of files such as a"),
    ("bag,label\na,n\nb,n\n", {}, "label = ['n']: expected at least two classes"),
    ("bag,label\na,n\nb,y\na,y\n", {}, "expected a row for each file, got 'a' twice, in line 4 again"),
    ("bag,label\na,n\n\nb,y\na.h5,y\n", {}, "table = 'a.h5': expected one row for the file 'a'"),
    ("bag,label\na,n\n,y\n", {}, "a value in column bag, got none in line 3"), ("bag,label\n", {}, "at least one row"),
    ("bag,y,z\na,0,1\nb,1,0\n", {}, "label_column = None: expected the column with the labels, one of bag, y, z"),
    ("bag,y,z\na,0,1\nb,1,0\n", {"columns": Columns(label="w")}, "label_column = 'w': expected a column of"),
    ("x,label\na,0\nb,1\n", {}, "expected the column with the files' names, one of x"),
    ("bag,bag\na,0\n", {}, "columns of different names, got bag, bag"), ("bag,label\na,0,1\n", {}, "got 3 in line 2"),
    ("bag,patient,label\na,p,n\nb,p,y\n", {"slides": "join"}, "one label for all files of 'p', got ['n', 'y']"),
    ("bag,patient,label,split\na,p,n,val\nb,p,n,test\n", {"slides": "join"}, "at least two classes"),
    ("bag,label\na,n\nb,y\n", {"slides": "both"}, "slides = 'both': expected 'apart' or 'join'"),
    ("bag,label\na,n\nb,y\n", {"missing": "no"}, "missing = 'no': expected 'refuse' or 'skip'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", "complaint"), BAD_TABLES)
def test_a_bad_table_is_named(tmp_path, text, options, complaint):
    folder = write_bags(tmp_path / "f", make_bags(1, 1))
    assert_parts(unchecked_message(folder, write_table(tmp_path / "t.csv", text), **options), complaint)


def unchecked_message(*arguments: Any, **options: Any) -> str:
    """The refusal by the library, where tests alone refuse a word that is no choice."""
    return message_of(getattr(load_cohort, "__wrapped__", load_cohort), *arguments, **options)


def test_a_part_of_a_split_that_cuts_a_joined_bag_is_refused(tmp_path):
    folder = write_bags(tmp_path / "f", make_bags(1, 1, 1))
    path = write_table(tmp_path / "t.csv", "bag,patient,label,split\na,p,n,val\nb,p,n,test\nc,q,y,test\n")
    assert "one split for all files of 'p', got ['test', 'val']" in message_of(load_cohort, folder, path, slides="join")


# ---- files ----


def test_empty_bags_are_skipped_and_counted(tmp_path):
    folder = write_bags(tmp_path / "f", make_bags(2, 1))
    write_h5(folder / "c.h5", {"feats": np.empty((0, 3)), "coords": np.empty((0, 2))})
    write_h5(folder / "d.h5", {"features": np.empty(0)})
    np.save(folder / "._e.npy", X)  # is not looked at
    cohort = load_cohort(folder)
    assert (cohort.bag_names, cohort.notes) == (("a", "b"), ("left out, 2 bags without instances: c, d",))
    assert (cohort.class_names, cohort.label.tolist(), cohort.read().label.tolist()) == ((), [-1, -1], [0, 0])
    write_h5(folder / "a.h5", {"feats": np.empty((0, 3))})
    (folder / "b.h5").unlink()
    assert "expected bags with instances" in message_of(load_cohort, folder)


def test_torchmil_says_labels_and_the_truth_of_instances(tmp_path):
    write_bags(tmp_path, make_bags(2, 3), write_torchmil)
    np.save(tmp_path / "patch_labels" / "a.npy", np.array([[1], [0]]))
    cohort = load_cohort(tmp_path)
    assert (cohort.class_names, cohort.label.tolist()) == (("0", "1"), [1, 0])
    assert cohort.read([1, 0]).instance_label.tolist() == [0, 0, 0, 1, 0]
    for values, complaint in (([1], "numbers [2], got int64[1]"), ([2, 0], "0, 1 or -1, got 2")):
        np.save(tmp_path / "patch_labels" / "a.npy", np.array(values))
        assert_parts(message_of(load_cohort, tmp_path), "a.npy", complaint)
    np.save(tmp_path / "patch_labels" / "a.npy", np.array([1, -1]))
    for values, complaint in ((1, "all are 1"), ([1, 2], "some bags have none")):
        np.save(tmp_path / "labels" / "b.npy", np.array(values))
        partly = load_cohort(tmp_path)
        assert (partly.class_names, partly.notes) == ((), (f"left out, labels in the files: {complaint}",))
        assert partly.read().instance_label.tolist() == [-1] * 5
    assert "expected bags with labels" in message_of(load_cohort, tmp_path, instance_labels=tmp_path)
    np.save(tmp_path / "coords" / "a.npy", X)
    assert_parts(
        message_of(load_cohort, tmp_path), "a.npy", "as coordinates numbers [2, 2], got [3, 2] in coords/ for 2"
    )


BAD_FILES = [
    ("b.h5", {"patches": X}, "expected an array features or feats or x, got patches"), ("b.h5", {}, "got nothing"),
    ("b.h5", {"features/a": X}, "got a group"), ("b.h5", {"features": X[0]}, "[K, D] or [1, K, D], got float32[2]"),
    ("b.h5", {"features": X}, "expected 3 features, as a.h5 has, got 2"), ("b.npy", X, "as a.h5 has, got 2"),
    ("b.h5", {"features": np.zeros((2, 3, 3))}, "got float64[2, 3, 3]"), ("b.h5", {"x": [[b"x"]]}, "numbers [K, D]"),
    ("b.h5", {"features": h5py.SoftLink("/gone")}, "b.h5"), ("b.npy", X.astype(object), "a sound .npy file"),
    ("b.h5", {"features": np.ones((3, 3)), "coords": X[:2]}, "as coordinates numbers [3, 2], got [2, 2] for 3 inst"),
    ("b.pt", b"\x80\x02}.", "since PyTorch 1.6"), ("b.npz", b"PK", "a sound .npz file"), ("b.h5", b"", "a sound .h5"),
]  # fmt: skip


def write_any(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    else:
        with h5py.File(path, "w") as file:
            file.update(content)


@pytest.mark.parametrize(("name", "content", "complaint"), BAD_FILES)
def test_a_bad_file_is_named(tmp_path, name, content, complaint):
    write_bags(tmp_path, make_bags(2))
    write_any(tmp_path / name, content)
    assert_parts(message_of(load_cohort, tmp_path), tmp_path / name, complaint)


ONES = np.ones((2, 3))
LATER = [
    ({"feats": ONES * np.nan}, "finite numbers of single precision, got NaN or infinite in row 0 of bag 'a'"),
    ({"feats": ONES * [[1], [1e39]]}, "in row 1 of bag 'a'"),
    ({"feats": ONES[:1]}, "features [2, 3], as before, got [1"),
    ({"feats": ONES, "coords": [[1, np.inf], [1, 2]]}, "expected finite coordinates of"), ({"feats": ONES}, ""),
    ({"feats": ONES, "coords": X}, "as coordinates numbers [2, 2], got float32[3, 2]"),
    (b"no such thing", "a sound .h5"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "complaint"), LATER)
def test_a_file_that_turns_bad_after_it_was_inspected_is_named(tmp_path, content, complaint):
    write_bags(tmp_path, make_bags(2))
    cohort = load_cohort(tmp_path)
    write_any(tmp_path / "a.h5", content)
    if complaint:
        for read in (cohort.read, cohort.bags[0].read):
            assert_parts(message_of(read), tmp_path / "a.h5", complaint)
    (tmp_path / "a.h5").unlink()
    assert_parts(message_of(cohort.read), tmp_path / "a.h5", "no such file")


def test_damaged_hdf5_and_what_memory_cannot_hold_are_refused(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        values = np.random.default_rng(0).normal(size=(500, 3))
        file.create_dataset("features", data=values, compression="gzip", fletcher32=True)
    sound = path.read_bytes()
    for content in (sound[:2000], sound[:40] + bytes(2000) + sound[2040:]):
        path.write_bytes(content)
        assert_parts(message_of(lambda: load_cohort(tmp_path).read()), path, "cannot be read")
    with h5py.File(path, "w") as file:
        file.create_dataset("features", (10**9, 10**6), "f4", chunks=(1000, 1000))
    assert_parts(message_of(load_cohort(tmp_path).read), "1000000000 x 1000000 float32", "fit into memory")
    path.unlink()
    assert_parts(message_of(load_cohort, tmp_path), tmp_path, "expected files that end in .h5, .hdf5, .npy, .npz, .pt")
    assert "a folder of files, or one CSV" in message_of(load_cohort, path)
    (tmp_path / "a.h5").mkdir()
    assert_parts(message_of(load_cohort, tmp_path), path, "got a folder")


def test_bags_are_read_in_any_order_into_memory_that_jax_takes_as_it_is(tmp_path):
    bags = make_bags(3, 1, 2)
    cohort = load_cohort(write_bags(tmp_path, bags))
    read = cohort.read([2, 0])
    assert (read.bag_names, read.sizes.tolist(), read.x.ctypes.data % 64) == (("c", "a"), [2, 3], 0)
    assert_same(read, bags)
    room = np.empty((9, 3), np.float16)
    assert np.shares_memory(cohort.read(out=room).x, room)
    write_npy(tmp_path, "d", *make_bags(2)["a"])  # float64, and no places
    mixed = load_cohort(tmp_path)
    assert (mixed.dtype, mixed.unit, mixed.read().position) == (np.float32, "", None)
    assert_parts(mixed.notes[0], "left out, positions")


def test_bags_lie_in_memory_once_in_their_own_type(tmp_path):
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.full((8000, 100), i, np.float16))
    cohort = load_cohort(tmp_path)
    tracemalloc.start()
    data = cohort.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.x.dtype == np.float16
    assert peak < 1.3 * data.x.nbytes  # one bag of eight at a time


SIDES = [
    ({"patch_size": 64}, 64), ({"patch_size": 64, "downsample": 4}, 256), ({"patch_size": 64, "patch_level": 1}, 0),
    ({"patch_size": 64, "patch_level": 0}, 64), ({"patch_size": 64, "patch_level": 2, "downsample": (16.0,)}, 1024),
    ({"patch_size": 64, "patch_size_level0": 128, "downsample": 4}, 128), ({"patch_size": "large"}, 0), ({}, 0),
]  # fmt: skip


@pytest.mark.parametrize(("about", "side"), SIDES)
def test_a_patch_is_as_large_as_on_the_finest_level(tmp_path, about, side):
    write_h5(tmp_path / "a.h5", {"features": X, "coords": X}, **about)
    assert load_cohort(tmp_path).patch_size == side
    write_h5(tmp_path / "b.h5", {"features": X, "coords": X}, patch_size_level0=17)
    assert load_cohort(tmp_path).patch_size == 0  # bags differ


def test_digits_make_a_cohort():
    cohort, data = digits_cohort(3), digits_cohort(3).read()
    assert (len(cohort.bags), len(set(cohort.groups)), cohort.unit, data.x.dtype) == (120, 60, "px", np.uint8)
    assert cohort.content_hash == digits_cohort(3).content_hash != digits_cohort(4).content_hash
    positive = np.add.reduceat(data.instance_label, np.cumsum(data.sizes) - data.sizes) > 0
    np.testing.assert_array_equal(positive, data.label == 1)


def test_one_csv_is_a_cohort_in_memory(tmp_path):
    path = write_table(tmp_path / "own.csv", "2,p,1,2\n2,p,3,4\n0,q,5,6\n")
    cohort = load_cohort(path)
    assert (cohort.bag_names, cohort.class_names, cohort.label.tolist()) == (("p", "q"), ("0", "2"), [1, 0])
    assert cohort.read([1, 0]).x.tolist() == [[5, 6], [1, 2], [3, 4]]
    assert "expected none beside" in message_of(load_cohort, path, path)


def test_the_hash_knows_names_labels_groups_and_sizes(tmp_path):
    folder, path = write_bags(tmp_path / "f", make_bags(1, 2)), tmp_path / "t.csv"
    hashes = set()
    for text in (
        "bag,label\na,n\nb,y\n",
        "bag,label\na,y\nb,n\n",
        "bag,case,label\na,p,n\nb,p,y\n",
        "bag,label\na,n\nb,z\n",
    ):
        hashes.add(load_cohort(folder, write_table(path, text)).content_hash)
        assert load_cohort(folder, path).content_hash in hashes
    write_bags(folder, make_bags(1, 9))
    assert len(hashes | {load_cohort(folder, path).content_hash}) == 5


# ---- the truth of instances ----

TRUTH = [
    ("slide_id,row,positive\nb,1,1\nb,0,0\nz,5,1\n", None),
    ("slide,row,positive\nb,1,1\n", "columns slide_id, row, pos"),
    ("slide_id,row,positive\nb,2,1\n", "rows 0 to 1 of b, each 0 or 1, got '2', '1' in line 2"),
    ("slide_id,row,positive\nb,1,yes\n", "got '1', 'yes' in line 2"), ("slide_id,row,positive\nb,-1,1\n", "'-1'"),
    ("slide_id,row,positive\nz,1,1\n", "slides such as a, got z"),
    ("slide_id,row,positive\na,0,1\n", "in a bag of 'n'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "complaint"), TRUTH)
def test_a_table_says_which_instances_are_positive(tmp_path, text, complaint):
    sources = [
        BagSource(name=n, group=n, label=i, arrays=(np.ones((2, 3), np.float16), None)) for i, n in enumerate("ab")
    ]
    cohort: Cohort = cohort_of_arrays("c", sources, ("n", "y"))
    path = write_table(tmp_path / "truth.csv", text)
    if complaint is None:
        assert read_instance_labels(path, cohort).tolist() == [-1, -1, 0, 1]
    else:
        assert complaint in message_of(read_instance_labels, path, cohort)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_what_is_not_finite_is_seen_wherever_it_stands(dtype):
    values = np.array([[0, -1, 1e-7, 65504], [-65504, -0.0, 3, 4]], dtype)
    assert is_finite(values, chunk=1)
    for wrong in (np.nan, -np.nan, np.inf, -np.inf):
        values[1, 2] = wrong
        assert not is_finite(values, chunk=1)
        assert not is_finite(values.T)
