"""Images: what a model is shown of a file, and what is said about a bad one."""

import io
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from jaxvlm.data.framing import Framing
from jaxvlm.data.images import check_image, load_image
from jaxvlm.errors import UserError


def square(side: int) -> Framing:
    return Framing(side, side)


def stripes(width: int, height: int) -> np.ndarray:
    """An image whose every pixel says where it stands."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x * 5, y * 5, (x + y) * 2], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("width", "height", "left", "top"), [(20, 10, 5, 0), (21, 10, 5, 0), (10, 24, 0, 7)]
)
def test_the_centre_is_cropped(tmp_path, width, height, left, top):
    pixels = stripes(width, height)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(str(tmp_path / "a.png"), square(10))
    np.testing.assert_array_equal(image, pixels[top : top + 10, left : left + 10])


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600))
def test_the_short_side_becomes_the_size(width, height, size):
    placed = square(size).place(width, height)
    new = placed.width, placed.height
    assert min(new) == size
    exact = size * max(width, height) / min(width, height)
    assert abs(max(new) - exact) <= 0.5 + 1e-6


def test_resizing_keeps_the_picture_in_place(tmp_path):
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:30, :45] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(str(tmp_path / "a.png"), square(20))
    assert image.shape == (20, 20, 3) and image.dtype == np.uint8
    assert image[:8, :8].min() > 190 and image[12:].max() < 10 and image[:, 12:].max() < 10


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(tmp_path, mode):
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 5, 10))
    image.convert(mode).save(tmp_path / "a.png")
    pixels = load_image(str(tmp_path / "a.png"), square(10))
    assert (pixels[:, :5] == 255).all() and (pixels[:, 5:] == 0).all()


def test_half_transparent_black_is_grey(tmp_path):
    Image.new("RGBA", (10, 10), (0, 0, 0, 128)).save(tmp_path / "a.png")
    pixels = load_image(str(tmp_path / "a.png"), square(10))
    assert np.abs(pixels.astype(int) - 127).max() <= 1


def test_the_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(stripes(20, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # The camera was held upright: turn clockwise to show it.
    image.save(tmp_path / "a.png", exif=exif)
    pixels = load_image(str(tmp_path / "a.png"), square(10))
    np.testing.assert_array_equal(pixels, np.rot90(stripes(20, 10), -1)[5:15])


# Kinds of EXIF's numbers: a text, and 16 bits.
@pytest.mark.parametrize("kind, content", [(2, b"6\0"), (3, b"\x09\0"), (3, b"\0\0")])
def test_an_orientation_that_is_none_is_upright(tmp_path, kind, content):
    count = 1 if kind == 3 else len(content)
    entry = struct.pack("<HHHI4sI", 1, 0x0112, kind, count, content, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + entry
    Image.fromarray(stripes(20, 10)).save(tmp_path / "a.jpg", exif=exif)
    assert 0x0112 in Image.open(tmp_path / "a.jpg").getexif()
    assert check_image(str(tmp_path / "a.jpg")) == (20, 10)
    assert load_image(str(tmp_path / "a.jpg"), square(10)).shape == (10, 10, 3)


@pytest.mark.parametrize("error", [RuntimeError("AVIF"), NotImplementedError("DDS")])
def test_what_pillow_cannot_do_names_the_file(tmp_path, monkeypatch, error):
    Image.new("RGB", (12, 12)).save(tmp_path / "a.png")

    def fail(self):
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(UserError, match=r"a\.png' cannot be read: (AVIF|DDS)"):
        check_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16"])
def test_other_modes_have_three_colours(tmp_path, mode):
    Image.new(mode, (12, 12)).save(tmp_path / "a.tiff")
    assert load_image(str(tmp_path / "a.tiff"), square(10)).shape == (10, 10, 3)


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "PPM"]), share=st.floats(0, 0.9))
def test_a_file_that_is_cut_off_is_named(tmp_path_factory, kind, share):
    noise = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    data = buffer.getvalue()
    path = tmp_path_factory.mktemp("cut") / "half.img"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=r"half\.img' cannot be read"):
        load_image(str(path), square(14))


def test_no_image_at_all(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    for name in ("text.jpg", "missing.jpg", "."):
        with pytest.raises(UserError, match="cannot be read"):
            load_image(str(tmp_path / name), square(14))


@settings(max_examples=20, deadline=None)
@given(
    size=st.sampled_from([(160, 120), (120, 160), (131, 97)]),
    x=st.floats(0.35, 0.65),
    y=st.floats(0.35, 0.65),
)
def test_intrinsics_follow_the_pixels(tmp_path_factory, size, x, y):
    """A point's spot lies, in the cropped image, where the cropped intrinsics project it."""
    width, height = size
    k = np.array([[150.0, 0, width / 2 + 3], [0, 140, height / 2 - 2], [0, 0, 1]])
    left, top = int(x * width), int(y * height)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top : top + 8, left : left + 8] = 255
    path = tmp_path_factory.mktemp("spot") / "a.png"
    Image.fromarray(pixels).save(path)
    point = np.linalg.inv(k) @ [left + 4, top + 4, 1]
    side = 56
    image = load_image(str(path), square(side))[..., 0].astype(float)
    centres = np.arange(side) + 0.5
    spot = np.array([image.sum(0) @ centres, image.sum(1) @ centres]) / image.sum()
    projected = square(side).intrinsics(k, width, height) @ point
    np.testing.assert_allclose(projected[:2] / projected[2] * side, spot, atol=0.2)


def test_sixteen_bits_a_pixel_are_scaled(tmp_path):
    ramp = np.linspace(0, 65535, 20 * 20).reshape(20, 20).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = load_image(str(tmp_path / "a.png"), square(20))
    np.testing.assert_allclose(pixels[..., 0], ramp / 257, atol=1)


def test_a_shape_of_no_photograph_is_refused(tmp_path):
    Image.new("RGB", (1, 20000)).save(tmp_path / "a.png")
    for read in (check_image, lambda path: load_image(path, square(14))):
        with pytest.raises(UserError, match=r"1 x 20000 pixels are no photograph"):
            read(str(tmp_path / "a.png"))


def test_numbers_are_no_colours(tmp_path):
    Image.new("F", (12, 12)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a.tiff.*mode 'F', not colours"):
        check_image(str(tmp_path / "a.tiff"))
