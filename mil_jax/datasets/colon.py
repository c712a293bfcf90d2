"""Colon histology (CRCHistoPhenotypes, Sirinukunwattana et al. 2016) as bags, after Ilse et al. 2018.

A bag is an image, an instance the patch of 27 x 27 pixels around a nucleus, and a bag is positive if it holds an
epithelial nucleus. Where a patch reaches over the border, the image is mirrored at its outermost pixels: white, or
the outermost pixel repeated, would be a shape of its own that a network can learn.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import Int, UInt8

from mil_jax.datasets.csv_rows import Row, bag_starts, is_number, read_rows
from mil_jax.datasets.records import BagSet, build_bag_set
from mil_jax.errors import InputError

PATCH = 27
"""Height and width of a patch in pixels; odd, so that a nucleus is in its middle pixel."""
CLASSES = ("epithelial", "fibroblast", "inflammatory", "others")
POSITIVE = CLASSES.index("epithelial")
HEADER = ["image", "class", "x", "y"]
CONTENT = "a header image,class,x,y and a line for each nucleus, those of an image together,"


@dataclass(frozen=True, eq=False)
class _Nuclei:
    """The rows of the table: line, image, class (index of CLASSES), and x, y in pixels from 1, [N, 2]."""

    path: Path
    lines: list[int]
    images: list[str]
    classes: np.ndarray
    position: np.ndarray


def load_colon(data_dir: Path) -> BagSet:
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
    folder = _find(data_dir.expanduser())
    nuclei = _read_nuclei(folder / "nuclei.csv")
    starts = bag_starts(nuclei.path, [f"line {line}" for line in nuclei.lines], nuclei.images)
    names = [nuclei.images[start] for start in starts]
    ends = [*starts[1:], len(nuclei.images)]
    _check_images(folder / "images", nuclei, starts)
    patches, positive = [], (nuclei.classes == POSITIVE).astype(np.int32)
    for start, end in zip(starts, ends, strict=True):
        image = _read_image(folder / "images" / f"{nuclei.images[start]}.png")
        pixels = _pixels(nuclei, start, end, (image.shape[0], image.shape[1]))
        patches.append(cut_patches(image, pixels))
    return build_bag_set(
        "colon",
        np.concatenate(patches),
        np.diff([*starts, len(positive)]).tolist(),
        np.maximum.reduceat(positive, starts).tolist(),
        names,
        f"{folder / 'nuclei.csv'} and the {len(names)} images of {folder / 'images'}",
        instance_label=positive,
        instance_class=nuclei.classes,
        instance_class_names=CLASSES,
        position=nuclei.position.astype(np.float32),
    )


def cut_patches(
    image: UInt8[np.ndarray, "H W 3"], pixels: Int[np.ndarray, "K 2"], size: int = PATCH
) -> UInt8[np.ndarray, "K {size} {size} 3"]:
    """Cuts square patches out of an image, which is mirrored where they reach over its border.

    Args:
        image: ``[H, W, 3]``.
        pixels: ``[K, 2]`` column and row, from 0, of each patch's middle.
        size: height and width, odd.
    """
    margin = size // 2
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1))
    return np.ascontiguousarray(np.moveaxis(windows[pixels[:, 1], pixels[:, 0]], 1, -1))


def _find(data_dir: Path) -> Path:
    for folder in (data_dir, data_dir / "colon"):
        if (folder / "nuclei.csv").is_file():
            return folder
    remedy = (
        f"neither it nor {data_dir / 'colon'} holds nuclei.csv: a folder with nuclei.csv ({CONTENT[:-1]}) and"
        " images/NAME.png would do; the data is CRCHistoPhenotypes of Sirinukunwattana et al. 2016"
    )
    raise InputError("data_dir", str(data_dir), remedy)


# The table


def _read_nuclei(path: Path) -> _Nuclei:
    header, *rows = read_rows(path, CONTENT[:-1])
    if [cell.strip() for cell in header.cells] != HEADER:
        raise InputError("file", str(path), f"line 1 is {','.join(header.cells)[:80]!r}: {CONTENT} would do")
    if not rows:
        raise InputError("file", str(path), f"it has a header and no nuclei: {CONTENT} would do")
    cells = [_check_nucleus(path, row) for row in rows]
    position = np.array([[float(x), float(y)] for _, _, x, y in cells])
    classes = np.array([CLASSES.index(kind) for _, kind, _, _ in cells], np.int32)
    return _Nuclei(path, [row.line for row in rows], [image for image, *_ in cells], classes, position)


def _check_nucleus(path: Path, row: Row) -> list[str]:
    cells = [cell.strip() for cell in row.cells]
    if len(cells) != len(HEADER):
        complaint = f"{len(cells)} columns; {','.join(HEADER)} would do"
    elif cells[1] not in CLASSES:
        complaint = f"the class {cells[1]!r}; {', '.join(CLASSES)} would do"
    elif not (is_number(cells[2]) and is_number(cells[3])):
        complaint = f"x = {cells[2]!r} and y = {cells[3]!r}; numbers would do"
    else:
        return cells
    raise InputError("file", str(path), f"line {row.line} of image {cells[0]!r} has {complaint}")


def _check_images(folder: Path, nuclei: _Nuclei, starts: list[int]) -> None:
    """Table and folder must know the same images."""
    there = {path.stem for path in folder.glob("[!.]*.png")}  # without what a macOS archive leaves behind
    for start in starts:
        image = nuclei.images[start]
        if image not in there:
            remedy = f"line {nuclei.lines[start]} names the image {image!r}, but there is no {folder / image}.png"
            raise InputError("file", str(nuclei.path), f"{remedy}: that image, or a table without it, would do")
    unknown = sorted(there - set(nuclei.images))
    if unknown:
        remedy = (
            f"{nuclei.path} has no nucleus of it (unknown images: {len(unknown)}), and a bag cannot be empty:"
            " lines for its nuclei, or a folder without it, would do"
        )
        raise InputError("file", str(folder / f"{unknown[0]}.png"), remedy)


# The images


def _read_image(path: Path) -> np.ndarray:
    try:
        with PIL.Image.open(path) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise InputError("file", str(path), f"its pixels are of the kind {image.mode}: RGB would do")
            return np.asarray(image.convert("RGB"))
    except InputError:
        raise
    except Exception as error:
        # Pillow raises errors of many kinds for damaged files, SyntaxError among them.
        remedy = f"it is no sound picture ({type(error).__name__}): copy the original file again"
        raise InputError("file", str(path), remedy) from None


def _pixels(nuclei: _Nuclei, start: int, end: int, shape: tuple[int, int]) -> np.ndarray:
    """The pixels, column and row from 0, that some nuclei of one image are in.

    The data has nuclei up to 0.35 pixels outside the outermost ones. They count as in those; what is more than half
    a pixel outside is refused.
    """
    height, width = shape
    place = nuclei.position[start:end]
    inside = ((place >= 0) & (place <= (width + 1, height + 1))).all(axis=1)
    if not inside.all():
        row = start + int(np.argmin(inside))
        x, y = nuclei.position[row]
        remedy = (
            f"line {nuclei.lines[row]}: the nucleus at x = {x:g}, y = {y:g} is outside of image"
            f" {nuclei.images[row]!r} of {width} x {height} pixels: x from 1 to {width} and y from 1 to {height}"
            " would do"
        )
        raise InputError("file", str(nuclei.path), remedy)
    return np.clip(np.floor(place + 0.5).astype(int) - 1, 0, (width - 1, height - 1))
