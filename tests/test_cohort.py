"""Cohorts from files: every layout gives the same bags, tables are understood, and bad input is named."""

import csv
import inspect
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import assert_parts, message_of

from mil_jax.datasets import BagSet, Columns, load_cohort
from mil_jax.datasets.digits_cohort import digits_cohort
from mil_jax.memory import ALIGNMENT

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "cohort"
needs_cohort = pytest.mark.skipif(not SHARED.is_dir(), reason="the cohort of slides is absent")

WIDTH, SIDE = 5, 256
SLIDES = {"a1": 3, "a2": 2, "b1": 4, "c1": 1}  # instances of each
LABEL, EMPTY = {"a": "tumour", "b": "normal", "c": "tumour"}, "z1"
X = {name: np.random.default_rng(size).normal(size=(size, WIDTH)).astype(np.float16) for name, size in SLIDES.items()}
PLACE = {name: np.arange(2 * size).reshape(size, 2) * SIDE for name, size in SLIDES.items()}
CLAM = "case_id,slide_id,label"
CLAM_ROWS = [(name[0], name, LABEL[name[0]]) for name in SLIDES]


def write_csv(path: Path, header: str, rows: Iterable[Sequence[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])
    return path


def write_h5(path: Path, content: dict[str, Any], attributes: dict[str, Any] | None = None, **options: Any) -> Path:
    """A file with some data sets; attributes are of the file, or of the data set before the colon."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            file.create_dataset(name, data=values, **(options if np.size(values) else {}))
        for name, value in (attributes or {}).items():
            part, _, key = name.rpartition(":")
            (file[part] if part else file).attrs[key] = value
    return path


# ---- layouts ----


def clam(folder: Path) -> None:
    about = {"coords:patch_size": SIDE // 4, "coords:patch_level": 1, "coords:downsample": (4.0, 4.0)}
    for name, x in X.items():
        content = {"features": x.astype(np.float32), "coords": PLACE[name].astype(np.int32)}
        write_h5(folder / "h5_files" / f"{name}.h5", content, about)


def trident(folder: Path) -> None:
    about = {"coords:patch_size": 224, "coords:patch_size_level0": SIDE, "features:encoder": "uni"}
    for name, x in X.items():
        write_h5(folder / f"{name}.h5", {"features": x, "coords": PLACE[name]}, about, chunks=True)
        with h5py.File(folder / f"{name}.h5", "a") as file:
            del file["features"]
            file.create_dataset("features", data=x, chunks=(1, WIDTH))
    for name, shape in {EMPTY: (0, WIDTH), "z2": (0,)}.items():
        write_h5(folder / f"{name}.h5", {"features": np.zeros(shape), "coords": np.zeros(shape)})


def stamp(folder: Path) -> None:
    about = {"unit": "um", "tile_size_um": float(SIDE), "tile_size_px": 224, "extractor": "uni"}
    for name, x in X.items():
        write_h5(folder / f"{name}.h5", {"feats": x, "coords": PLACE[name].astype(np.float32)}, about)


def batch_of_one(folder: Path) -> None:
    for name, x in X.items():
        write_h5(
            folder / f"{name}.hdf5", {"features": x[None], "coords": PLACE[name][None]}, {"coords:patch_size": SIDE}
        )


def torchmil(folder: Path) -> None:
    for part, values in {"features": X, "coords": PLACE}.items():
        (folder / part).mkdir()
        for name, array in values.items():
            np.save(folder / part / f"{name}.npy", array)


def npy(folder: Path) -> None:
    for name, x in X.items():
        np.save(folder / f"{name}.npy", x)
    np.save(folder / f"{EMPTY}.npy", np.zeros((0, WIDTH)))


def npz(folder: Path) -> None:
    for name, x in X.items():
        np.savez_compressed(folder / f"{name}.npz", features=x, coords=PLACE[name])


LAYOUTS: dict[Callable[[Path], None], tuple[str, float, type]] = {  # unit and side of patches, type of features
    clam: ("px", SIDE, np.float32), trident: ("px", SIDE, np.float16), stamp: ("um", SIDE, np.float16),
    batch_of_one: ("px", SIDE, np.float16), torchmil: ("px", 0, np.float16), npy: ("", 0, np.float16),
    npz: ("px", 0, np.float16),
}  # fmt: skip


def make(tmp_path: Path, layout: Callable[[Path], None] = npz) -> tuple[Path, Path]:
    """A folder of files, and CLAM's table of them."""
    folder = tmp_path / layout.__name__
    folder.mkdir()
    layout(folder)
    return folder, write_csv(tmp_path / "cohort.csv", CLAM, CLAM_ROWS)


def assert_same_bags(data: BagSet) -> None:
    np.testing.assert_array_equal(data.x.astype(np.float16), np.concatenate(list(X.values())), strict=True)
    assert (data.bag_names, data.sizes.tolist()) == (tuple(SLIDES), list(SLIDES.values()))
    assert (data.class_names, data.label.tolist()) == (("normal", "tumour"), [1, 1, 0, 1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_give_the_same_bags(tmp_path, layout):
    folder, table = make(tmp_path, layout)
    with table.open("a") as file:
        file.writelines(f"z,{path.stem},normal\n" for path in sorted(folder.glob("z*")))
    cohort = load_cohort(str(folder), str(table))
    unit, side, dtype = LAYOUTS[layout]
    assert (cohort.unit, cohort.patch_size, cohort.dtype, cohort.shape) == (unit, side, dtype, (WIDTH,))
    assert (cohort.groups, cohort.split) == (("a", "a", "b", "c"), ("",) * 4)
    empty = {trident: "2 bags without instances: z1, z2", npy: "1 bags without instances: z1"}
    assert cohort.notes == ((f"left out, {empty[layout]}",) if layout in empty else ())
    data = cohort.read()
    assert_same_bags(data)
    if unit:
        places = np.concatenate(list(PLACE.values())).astype(np.float32)
        np.testing.assert_array_equal(data.position, places, strict=True)
    else:
        assert data.position is None
    some = cohort.read([2, 0])
    assert some.bag_names == ("b1", "a1")
    np.testing.assert_array_equal(some.x, np.concatenate([data.x[5:9], data.x[:3]]), strict=True)


def test_one_table_of_everything(tmp_path):
    rows = [(int(LABEL[name[0]] == "tumour"), name, *row) for name, x in X.items() for row in x.astype(float)]
    path = write_csv(tmp_path / "own.csv", "bag_label,bag_id,f1,f2,f3,f4,f5", rows)
    data = load_cohort(path).read()
    np.testing.assert_array_equal(data.x.astype(np.float16), np.concatenate(list(X.values())))
    assert (data.bag_names, data.class_names, data.label.tolist()) == (tuple(SLIDES), ("0", "1"), [1, 1, 0, 1])
    assert_parts(message_of(load_cohort, path, path), "table = ", "expected nothing beside", "whose lines have labels")


@pytest.mark.parametrize(
    ("about", "side"),
    [
        ({"patch_size": 64}, 64), ({"patch_size": 64, "downsample": 4}, 256),
        ({"patch_size": 64, "patch_level": 0}, 64), ({"patch_size": 64, "patch_level": 1}, 0),
        ({"patch_size": 64, "patch_level": 2, "downsample": (16.0, 16.0)}, 1024),
        ({"patch_size": 64, "patch_size_level0": 128, "downsample": 4}, 128), ({"patch_size": "large"}, 0), ({}, 0),
    ],
)  # fmt: skip
def test_a_patch_is_as_large_as_on_the_finest_level(tmp_path, about, side):
    path = write_h5(tmp_path / "a.h5", {"features": X["a1"], "coords": PLACE["a1"]})
    with h5py.File(path, "a") as file:
        file["coords"].attrs.update(about)
    assert load_cohort(tmp_path).patch_size == side
    write_h5(tmp_path / "b.h5", {"features": X["a1"], "coords": PLACE["a1"]}, {"coords:patch_size_level0": 17})
    assert load_cohort(tmp_path).patch_size == 0  # bags differ


# ---- memory ----


def test_bags_lie_in_memory_once_in_their_own_type_and_without_a_copy_for_programs(tmp_path):
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.full((2000, 200), i, np.float16))
    cohort = load_cohort(tmp_path)
    tracemalloc.start()
    data = cohort.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.x.dtype == np.float16
    assert data.x.ctypes.data % ALIGNMENT == 0
    assert peak < 1.4 * data.x.nbytes  # one bag of eight in single precision, and it is a quarter
    room = np.empty((20_000, 200), np.float16)
    assert np.shares_memory(cohort.read([3], out=room).x, room)
    assert (room[:2000] == 3).all()


def test_types_that_differ_meet_in_single_precision(tmp_path):
    kinds = (np.float16, np.float32, np.float64, np.int16)
    for kind in kinds:
        np.save(tmp_path / f"{np.dtype(kind)}.npy", np.full((2, 3), 7, kind))
    assert load_cohort(tmp_path).dtype == np.float32
    assert (load_cohort(tmp_path).read().x == 7).all()


# ---- tables ----


def test_stamps_tables_and_slides_joined(tmp_path):
    folder, _ = make(tmp_path, stamp)
    clini = write_csv(tmp_path / "clini.csv", "PATIENT,TISSUE", LABEL.items())
    slides = write_csv(tmp_path / "slide.csv", "PATIENT,FILENAME", [(name[0], f"{name}.h5") for name in SLIDES])
    cohort = load_cohort(folder, clini, slide_table=slides)
    assert cohort.groups == ("a", "a", "b", "c")
    assert_same_bags(cohort.read())
    truth = write_csv(tmp_path / "truth.csv", "slide_id,row,positive", [("a2", 1, 1), ("c1", 0, 0), ("x", 3, 1)])
    joined = load_cohort(folder, clini, slide_table=slides, slides="join", instance_labels=truth)
    data = joined.read()
    assert (joined.unit, data.position, data.bag_names, data.sizes.tolist()) == ("", None, ("a", "b", "c"), [5, 4, 1])
    assert (data.label.tolist(), joined.groups) == ([1, 0, 1], ("a", "b", "c"))
    assert data.instance_label.tolist() == [-1, -1, -1, -1, 1, -1, -1, -1, -1, 0]
    np.testing.assert_array_equal(data.x, np.concatenate(list(X.values())), strict=True)


def test_a_group_without_files_is_counted(tmp_path):
    folder, _ = make(tmp_path)
    clini = write_csv(tmp_path / "clini.csv", "PATIENT,TISSUE", [*LABEL.items(), ("q", "normal")])
    slides = write_csv(tmp_path / "slide.csv", "PATIENT,FILENAME", [(name[0], name) for name in SLIDES])
    assert "'1 rows without a file: q'" in message_of(load_cohort, folder, clini, slide_table=slides)
    cohort = load_cohort(folder, clini, slide_table=slides, missing="skip")
    assert cohort.notes == ("left out, 1 rows without a file: q",)
    assert_same_bags(cohort.read())


@pytest.mark.parametrize(
    ("header", "order", "columns"),
    [
        ("slide_id,patient_id,split,label", "sptl", {}), ("label,FILENAME,Patient,split", "lspt", {}),
        ("Slide,x,outcome,case", "stlp", {"label": "outcome", "split": "x"}),
        ("slide_id,label,a,b", "plst", {"slide": "a", "group": "slide_id", "split": "b"}),
    ],
)  # fmt: skip
def test_columns_are_found_or_named(tmp_path, header, order, columns):
    folder, table = make(tmp_path)
    parts = {name: "test" if name == "c1" else "train" for name in SLIDES}
    cells = [{"s": f"{name}.svs", "p": name[0], "t": parts[name], "l": LABEL[name[0]]} for name in SLIDES]
    if columns.get("split") == "x":
        order = "stlp"
    write_csv(table, header, [[row[key] for key in order] for row in cells])
    cohort = load_cohort(folder, table, columns=Columns(**columns))
    assert (cohort.groups, cohort.split) == (("a", "a", "b", "c"), ("train", "train", "train", "test"))
    assert_same_bags(cohort.read())


def test_excel_tables(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is absent")
    folder, table = make(tmp_path)
    book = openpyxl.Workbook()
    for row in [
        ("slide_id", "label", "patient"),
        *((name, i % 2, " p ") for i, name in enumerate(SLIDES)),
        (None,) * 3,
    ]:
        book.active.append(row)
    book.save(table.with_suffix(".xlsx"))
    cohort = load_cohort(folder, table.with_suffix(".xlsx"))
    assert (cohort.class_names, cohort.label.tolist(), set(cohort.groups)) == (("0", "1"), [0, 1, 0, 1], {"p"})
    table.with_suffix(".xlsx").write_bytes(b"no such thing")
    assert_parts(message_of(load_cohort, folder, table.with_suffix(".xlsx")), "expected a table, as .xlsx, got what")


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        ("tumour normal tumour tumour", (), ("normal", "tumour")), ("10 9 9 -1", (), ("-1", "9", "10")),
        ("low high mid low", ("low", "mid", "high"), ("low", "mid", "high")), ("b a c a", (), ("a", "b", "c")),
    ],
)  # fmt: skip
def test_classes_have_an_order(tmp_path, labels, classes, names):
    folder, table = make(tmp_path)
    write_csv(table, "slide_id,label", zip(SLIDES, labels.split(), strict=True))
    cohort = load_cohort(folder, table, classes=classes)
    assert cohort.class_names == names
    assert [names[i] for i in cohort.label] == labels.split()
    assert cohort.groups == tuple(SLIDES)


def test_bags_without_a_table_have_no_labels(tmp_path):
    cohort = load_cohort(make(tmp_path)[0])
    assert (cohort.class_names, cohort.label.tolist(), cohort.groups) == ((), [-1] * 4, tuple(SLIDES))
    assert cohort.read().label.tolist() == [0] * 4


def test_the_hash_knows_labels_groups_and_lengths(tmp_path):
    folder, table = make(tmp_path, npy)
    (folder / f"{EMPTY}.npy").unlink()
    hashes = [load_cohort(folder, table).content_hash, load_cohort(folder).content_hash]
    np.save(folder / "c1.npy", X["c1"].astype(np.float32))
    assert len({*hashes, load_cohort(folder, table).content_hash}) == 3


def test_digits_make_a_cohort():
    cohort, data = digits_cohort(3), digits_cohort(3).read()
    assert (len(cohort.bags), len(set(cohort.groups)), cohort.unit, data.x.dtype) == (120, 60, "px", np.uint8)
    assert cohort.content_hash == digits_cohort(3).content_hash != digits_cohort(4).content_hash
    positive = np.add.reduceat(data.instance_label, np.cumsum(data.sizes) - data.sizes) > 0
    np.testing.assert_array_equal(positive, data.label == 1)


# ---- bad input ----


def lines(*rows: Sequence[str], without: Sequence[str] = ()) -> list[Sequence[str]]:
    return [*(row for row in CLAM_ROWS if row[1] not in without), *rows]


BAD_TABLES: list[tuple[str, list[Sequence[str]], dict[str, Any], str]] = [
    (CLAM, lines(("d", "d1", "x")), {}, "table = '1 rows without a file: d1': expected a row for each"),
    (CLAM, lines(without=["b1", "c1"]), {}, "'2 files without a row: b1, c1': expected a row for each"),
    (CLAM, [("d", "d1", "x")], {"missing": "skip"}, "'1 rows, such as d1': expected names of files such as a1"),
    (CLAM, lines(("a", "a1", "tumour")), {}, "one row for each file, got 'a1' again in line 6"),
    (CLAM, lines(("a", "a1", "normal")), {}, "one row for each file, got 'a1' again in line 6"),
    (CLAM, lines(("a", "a1.svs", "normal")), {},
     "table = 'a1.svs': expected one row for each file, got another one of 'a1'"),
    (CLAM, lines(("a", "", "x")), {}, "expected a value in column slide_id, got none in line 6"),
    (CLAM, lines(("a", "a9", "")), {}, "expected a value in column label, got none for 'a9'"),
    (CLAM, lines(("a", "a9")), {}, "expected 3 columns (as the header has), got 2 in line 6"),
    (CLAM, [], {}, "a header and at least one row, got 1 lines"),
    ("case_id,label,label", lines(), {}, "columns of different names, got case_id, label, label"),
    (CLAM, lines(), {"columns": Columns(label="grade")}, "label_column = 'grade': expected a column of"),
    (CLAM, lines(), {"columns": Columns(group="p")}, "cohort.csv: case_id, slide_id, label"),
    ("u,v,label", lines(), {}, "slide_column = None: expected the column with the files' names, one of u, v, label"),
    ("u,slide_id,v", lines(), {}, "label_column = None: expected the column with the labels, one of u, slide_id, v"),
    (CLAM, [(*row[:2], "x") for row in CLAM_ROWS], {}, "label = ['x']: expected at least two classes"),
    (CLAM, lines(), {"classes": ("tumour",)}, "classes = ('tumour',): expected all labels once: normal, tumour"),
    (CLAM, [("a", name, LABEL[name[0]]) for name in SLIDES], {"slides": "join"},
     "expected one label for all files of 'a', got ['normal', 'tumour']"),
    ("case_id,slide_id,label,split", [(*row, row[1]) for row in CLAM_ROWS], {"slides": "join"},
     "expected one split for all files of 'a', got ['a1', 'a2']"),
    (CLAM, lines(), {"slides": "both"}, "slides = 'both': expected 'apart' or 'join'"),
    (CLAM, lines(), {"missing": "ignore"}, "missing = 'ignore': expected 'refuse' or 'skip'"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "rows", "options", "complaint"), BAD_TABLES)
def test_a_bad_table_is_refused_with_the_reason(tmp_path, header, rows, options, complaint):
    folder, table = make(tmp_path)
    write_csv(table, header, rows)
    assert_parts(message_of(inspect.unwrap(load_cohort), folder, table, **options), complaint)


def test_what_is_left_out_is_counted(tmp_path):
    folder, table = make(tmp_path)
    write_csv(table, CLAM, lines(*(("d", f"d{i}", "normal") for i in range(7)), without=["c1"]))
    cohort = load_cohort(folder, table, missing="skip")
    lost = "7 rows without a file: d0, d1, d2, d3, d4, …"
    assert cohort.notes == (f"left out, {lost}", "left out, 1 files without a row: c1")
    assert cohort.bag_names == ("a1", "a2", "b1")


CLINI = "PATIENT,TISSUE"
BAD_PAIRS: list[tuple[str, list[tuple[str, str]], str, list[tuple[str, str]], str]] = [
    (CLINI, [*LABEL.items(), ("a", "normal")], "PATIENT,FILENAME", [("a", "a1")],
     "one row for each PATIENT, got two that differ for 'a'"),
    (CLINI, [*LABEL.items()], "PATIENT,FILENAME", [("q", "a1")], "expected values of PATIENT that "),
    (CLINI, [*LABEL.items()], "CASE,FILENAME", [("a", "a1")], "group_column = None: expected a column of both tables;"),
    (CLINI, [*LABEL.items()], "PATIENT,FILENAME", [("a", "a1"), ("a", "a1")],
     "slide.csv': expected one row for each file, got 'a1' again in line 3"),
    (CLINI, [*LABEL.items()], "PATIENT,FILENAME", [("a", "a1"), ("b", "")],
     "slide.csv': expected a value in column FILENAME, got none in line 3"),
    (CLINI, [("a", "")], "PATIENT,FILENAME", [("a", "a1")],
     "clini.csv': expected a value in column TISSUE, got none for 'a1'"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "rows", "slide_header", "slide_rows", "complaint"), BAD_PAIRS)
def test_two_tables_that_do_not_fit_are_refused(tmp_path, header, rows, slide_header, slide_rows, complaint):
    folder, _ = make(tmp_path)
    clini = write_csv(tmp_path / "clini.csv", header, rows)
    slides = write_csv(tmp_path / "slide.csv", slide_header, slide_rows)
    assert_parts(message_of(load_cohort, folder, clini, slide_table=slides), complaint)
    assert "table = None: expected a table of labels" in message_of(load_cohort, folder, slide_table=slides)


BAD_TRUTHS: list[tuple[str, list[tuple[str, ...]], str]] = [
    ("slide_id,row,x", [("a1", "0", "1")], "expected the columns slide_id, row, positive, got slide_id, row, x"),
    ("slide_id,row,positive", [("a1", "2", "1"), ("a1", "3", "1")], "rows 0 to 2 of a1, 0 or 1, got 3, 1 in line 3"),
    ("slide_id,row,positive", [("a1", "0", "yes")], "got 0, yes in line 2"),
    ("slide_id,row,positive", [("a1", "²", "1")], "got ², 1 in line 2"),
    ("slide_id,row,positive", [("q1", "0", "1")], "expected slides such as a1, got none of them in 1 rows"),
    ("slide_id,row,positive", [("b1", "0", "1")],
     "no positive instance in a bag of 'normal', the first class; classes gives"),
]  # fmt: skip


@pytest.mark.parametrize(("header", "rows", "complaint"), BAD_TRUTHS)
def test_bad_labels_of_instances_are_refused(tmp_path, header, rows, complaint):
    truth = write_csv(tmp_path / "truth.csv", header, rows)
    assert_parts(message_of(load_cohort, *make(tmp_path), instance_labels=truth), complaint)


def file_of(**content: Any) -> Callable[[Path], object]:
    return lambda path: write_h5(path, content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])


def scratch(path: Path) -> None:
    """Damages the values alone; the header stays sound."""
    write_h5(path, {"features": np.arange(4000.0).reshape(-1, WIDTH)}, compression="gzip", fletcher32=True)
    load_cohort(path.parent)
    content = path.read_bytes()
    path.write_bytes(content[:-3000] + bytes(2000) + content[-1000:])


def gone(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["features"] = h5py.SoftLink("/gone")


ONES = np.ones((4, WIDTH), np.float32)
BAD_FILES: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_bytes(b""), "b1.h5': expected a sound .h5 file, got what cannot be read"),
    (lambda path: path.write_bytes(b"no such thing"), "b1.h5': expected a sound .h5 file, got what cannot be read"),
    (cut, "b1.h5': expected a sound .h5 file, got what cannot be read"),
    (lambda path: path.unlink(), "b1"), (file_of(patches=ONES), "an array features or feats or x, got patches"),
    (file_of(), "got nothing"), (file_of(**{"features/a": ONES}), "numbers [K, D] or [1, K, D], got a group"),
    (file_of(features=ONES[0]), "[1, K, D], got float32[5]"), (file_of(features=np.zeros((2, 4, 5))),
     "got float64[2, 4, 5]"),
    (file_of(features=np.array([[b"x"]])), "numbers [K, D]"), (gone,
     "b1.h5': expected"),
    (file_of(features=ONES, coords=ONES[:2, :2]), "as coordinates numbers [4, 2], got float32[2, 2] for 4 instances"),
    (file_of(features=ONES, coords=ONES[:, :3]), "as coordinates numbers [4, 2], got float32[4, 3] for 4 instances"),
    (file_of(features=ONES[:, :3]), "b1.h5': expected 5 features, as a1.h5 has, got 3"),
]  # fmt: skip
BAD_VALUES: list[tuple[Callable[[Path], object], str]] = [
    (cut, "b1.h5': expected a sound .h5 file, got what cannot be read"), (scratch, "b1.h5': expected "),
    (lambda path: path.unlink(), "b1.h5': expected a file of features, got no such file"),
    (file_of(features=ONES[:3]), "expected features [4, 5], as before, got [3, 5]"),
    (file_of(features=ONES, coords=ONES[:3, :2]), "as coordinates numbers [4, 2], got float32[3, 2]"),
    (file_of(features=np.where(np.eye(4, 5) * [0, 0, 1, 0, 0], np.nan, 1)),
     "finite numbers of single precision, got NaN or infinite in row 2 of bag 'b1'"),
    (file_of(features=ONES.astype(float) * 1e39), "got NaN or infinite in row 0 of bag 'b1'"),
    (file_of(features=ONES, coords=ONES[:, :2] * np.inf),
     "finite coordinates of single precision, got NaN or infinite in row 0"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "complaint"), BAD_FILES)
def test_a_bad_file_is_named_before_anything_is_read(tmp_path, spoil, complaint):
    folder, table = make(tmp_path, stamp)
    spoil(folder / "b1.h5")
    assert_parts(message_of(load_cohort, folder, table), complaint)


@pytest.mark.parametrize(("spoil", "complaint"), BAD_VALUES)
def test_a_file_that_turns_bad_later_is_named_and_the_others_are_read(tmp_path, spoil, complaint):
    folder, table = make(tmp_path, stamp)
    cohort, sound = load_cohort(folder, table), (folder / "b1.h5").read_bytes()
    spoil(folder / "b1.h5")
    assert_parts(message_of(cohort.read), complaint, folder / "b1.h5")
    assert cohort.read([0, 1, 3]).bag_names == ("a1", "a2", "c1")
    (folder / "b1.h5").write_bytes(sound)
    assert_same_bags(cohort.read())


@pytest.mark.parametrize(
    ("ending", "content"), [("npy", b""), ("npy", b"no"), ("npz", b"PK no zip"), ("npy", None), ("npz", None)]
)
def test_damaged_and_pickled_arrays_are_refused(tmp_path, ending, content):
    path = tmp_path / f"a.{ending}"
    if content is None:
        (np.save if ending == "npy" else np.savez)(path, np.array([[object()]]))
    else:
        path.write_bytes(content)
    assert_parts(message_of(load_cohort, tmp_path), path, f"expected a sound .{ending} file" if content else "expected")


def test_places_beside_the_features_fit_them(tmp_path):
    folder, table = make(tmp_path, torchmil)
    np.save(folder / "coords" / "b1.npy", np.zeros((3, 2)))
    assert_parts(
        message_of(load_cohort, folder, table), folder / "coords" / "b1.npy", "got float64[3, 2] for 4 instances"
    )
    (folder / "coords" / "b1.npy").unlink()
    assert load_cohort(folder, table).unit == ""  # not all bags have places
    assert load_cohort(folder, table).read().position is None


def test_folders_without_files_of_bags_are_refused(tmp_path):
    assert "expected a folder of files, or one CSV" in message_of(load_cohort, tmp_path / "none")
    (tmp_path / "features_uni").mkdir()
    assert "got none, of folders features_uni" in message_of(load_cohort, tmp_path)
    write_h5(tmp_path / "a.h5", {"features": np.zeros((0, WIDTH))})
    assert "expected bags with instances, got empty ones alone" in message_of(load_cohort, tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", (10**9, 10**6), "f4", chunks=(1000, 1000))
    assert_parts(
        message_of(load_cohort(tmp_path).read), "expected bags that fit into memory together", "[1000000] of float32"
    )


# ---- a real cohort ----


@needs_cohort
def test_slides_of_a_real_cohort_in_clams_form_and_in_stamps():
    """STAMP's labels are those of patients, of whom nine have slides that CLAM's table calls otherwise."""
    clam, truth, classes = SHARED / "cohort.csv", SHARED / "patch_truth.csv", ("other", "epithelial")
    one = load_cohort(SHARED, clam, classes=classes, instance_labels=truth)
    two = load_cohort(SHARED, SHARED / "clini.csv", slide_table=SHARED / "slide.csv", classes=classes)
    assert (len(one.bags), one.dtype, one.unit, one.patch_size) == (100, np.float16, "px", 32)
    assert (one.bag_names, one.groups, (one.label != two.label).sum()) == (two.bag_names, two.groups, 9)
    data, same = one.read(), two.read()
    np.testing.assert_array_equal(data.x, same.x, strict=True)
    np.testing.assert_array_equal(data.position, same.position)
    assert (set(np.unique(data.instance_label)), set(np.unique(same.instance_label))) == ({0, 1}, {-1})
    whole = load_cohort(
        SHARED, SHARED / "clini.csv", slide_table=SHARED / "slide.csv", classes=classes, slides="join",
        instance_labels=truth,
    ).read()  # fmt: skip
    assert (whole.bag_names, len(whole.x)) == (tuple(dict.fromkeys(one.groups)), len(data.x))
    assert whole.instance_label.sum() == data.instance_label.sum()
    assert "slides = 'join': expected one label for all files of 'case015'" in message_of(
        load_cohort, SHARED, clam, slides="join"
    )
    assert_parts(
        message_of(load_cohort, SHARED, clam, instance_labels=truth),
        "expected no positive instance in a bag of 'epithelial', the first class; classes gives their order",
    )
