"""Images: decode, resize and crop to a square of the model's size."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from jaxvlm.errors import UserError

# The longest side of a photograph, in short sides; resizing longer ones would fill the memory.
_LONGEST = 20
# Pixels of an image; a larger one would take gigabytes to decode.
_MOST_PIXELS = 100_000_000
_ORIENTATION = 0x0112


def load_image(path: str, size: int) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image as the original does: short side to `size` (bicubic), then a centre crop.

    Transparency is laid over white; the EXIF orientation is applied.

    Args:
      path: any file Pillow reads.
      size: side of the square in pixels.

    Returns:
      The pixels `uint8[size, size, 3]`.

    Raises:
      UserError: a file that is no image or is cut off.
    """
    image = open_image(path)
    resized = resized_size(*image.size, size)
    if resized != image.size:
        image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = (resized[0] - size) // 2, (resized[1] - size) // 2
    if resized != (size, size):
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image)


def image_candidates(image: str, roots: Sequence[str]) -> list[str]:
    """Where an image of a record may lie: as it is written, or in one of the folders."""
    absolute = Path(image).is_absolute()
    return [image] if absolute else [str(Path(root, image)) for root in dict.fromkeys(roots)]


def find_image(image: str, roots: Sequence[str]) -> str | None:
    """The file of an image, or None where there is none."""
    for path in image_candidates(image, roots):
        # A path that is too long, or has a NUL in it, is no file's.
        with contextlib.suppress(OSError, ValueError):
            if Path(path).is_file():
                return path
    return None


def open_image(path: str) -> Image.Image:
    """A whole image, upright and in RGB.

    Raises:
      UserError: a file that is no image or is cut off.
    """
    with _open(path) as file:
        return upright_rgb(file)


def check_image(path: str) -> tuple[int, int]:
    """Decodes an image file to its end, as fast as that goes; returns `(width, height)` in pixels.

    The size is that of the upright image, as `load_image` sees it.

    Raises:
      UserError: a file that is no image, is cut off, or is too large.
    """
    with _open(path) as file:
        size = file.size
        turned = file.getexif().get(_ORIENTATION, 1) >= 5
        # A JPEG is read through all the same, but in an eighth of its size.
        file.draft("RGB", (max(size[0] // 8, 1), max(size[1] // 8, 1)))
        file.load()
    return size[::-1] if turned else size


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image as a person sees it: EXIF orientation applied, transparency over white, 8 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow would cut the values off at 255.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


@contextlib.contextmanager
def _open(path: str) -> Iterator[Image.Image]:
    """The opened file; whatever is wrong with it, then or while it is read, names it."""
    try:
        with Image.open(path) as file:
            if file.width * file.height > _MOST_PIXELS:
                size = f"{file.width} x {file.height} pixels"
                raise ValueError(f"it has {size}, more than {_MOST_PIXELS:,}; make it smaller")
            if max(file.size) > _LONGEST * min(file.size):
                raise ValueError(f"{file.width} x {file.height} pixels are no photograph's shape")
            if file.mode in ("I", "F"):
                raise ValueError(f"its pixels are numbers of mode {file.mode!r}, not colours")
            yield file
    except Image.DecompressionBombError as error:
        # Pillow refuses what is twice too large before its size can be asked for.
        found = re.search(r"\d+", str(error))
        size = f"{int(found.group()):,} pixels" if found else "too many pixels"
        text = f"it has {size}, more than {_MOST_PIXELS:,}; make it smaller"
        raise UserError(f"the image {path!r} cannot be read: {text}") from None
    except (OSError, ValueError, SyntaxError) as error:
        heic = path.lower().endswith((".heic", ".heif"))
        hint = "; convert HEIC photographs to JPEG" if heic else ""
        raise UserError(f"the image {path!r} cannot be read: {error}{hint}") from None


def resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """`(width, height)` after the short side is scaled to `size` pixels."""
    scale = size / min(width, height)
    return max(size, round(width * scale)), max(size, round(height * scale))


def crop_intrinsics(
    k: Float[np.ndarray, "3 3"], width: int, height: int, size: int
) -> Float[np.ndarray, "3 3"]:
    """Pixel intrinsics of a `width` x `height` image after `load_image`, divided by `size`.

    The result holds focal lengths and principal point as fractions of the square's side.
    """
    new_width, new_height = resized_size(width, height, size)
    k = k.astype(np.float64).copy()
    k[0] *= new_width / width
    k[1] *= new_height / height
    k[0, 2] -= (new_width - size) // 2
    k[1, 2] -= (new_height - size) // 2
    k[:2] /= size
    return k.astype(np.float32)
