"""Tensors without PyTorch: what it would save, by hand, comes back; what is more than tensors is refused unrun."""

import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import assert_parts, message_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.datasets.tensors import BRAIN_FLOAT, STORAGES, read_tensors
from mil_jax.errors import InputError


def plain(value: Any) -> bytes:
    """The instructions that put a plain value on the stack."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(
    shape: tuple, strides: tuple, *, kind: str = "FloatStorage", record: str = "0", count: int, offset: int = 0
) -> bytes:
    """The instructions with which PyTorch describes a tensor."""
    storage = (
        b"(" + plain("storage") + f"ctorch\n{kind}\n".encode() + plain(record) + plain("cpu") + plain(count) + b"tQ"
    )
    rest = plain(offset) + plain(shape) + plain(strides) + plain(False) + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def save(path: Path, code: bytes, *storages: bytes, order: str = "little") -> Path:
    """A zip as `torch.save` leaves it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + code + b".")
        archive.writestr("archive/byteorder", order)
        for number, storage in enumerate(storages):
            archive.writestr(f"archive/data/{number}", storage)
    return path


DENSE = [kind for kind in STORAGES if kind != BRAIN_FLOAT]


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(DENSE),
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    axes=st.randoms(use_true_random=False),
    offset=st.integers(0, 3),
    big=st.booleans(),
)
def test_any_dense_view_comes_back_with_its_type(tmp_path_factory, kind, shape, axes, offset, big):
    dtype = np.dtype(STORAGES[kind])
    whole = np.arange(offset + math.prod(shape)).astype(dtype)
    order = axes.sample(range(len(shape)), len(shape))
    view = whole[offset:].reshape(shape).transpose(order)
    strides = tuple(step // dtype.itemsize for step in view.strides)
    code = tensor(view.shape, strides, kind=kind, count=len(whole), offset=offset)
    stored = whole.astype(dtype.newbyteorder(">" if big else "<")).tobytes()
    path = save(tmp_path_factory.mktemp("pt") / "a.pt", code, stored, order="big" if big else "little")
    np.testing.assert_array_equal(read_tensors(path), view, strict=True)
    header: Any = read_tensors(path, headers=True)
    assert (header.shape, header.dtype) == (view.shape, view.dtype)


def test_a_dict_of_tensors_and_plain_values(tmp_path):
    x = np.array([[1.5, -2], [0, 3]], np.float32)
    items = {"features": tensor((2, 2), (2, 1), kind=BRAIN_FLOAT, count=4),
             "coords": tensor((2,), (1,), kind="LongStorage", record="1", count=2)}  # fmt: skip
    items |= {key: plain(value) for key, value in {"slide": "é", "n": 2**40, "f": 0.5, "no": None, "yes": True}.items()}
    code = b"ccollections\nOrderedDict\n)R(" + b"".join(plain(key) + value for key, value in items.items()) + b"u"
    upper = (x.view(np.uint32) >> 16).astype("<u2").tobytes()  # these four are bfloat16 without rounding
    read: Any = read_tensors(save(tmp_path / "a.pt", code, upper, np.array([7, 9], "<i8").tobytes()))
    assert read["coords"].tolist() == [7, 9]
    assert set(read) == {"features", "coords"}
    np.testing.assert_array_equal(read["features"], x, strict=True)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickled_object_is_refused_by_name_and_not_run(tmp_path, protocol):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "done",)

    code = pickle.dumps({"features": Malicious()}, protocol)
    pickle.loads(code)
    (tmp_path / "done").unlink()  # so it would have run
    path = save(tmp_path / "a.pt", code[2:-1])
    for headers in (True, False):
        message = message_of(read_tensors, path, headers=headers)
        assert_parts(message, path, "expected tensors alone (nothing in the file was run)", "got a pickled object ")
    assert not (tmp_path / "done").exists()


CALL = b"cos\nsystem\n(" + plain("false") + b"tR"
ALL = (2, 3), (3, 1)
WRONG = [
    (CALL, "got a pickled object os.system"), (b"cbuiltins\neval\n.", "got a pickled object builtins.eval"),
    (plain("torch") + plain("load") + b"\x93", "a pickled object torch.load"),
    (b"ctorch\nFloatStorage\n(" + plain(3) + b"tR", "a pickled call of something else"),
    (plain([1]), "a pickled object (instruction EMPTY_LIST)"), (plain(3), "a tensor, or a dict of tensors, got a int"),
    (b"}" + plain("state") + b"b", "instruction BUILD"), (b"(" + b"i" + b"os\nsystem\n", "instruction INST"),
    (tensor(*ALL, count=7), "[2, 3] that does not fit into 6"), (tensor((3, 3), (3, 1), count=6), "does not fit"),
    (tensor(*ALL, count=6, offset=1), "does not fit"), (tensor((9,), (0,), count=6), "does not fit into 6"),
    (tensor((2, 3), (3,), count=6), "a size that is none"), (tensor((2, -3), (3, 1), count=6), "a size that is none"),
    (tensor((2**40,) * 2, (0, 0), count=6), "does not fit"), (tensor((2,), (2**62,), count=6), "a size that is none"),
    (tensor(*ALL, count=6, record="5"), "archive/data/5"), (tensor(*ALL, count=6, kind="Storage"), "torch.Storage"),
    (b"", "cannot be read"),
    (b"}" + plain(1) + plain(2) + b"s", "a key that is no text"), (b"\x89" * 3 + b"s", "no dict"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "complaint"), WRONG)
def test_what_does_not_fit_or_is_more_than_tensors_is_named(tmp_path, code, complaint):
    path = save(tmp_path / "a.pt", code, np.zeros(6, "<f4").tobytes())
    assert_parts(message_of(read_tensors, path), path, complaint)


def test_another_file_says_what_to_do(tmp_path):
    path = save(tmp_path / "a.pt", tensor(*ALL, count=6), np.zeros(6, "<f4").tobytes())
    sound = path.read_bytes()
    for content in (b"", sound[: len(sound) // 2], pickle.dumps(119547037146038801333356, 2)):
        path.write_bytes(content)
        assert_parts(message_of(read_tensors, path), path, "since PyTorch 1.6", "torch.save(torch.load(PATH), PATH)")
    path.write_bytes(sound.replace(np.zeros(6, "<f4").tobytes(), b"x" * 24))
    assert "CRC" in message_of(read_tensors, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"")
    assert "no data.pkl" in message_of(read_tensors, path)


def test_a_damaged_program_never_ends_the_process(tmp_path):
    draw, refused = np.random.default_rng(0), 0
    code = np.frombuffer(tensor(*ALL, count=6), np.uint8)
    for _ in range(400):
        damaged = code.copy()
        damaged[draw.integers(0, len(code), 2)] ^= draw.integers(1, 256, 2).astype(np.uint8)
        try:
            read_tensors(save(tmp_path / "a.pt", damaged.tobytes(), np.zeros(6, "<f4").tobytes()))
        except InputError as error:
            refused += "\n" not in str(error)
    assert refused > 200
