"""Images: decoded and brought into the model's frame."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from jaxvlm.data.augment import Change
from jaxvlm.data.framing import Framing, Placement
from jaxvlm.errors import UserError

# The longest side of a photograph, in short sides; resizing longer ones would fill the memory.
_LONGEST = 20
# Pixels of an image; a larger one would take gigabytes to decode.
_MOST_PIXELS = 100_000_000
_ORIENTATION = 0x0112


def load_image(
    path: str, framing: Framing, change: Change | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Reads an image into the frame: scaled (bicubic), then cropped or padded white.

    Transparency is laid over white; the EXIF orientation is applied. Only the columns that are
    shown are computed: scaling all of it and cropping then gives the same but for one pixel in a
    thousand, by two levels of 255 at most.

    Args:
      path: any file Pillow reads.
      framing: the frame.
      change: of window and colours.

    Returns:
      The pixels `uint8[H, W, 3]`.

    Raises:
      UserError: a file that is no image or is cut off.
    """
    change = change or Change()
    with _open(path) as file:
        size = upright_size(file)
        placed = framing.place(*size, change.window)
        if framing.draft:
            least = (placed.width, placed.height)
            file.draft(None, least if size == file.size else least[::-1])
        image = upright_rgb(file)
    return np.asarray(_framed(image, placed, framing, change))


def _framed(image: Image.Image, placed: Placement, framing: Framing, change: Change) -> Image.Image:
    """The frame's part of the scaled image, recoloured, on white where it has none."""
    left, top = max(placed.left, 0), max(placed.top, 0)
    right = min(placed.left + framing.width, placed.width)
    bottom = min(placed.top + framing.height, placed.height)
    shown = image
    if image.size != (placed.width, placed.height) or right - left < placed.width:
        # Rows outside are scaled as well: for fewer of them Pillow goes through rows and columns in
        # another order, which rounds every tenth pixel otherwise.
        across = image.width / placed.width
        box = (left * across, 0, right * across, image.height)
        shown = image.resize((right - left, placed.height), Image.Resampling.BICUBIC, box)
    if top > 0 or bottom < placed.height:
        shown = shown.crop((0, top, shown.width, bottom))
    shown = change.recoloured(shown)
    if shown.size == (framing.width, framing.height):
        return shown
    frame = Image.new("RGB", (framing.width, framing.height), "white")
    frame.paste(shown, (max(-placed.left, 0), max(-placed.top, 0)))
    return frame


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
        size = upright_size(file)
        # A JPEG is read through all the same, but in an eighth of its size.
        file.draft("RGB", (max(file.width // 8, 1), max(file.height // 8, 1)))
        file.load()
    return size


def upright_size(file: Image.Image) -> tuple[int, int]:
    """(width, height) of an opened file as a person sees it."""
    return file.size[::-1] if _orientation(file) >= 5 else file.size


def _orientation(file: Image.Image) -> int:
    """That of EXIF, from 1, which is upright, to 8; what is no such number counts as upright."""
    found = file.getexif().get(_ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image as a person sees it: EXIF orientation applied, transparency over white, 8 bits."""
    if _orientation(image) != 1:
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
    # What Pillow's readers raise of files that are broken, or of a kind they know in part.
    except (OSError, ValueError, SyntaxError, RuntimeError, NotImplementedError) as error:
        heic = path.lower().endswith((".heic", ".heif"))
        hint = "; convert HEIC photographs to JPEG" if heic else ""
        raise UserError(f"the image {path!r} cannot be read: {error}{hint}") from None
