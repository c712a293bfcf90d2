"""Colon histology (CRCHistoPhenotypes, Sirinukunwattana et al. 2016) as bags, after Ilse et al. 2018.

A bag is an image, an instance the patch of 27 x 27 pixels around a nucleus, and a bag is positive if it holds an
epithelial nucleus. Where a patch reaches over the border, the image is mirrored at its outermost pixels: white, or
the outermost pixel repeated, would be a shape of its own that a network can learn.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from mil_jax.datasets.csv_rows import Row, bag_starts, check_columns, is_number, read_rows
from mil_jax.datasets.files import as_path, is_file, read_bytes, wrong_file
from mil_jax.datasets.records import BagSet
from mil_jax.errors import InputError

PATCH = 27
"""Height and width of a patch in pixels; odd, so that a nucleus is in its middle pixel."""
CLASSES = ("epithelial", "fibroblast", "inflammatory", "others")
POSITIVE = CLASSES.index("epithelial")
HEADER = ["image", "class", "x", "y"]
CONTENT = "a header image,class,x,y and a line for each nucleus, those of an image together"


def load_colon(data_dir: str | Path) -> BagSet:
    """Loads the images' nuclei as bags of patches, in the order of the nuclei table.

    Args:
        data_dir: a folder that holds ``nuclei.csv`` and ``images/NAME.png``, or whose ``colon`` does. A line of the
            table is ``image,class,x,y``: the image's name without ending, one of epithelial, fibroblast,
            inflammatory and others, and the nucleus' place in pixels, 1 being the middle of the first.

    Returns:
        uint8 patches ``[N, 27, 27, 3]``; the instance label is 1 for an epithelial nucleus and 0 for another;
        positions are the table's, x before y, from 1.

    Raises:
        InputError: the table or an image is missing, damaged or at odds with the other; it says where.
    """
    folder = _find(as_path("data_dir", data_dir))
    table, images = folder / "nuclei.csv", folder / "images"
    rows = _read_nuclei(table)
    starts = bag_starts(table, [f"line {row.line}" for row in rows], [row.cells[0] for row in rows])
    firsts = [rows[start] for start in starts]
    _check_images(table, images, firsts)
    kind = np.array([CLASSES.index(row.cells[1]) for row in rows], np.int32)
    position = np.array([[float(x), float(y)] for _, (_, _, x, y) in rows])
    patches, positive = [], (kind == POSITIVE).astype(np.int32)
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        image = _read_image(images / f"{rows[start].cells[0]}.png")
        pixels = _pixels(table, rows[start:end], position[start:end], image.shape[1::-1])
        patches.append(_cut_patches(image, pixels))
    return BagSet(
        name="colon",
        x=np.concatenate(patches),
        sizes=np.diff([*starts, len(rows)]).astype(np.int32),
        label=np.maximum.reduceat(positive, starts),
        bag_names=tuple(row.cells[0] for row in firsts),
        source=f"{table} and the {len(starts)} images of {images}",
        class_names=("no epithelial nucleus", "epithelial nucleus"),
        instance_label=positive,
        instance_class=kind,
        instance_class_names=CLASSES,
        position=position.astype(np.float32),
    )


def _find(data_dir: Path) -> Path:
    for folder in (data_dir, data_dir / "colon"):
        if is_file(folder / "nuclei.csv"):
            return folder
    expected = (
        f"expected a folder with nuclei.csv ({CONTENT}) and images/NAME.png, in itself or in its colon; the data is"
        " CRCHistoPhenotypes of Sirinukunwattana et al. 2016"
    )
    raise InputError("data_dir", str(data_dir), expected)


# The table


def _read_nuclei(path: Path) -> list[Row]:
    header, *rows = read_rows(path, CONTENT)
    if header.cells != HEADER or not rows:
        raise wrong_file(path, CONTENT, f"line 1 {','.join(header.cells)[:80]!r} and {len(rows)} more")
    check_columns(path, rows, len(HEADER), ",".join(HEADER))
    for line, (image, kind, x, y) in rows:
        if kind not in CLASSES:
            raise wrong_file(path, f"as class {', '.join(CLASSES)}", f"{kind!r} in line {line} of image {image!r}")
        if not (is_number(x) and is_number(y)):
            raise wrong_file(path, "numbers as x and y", f"{x!r} and {y!r} in line {line} of image {image!r}")
    return rows


def _check_images(path: Path, folder: Path, firsts: list[Row]) -> None:
    """Table and folder must know the same images; ``firsts`` are the first rows of each."""
    there = {image.stem for image in folder.glob("[!.]*.png")}  # without what a macOS archive leaves behind
    for line, (image, *_) in firsts:
        if image not in there:
            raise wrong_file(path, f"the image {folder / f'{image}.png'}, which line {line} names", "no such image")
    unknown = sorted(there - {row.cells[0] for row in firsts})
    if unknown:
        got = f"none of {len(unknown)} images, such as {folder / unknown[0]}.png"
        raise wrong_file(path, "a nucleus of each image at least", got)


def _pixels(
    path: Path, rows: list[Row], position: Float[np.ndarray, "K 2"], size: Sequence[int]
) -> Int[np.ndarray, "K 2"]:
    """The pixels, column and row from 0, that the nuclei of an image of a width and height are in.

    The data has nuclei up to 0.35 pixels outside the outermost ones. They count as in those; what is more than half
    a pixel outside is refused.
    """
    inside = ((position >= 0) & (position <= np.add(size, 1))).all(axis=1)
    if not inside.all():
        line, (image, _, x, y) = rows[int(np.argmin(inside))]
        got = f"x = {x}, y = {y} in line {line}, outside of image {image!r}"
        raise wrong_file(path, f"x from 1 to {size[0]} and y from 1 to {size[1]}", got)
    return np.clip(np.floor(position + 0.5).astype(int) - 1, 0, np.subtract(size, 1))


# The images


def _read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    import PIL.Image  # only these bags need it

    try:
        with PIL.Image.open(io.BytesIO(read_bytes(path, "a picture"))) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise wrong_file(path, "pixels of the kind RGB", image.mode)
            return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # of many kinds for damaged files, SyntaxError among them
        raise wrong_file(path, "a sound picture", f"what cannot be read ({type(error).__name__})") from None


def _cut_patches(image: UInt8[np.ndarray, "H W 3"], pixels: Int[np.ndarray, "K 2"]) -> UInt8[np.ndarray, "K 27 27 3"]:
    """Cuts the patches around pixels (column, row) out of an image, mirrored where they reach over its border."""
    margin = PATCH // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (PATCH, PATCH), axis=(0, 1))
    return np.ascontiguousarray(np.moveaxis(windows[pixels[:, 1], pixels[:, 0]], 1, -1))
