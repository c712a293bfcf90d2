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

from mil_jax.datasets.files import read_bytes, wrong_file
from mil_jax.datasets.records import Instances

TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"
FILES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

UNSIGNED_BYTE = 0x08
"""The format's code for uint8, the only type of value that the files of this family hold."""


def read_instances(images: Path, labels: Path, class_count: int) -> Instances:
    """Reads files of images [N, H, W] and of labels [N]; an InputError if they are damaged or do not fit together."""
    x, label = read_idx(images, axes=3), read_idx(labels, axes=1)
    if len(x) != len(label):
        raise wrong_file(images, f"{len(label)} images, as {labels.name} has labels", f"{len(x)} images")
    if label.size and label.max() >= class_count:
        raise wrong_file(labels, f"labels below {class_count}", f"the label {label.max()}")
    return Instances(x=x, label=label.astype(np.int32))


def read_idx(path: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """Reads one gzipped IDX file of bytes with so many axes; an InputError unless it is as long as its header says."""
    zipped = read_bytes(path, "gzipped IDX")
    try:
        content = gzip.decompress(zipped)
    except EOFError:
        raise wrong_file(path, "a whole file of gzip", "one that is cut short") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise wrong_file(path, "sound gzip", str(error)) from None
    magic, header = struct.pack(">HBB", 0, UNSIGNED_BYTE, axes), 4 * (1 + axes)
    if content[:4] != magic:
        expected = f"an IDX file of bytes with {axes} axes, which starts with {magic.hex(' ')}"
        raise wrong_file(path, expected, content[:4].hex(" ") or "nothing")
    shape = struct.unpack_from(f">{axes}I", content.ljust(header, b"\0"), offset=4)
    length = header + math.prod(shape)
    if len(content) != length:
        raise wrong_file(path, f"{length} bytes, as its header says", f"{len(content)} bytes")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
