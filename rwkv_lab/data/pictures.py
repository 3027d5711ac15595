"""Pictures as arrays: read through Pillow, cut into patches, rounded to levels, and written as PNG grids."""

import importlib.util
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rwkv_lab.config.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
# Colour photographs that two packages carry, the first preferred; their licences are in the packages.
PHOTOGRAPHS = {
    "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}
SIDES = 4  # pictures that lie along the shorter side of a photograph
GAP = 2  # pixels between the pictures of a grid
SCALE = 4  # times a picture is enlarged in a grid


class Picture(NamedTuple):
    """A picture of a corpus."""

    colours: np.ndarray  # [S,S,3] float32, 0 to 255
    caption: str  # empty if there is none


def pillow() -> None:
    """Raise UserError if Pillow is not installed."""
    if importlib.util.find_spec("PIL") is None:
        raise UserError("data=images needs the package pillow: pip install 'rwkv_lab[images]'")


def photographs() -> list[Path]:
    """Return the photographs of scikit-image, or else those of scikit-learn; UserError without any."""
    for package, (folder, names) in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin:
            files = [Path(spec.origin).parent / folder / name for name in names]
            if all(file.is_file() for file in files):
                return files
    raise UserError(
        "data=images without data.path reads photographs of the package scikit-image: pip install "
        "'rwkv_lab[images]', or give data.path=FOLDER of PNG and JPEG files"
    )


def opened(file: Path) -> "Image":
    """Return the picture in ``file`` in RGB; UserError if it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise UserError(f"{file} is not a readable picture: {str(error).splitlines()[0]}") from None


def resized(image: "Image", shorter: int) -> np.ndarray:
    """Return ``image`` with a shorter side of ``shorter`` pixels, float32 [H,W,3], 0 to 255."""
    factor = shorter / min(image.size)
    width, height = (max(shorter, round(side * factor)) for side in image.size)
    return np.asarray(image.resize((width, height)), np.float32)


def middle(colours: np.ndarray, size: int) -> np.ndarray:
    """Return the square of ``size`` in the middle of [H,W,3]."""
    top, left = ((side - size) // 2 for side in colours.shape[:2])
    return colours[top : top + size, left : left + size]


def as_tokens(file: Path, size: int, levels: int) -> np.ndarray:
    """Return the picture in ``file`` in the nearest levels, its middle square as tokens [size*size]."""
    colours = middle(resized(opened(file), size), size) * ((levels - 1) / 255.0)
    return packed(np.rint(colours).astype(np.int64), levels).reshape(-1)


def tiles(colours: np.ndarray, size: int, stride: int) -> Iterator[np.ndarray]:
    """Yield the squares of ``size`` of [H,W,3], ``stride`` pixels apart."""
    for top in range(0, colours.shape[0] - size + 1, stride):
        for left in range(0, colours.shape[1] - size + 1, stride):
            yield colours[top : top + size, left : left + size]


def patches(size: int) -> tuple[list[Picture], list[Picture]]:
    """Return training and held-out patches of the photographs; the latter lie in a strip at the right of each.

    A photograph is reduced to ``SIDES`` patches along its shorter side. No pixel is in patches of both kinds.
    """
    train, held = [], []
    for file in photographs():
        whole = resized(opened(file), SIDES * size)
        edge = whole.shape[1] - max(size, whole.shape[1] // 5)
        train += [Picture(tile, "") for tile in tiles(whole[:, :edge], size, max(1, size // 8))]
        held += [Picture(tile, "") for tile in tiles(whole[:, edge:], size, max(1, size // 8))]
    return train, held


def rand_round(values: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return values [...] as whole numbers, upwards where u in [0,1) is below the fraction: 4.578 to 5 in 57.8 %.

    The mean over draws is the value itself (Peng, RWKV-LM).
    """
    low = np.floor(values)
    rounded: np.ndarray = (low + (u < values - low)).astype(np.int64)
    return rounded


def neighbours(values: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens that values [...,3] lie between, int64 [...,8], and their shares, float32 [...,8].

    A token's share is the product over the channels of 1 minus the distance to its level; together 1.
    """
    low = np.floor(values).astype(np.int64)
    share = values - low
    up = (np.arange(8)[:, None] >> np.array([2, 1, 0])) & 1  # [8,3]
    shares = np.where(up, share[..., None, :], 1.0 - share[..., None, :]).prod(-1)
    tokens = packed(np.minimum(low[..., None, :] + up, levels - 1), levels)
    return tokens, shares.astype(np.float32)


def packed(colours: np.ndarray, levels: int) -> np.ndarray:
    """Return the tokens of whole levels [...,3], int64 [...]."""
    return (colours[..., 0] * levels + colours[..., 1]) * levels + colours[..., 2]


def unpacked(tokens: np.ndarray, levels: int) -> np.ndarray:
    """Return the colours of tokens [...], uint8 [...,3], 0 to 255."""
    parts = np.stack((tokens // levels**2, tokens // levels % levels, tokens % levels), axis=-1)
    return np.round(parts * (255.0 / (levels - 1))).astype(np.uint8)


def grid(rows: Sequence[np.ndarray]) -> bytes:
    """Return a PNG of rows of pictures, each uint8 [N,S,S,3], enlarged."""
    from PIL import Image

    size = rows[0].shape[1] * SCALE
    width = max(map(len, rows)) * (size + GAP) - GAP
    canvas = np.full((len(rows) * (size + GAP) - GAP, width, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row.repeat(SCALE, axis=1).repeat(SCALE, axis=2)):
            canvas[y * (size + GAP) :, x * (size + GAP) :][:size, :size] = picture
    written = io.BytesIO()
    Image.fromarray(canvas).save(written, "PNG")
    return written.getvalue()
