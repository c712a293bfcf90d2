"""Splits in files: both of CLAM's forms give the folds that were written, and each wrong one is refused by name."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mil_jax.errors import InputError
from mil_jax.protocols import Folds, stack_places
from mil_jax.split_files import read_splits, splits_of_column, write_splits

NAMES = ("a", "b", "c", "d", "e.h5")
RAGGED = ",train,val,test\r\n0,d.svs,a.0,b.pt\r\n1,e.h5,,\r\n"
BOOL = """,train,val,test
d,True,False,False
a,FALSE,TRUE,FALSE
b,False,False,True
e.h5,True,False,False
c,False,False,False
"""


def folds_of(*splits):
    return Folds(*(stack_places([np.array(part) for part in parts]) for parts in zip(*splits, strict=True)))


def assert_same(folds, other):
    for part, of_other in zip(folds, other, strict=True):
        np.testing.assert_array_equal(part, of_other)


@pytest.mark.parametrize("text", [RAGGED, BOOL])
def test_both_forms_are_read_alone(tmp_path, text):
    """Endings are left out where the whole name is no bag; bag c is in no part."""
    path = tmp_path / "mine.csv"
    path.write_text(text)
    assert_same(read_splits(path, NAMES), folds_of(([3, 4], [0], [1])))


def test_files_come_by_number_and_the_plain_one_first(tmp_path):
    for number in range(11):
        (tmp_path / f"splits_{number}.csv").write_text(f",train,val,test\n0,n{number},x,y\n")
    (tmp_path / "splits_3_bool.csv").write_text("not read")
    (tmp_path / "splits_0_descriptor.csv").write_text("not read either")
    names = [*(f"n{number}" for number in range(11)), "x", "y"]
    np.testing.assert_array_equal(read_splits(tmp_path, names).train[:, 0], np.arange(11))
    (tmp_path / "splits_3.csv").unlink()
    with pytest.raises(InputError, match="expected the header"):
        read_splits(tmp_path, names)
    (tmp_path / "splits_3_bool.csv").unlink()
    with pytest.raises(InputError, match=r"expected all of splits_0.csv to splits_10.csv, got no splits_3.csv"):
        read_splits(tmp_path, names)


@st.composite
def drawn_splits(draw):
    name = st.text("ab,\"' é.5", min_size=1).filter(lambda name: name == name.strip())
    names = draw(st.lists(name, min_size=3, unique=True))
    splits = []
    for _ in range(draw(st.integers(1, 3))):
        order = draw(st.permutations(range(len(names))))
        cuts = sorted(draw(st.sets(st.integers(1, len(names)), min_size=3, max_size=3)))
        splits.append([order[low:high] for low, high in zip([0, *cuts[:2]], cuts, strict=True)])
    return splits, names


@given(drawn=drawn_splits())
def test_what_is_written_is_read_in_both_forms(tmp_path_factory, drawn):
    folds, names = folds_of(*drawn[0]), drawn[1]
    folder = tmp_path_factory.mktemp("splits") / "new"
    for _ in range(2):
        write_splits(folder, folds, names)
    assert len(list(folder.iterdir())) == 2 * len(folds.test)
    assert_same(read_splits(folder, names), folds)
    for number in range(len(folds.test)):
        (folder / f"splits_{number}.csv").unlink()
    assert_same(read_splits(folder, names), folds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ",train,val,test\n0,a,b,q1\n" + "".join(f"{i},q{i},,\n" for i in range(2, 9)),
            "8 that it lacks: q2, q3, q4, q5, q6, ...",
        ),
        (",train,val,test\n0,a,b,c\n1,d,,a.h5\n", "expected each slide once, got 'a.h5' in train and in test"),
        (",train,val,test\n0,a,b,c\n1,a,,\n", "'a' in train and in train"),
        (",train,val,test\na,True,True,False\nb,False,False,True\n", "'a' in train and in val"),
        (",train,val,test\n0,a,,c\n", "expected validation bags: a slide under val, got none"),
        (",train,val,test\n", "expected training bags"),
        (",train,test\n0,a,b\n", "expected the header ,train,val,test, got ,train,test"),
        (",train,val,test\n0,a,b\n", "3 in line 2"),
        (",train,val,test\na,True,False,False\nb,0,True,False\n", "expected True or False, got '0' for 'b' in line 3"),
        ("", "an empty file"),
        ("\0\udcff", "no plain text"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, text, message):
    (path := tmp_path / "splits_0.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_splits(tmp_path, NAMES)
    assert str(path) in str(error.value)


def test_what_is_no_split_at_all_is_refused(tmp_path):
    with pytest.raises(InputError, match="got no such file"):
        read_splits(tmp_path, NAMES)
    with pytest.raises(InputError, match="got no such file"):
        read_splits(tmp_path / "none.csv", NAMES)
    with pytest.raises(InputError, match="bag_names = 'a': expected each name once"):
        read_splits(tmp_path, ("a", "a"))


def test_a_column_gives_one_split():
    assert_same(splits_of_column(["test", "train", "val", "train"], NAMES[:4]), folds_of(([1, 3], [2], [0])))
    with pytest.raises(InputError, match="split = 'dev': expected train, val or test for bag 'b'"):
        splits_of_column(["train", "dev"], NAMES[:2])
    with pytest.raises(InputError, match="expected validation bags"):
        splits_of_column(["train", "test"], NAMES[:2])
    with pytest.raises(InputError, match="expected a word for each of 2 bags"):
        splits_of_column(["train"], NAMES[:2])


def test_nothing_is_written_that_would_be_read_otherwise(tmp_path):
    folds = Folds(*np.array([[[0], [1]], [[1], [2]], [[2], [0]]]))
    write_splits(tmp_path, folds, NAMES)
    with pytest.raises(InputError, match=r"no other splits than these 1, got splits_1.csv"):
        write_splits(tmp_path, Folds(*(part[:1] for part in folds)), NAMES)
    with pytest.raises(InputError, match="expected names without blanks around them"):
        write_splits(tmp_path, folds, ("a", "b", " c"))
