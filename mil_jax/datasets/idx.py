"""The IDX format: a big-endian header of type and sizes, then the values, all of it gzipped.

MNIST and its relatives come as four such files: images and labels, for training and for test.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mil_jax.datasets.records import Instances
from mil_jax.errors import InputError

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

UNSIGNED_BYTE = 0x08
"""The format's code for uint8, the only type of value that the files of this family hold."""


def read_instances(images: Path, labels: Path, class_count: int) -> Instances:
    """Reads a file of images ``[N, H, W]`` and its file of labels ``[N]``.

    Raises:
        InputError: a file is missing or damaged, the two differ in length, or a label is no class.
    """
    x, label = read_idx(images, axes=3), read_idx(labels, axes=1)
    if len(x) != len(label):
        remedy = f"it has {len(x)} images, but {labels.name} has {len(label)} labels: two files of one set would do"
        raise InputError("file", str(images), remedy)
    if label.size and label.max() >= class_count:
        remedy = f"it has the label {label.max()}, labels below {class_count} would do"
        raise InputError("file", str(labels), remedy)
    return Instances(x=x, label=label.astype(np.int32))


def read_idx(path: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """Reads one gzipped IDX file of bytes with the given number of axes.

    Raises:
        InputError: the file is missing, is not sound gzip, or is not such an IDX file of exactly
            the length that its header announces.
    """
    content = _unzip(path)
    header = 4 * (1 + axes)
    magic = struct.pack(">HBB", 0, UNSIGNED_BYTE, axes)
    if content[:4] != magic:
        remedy = (
            f"it starts with {content[:4].hex(' ') or 'nothing'}, an IDX file of bytes with"
            f" {axes} axes starts with {magic.hex(' ')}"
        )
        raise InputError("file", str(path), remedy)
    if len(content) < header:
        raise InputError("file", str(path), _cut_short(len(content), header, "its header"))
    shape = struct.unpack_from(f">{axes}I", content, offset=4)
    expected = header + math.prod(shape)
    if len(content) != expected:
        sizes = " x ".join(map(str, shape))
        raise InputError("file", str(path), _cut_short(len(content), expected, f"{sizes} values"))
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def write_idx(path: Path, values: UInt8[np.ndarray, "..."]) -> None:
    """Writes an array of bytes as a gzipped IDX file, without a date: same array, same file."""
    header = struct.pack(f">HBB{values.ndim}I", 0, UNSIGNED_BYTE, values.ndim, *values.shape)
    gzip_container = 31  # of zlib's codes for window sizes and containers
    path.write_bytes(zlib.compress(header + values.tobytes(), level=9, wbits=gzip_container))


def _unzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise InputError("file", str(path), "there is no such file") from None
    except EOFError:
        raise InputError("file", str(path), "it is cut short: copy the whole file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        remedy = f"it is not sound gzip ({error}): copy the original file again"
        raise InputError("file", str(path), remedy) from None
    except OSError as error:
        remedy = f"it cannot be read ({error.strerror}): a readable gzipped IDX file would do"
        raise InputError("file", str(path), remedy) from None


def _cut_short(found: int, expected: int, content: str) -> str:
    return f"it holds {found} bytes, but {content} take {expected}: copy the original file again"
