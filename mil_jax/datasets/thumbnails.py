"""Small pictures of whole slides, as people keep them beside their features: NAME.png, NAME.jpg or NAME.tif."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mil_jax.datasets.files import as_path, is_file, wrong_file

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


def thumbnail_for(folder: str | Path, bag_name: str) -> UInt8[np.ndarray, "H W 3"] | None:
    """The picture of a bag's slide in a folder, in colour on white; None where there is none of that name.

    Raises:
        InputError: a file of that name that is no picture, or too large to be a thumbnail.
    """
    place = as_path("folder", folder)
    names = (f"{bag_name}{ending}" for lower in ENDINGS for ending in (lower, lower.upper()))
    path = next((place / name for name in names if is_file(place / name)), None)
    return None if path is None else read_thumbnail(path)


def read_thumbnail(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """A PNG, JPEG or TIFF file as an image; what is transparent becomes white.

    Raises:
        InputError: what is no picture, or too large to be a thumbnail.
    """
    expected = f"a picture of at most {Image.MAX_IMAGE_PIXELS or 0:,} pixels"
    try:
        with Image.open(path) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
                raise wrong_file(path, expected, f"one of {image.width} x {image.height}")
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image.convert("RGBA"))
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise wrong_file(path, expected, f"what cannot be read ({error})") from None
    return np.array(page.convert("RGB"))
