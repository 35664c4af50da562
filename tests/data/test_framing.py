"""Framing: images of all shapes in one frame, as the original and as VGGT do it, and changed."""

import io
import json
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given, settings
from PIL import Image

from jaxvlm.data.augment import Augment, Change
from jaxvlm.data.framing import RESIZES, Framing, Window
from jaxvlm.data.images import load_image

CASES = json.loads((Path(__file__).parents[1] / "fixtures" / "vggt_preprocess.json").read_text())


def formula(width: int, height: int, mode: str) -> Image.Image:
    """The images that the official code was given."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [(3 * x + 5 * y + 40 * c) % 256 for c in range(3)]
    channels += [(x + y) % 256] if mode == "RGBA" else []
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8), mode)


def single(case: dict) -> bool:
    return case["function"] == "load_and_preprocess_images" and len(case["inputs_w_h_mode"]) == 1


@pytest.mark.parametrize(
    "case", [c for c in CASES["cases"] if single(c)], ids=lambda c: str(c["inputs_w_h_mode"])
)
def test_vggts_own_preprocessing(case, tmp_path):
    ((width, height, mode),) = case["inputs_w_h_mode"]
    formula(width, height, mode).save(tmp_path / "a.png")
    _, _, high, wide = case["shape"]
    framing = Framing(high, wide, case["kwargs"].get("mode", "crop"))
    image = load_image(str(tmp_path / "a.png"), framing).astype(np.float64) / 255
    np.testing.assert_allclose(image.mean((0, 1)), case["channel_mean"][0], atol=1e-4)
    for (y, x), expected in zip(case["pixels_y_x"], case["pixel_values"][0], strict=True):
        np.testing.assert_allclose(image[y, x], expected, atol=1e-6)


def test_the_originals_way_is_resized_and_then_cropped(tmp_path):
    """Only what is shown is computed, which rounds a few pixels otherwise."""
    rng = np.random.default_rng(0)
    for size in [(640, 480), (480, 640), (1296, 968), (500, 333)]:
        noise = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8))
        noise.resize(size).save(tmp_path / "a.png")
        scale = 448 / min(size)
        whole = Image.open(tmp_path / "a.png").resize(
            (max(448, round(size[0] * scale)), max(448, round(size[1] * scale))),
            Image.Resampling.BICUBIC,
        )
        left, top = (whole.width - 448) // 2, (whole.height - 448) // 2
        expected = np.asarray(whole.crop((left, top, left + 448, top + 448))).astype(int)
        image = load_image(str(tmp_path / "a.png"), Framing(448, 448)).astype(int)
        assert np.abs(image - expected).max() <= 2
        assert (image != expected).mean() < 2e-3


@given(
    st.integers(30, 2000),
    st.integers(30, 2000),
    st.sampled_from(RESIZES),
    st.sampled_from([(448, 448), (336, 448), (518, 518)]),
)
def test_a_frame_is_filled_or_padded_evenly(width, height, resize, frame):
    if max(width, height) > 10 * min(width, height):
        return
    framing = Framing(*frame, resize)
    placed = framing.place(width, height)
    ahead = (placed.left, placed.top)
    behind = (
        placed.width - framing.width - placed.left,
        placed.height - framing.height - placed.top,
    )
    assert all(abs(a - b) <= 1 for a, b in zip(ahead, behind, strict=True))
    if resize == "short_side":
        assert min(ahead) >= 0
    if resize == "pad":
        assert max(ahead) <= 0
        assert placed.width == framing.width or placed.height == framing.height
    if resize == "crop":
        assert placed.width == framing.width and placed.height % 14 == 0


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([(160, 120), (120, 160), (131, 97)]),
    place=st.tuples(st.floats(0.42, 0.58), st.floats(0.42, 0.58)),
    resize=st.sampled_from(RESIZES),
    frame=st.sampled_from([(56, 56), (42, 56)]),
    window=st.none()
    | st.builds(Window, st.floats(1, 1.3), st.floats(0.3, 0.7), st.floats(0.3, 0.7)),
)
def test_intrinsics_follow_the_pixels_however_they_are_framed(size, place, resize, frame, window):
    """A point's spot lies, in the frame, where the frame's intrinsics project it."""
    width, height = size
    k = np.array([[150.0, 0, width / 2 + 3], [0, 140, height / 2 - 2], [0, 0, 1]])
    left, top = int(place[0] * width), int(place[1] * height)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[top : top + 8, left : left + 8] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    framing = Framing(*frame, resize)
    image = load_image(file, framing, Change(window))[..., 0].astype(float)
    # Padding is white too.
    placed = framing.place(width, height, window)
    image[: max(-placed.top, 0)] = image[placed.height - placed.top :] = 0
    image[:, : max(-placed.left, 0)] = image[:, placed.width - placed.left :] = 0
    rows, columns = (np.arange(side) + 0.5 for side in frame)
    spot = np.array([image.sum(0) @ columns, image.sum(1) @ rows]) / image.sum()
    to_frame = framing.intrinsics(k, width, height, window) @ np.linalg.inv(k)

    def projected(x, y):
        x, y, depth = to_frame @ [x, y, 1]
        return np.array([x, y]) / depth * frame[::-1]

    # A spot that the frame cuts has its middle elsewhere.
    assume((projected(left, top) > 1).all())
    assume((projected(left + 8, top + 8) < np.array(frame[::-1]) - 1).all())
    np.testing.assert_allclose(projected(left + 4, top + 4), spot, atol=0.25)


def test_a_draft_is_nearly_the_same_and_only_of_large_jpegs(tmp_path):
    x, y = np.meshgrid(np.linspace(0, 12, 1296), np.linspace(0, 9, 968))
    waves = np.stack([np.sin(x), np.cos(y), np.sin(x + y)], -1) * 120 + 128
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "a.jpg", quality=90)
    exact, draft = (
        load_image(str(tmp_path / "a.jpg"), Framing(448, 448, draft=d)).astype(int)
        for d in (False, True)
    )
    difference = np.abs(exact - draft)
    assert 0 < difference.mean() < 1.5
    small = [
        load_image(str(tmp_path / "a.jpg"), Framing(966, 966, patch=14, draft=d))
        for d in (False, True)
    ]
    np.testing.assert_array_equal(*small)


def test_a_draft_of_a_turned_photograph_stands_upright(tmp_path):
    pixels = np.zeros((1200, 800, 3), np.uint8)
    pixels[:600] = 200
    image = Image.fromarray(np.rot90(pixels))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    made = load_image(str(tmp_path / "a.jpg"), Framing(224, 224, draft=True))
    assert made[:100].min() > 150 and made[-100:].max() < 50


def test_no_change_is_asked_for_by_default():
    assert Augment().draw(3, 2) == [Change(), Change()] and not Augment().active


@given(st.integers(0, 2**31 - 1), st.integers(1, 8))
def test_changes_are_a_function_of_the_seed_and_within_their_bounds(seed, views):
    augment = Augment(color_jitter=0.3, random_crop=0.2)
    drawn = augment.draw(seed, views)
    assert drawn == augment.draw(seed, views) and len(drawn) == views
    assert len({change.colours for change in drawn}) == 1
    assert all(0.7 <= factor <= 1.3 for factor in drawn[0].colours)
    for change in drawn:
        assert 1 <= change.window.zoom <= 1 / 0.8
        assert 0 <= change.window.x <= 1 and 0 <= change.window.y <= 1


def test_views_are_windowed_each_for_itself_and_never_mirrored(tmp_path):
    """Left stays left: a bright left half is bright on the left in every window."""
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[:, :50] = 250
    Image.fromarray(pixels).save(tmp_path / "a.png")
    shown = set()
    for seed in range(40):
        (change,) = Augment(random_crop=0.4).draw(seed, 1)
        image = load_image(str(tmp_path / "a.png"), Framing(56, 56), change)
        assert image[:, 0].mean() > image[:, -1].mean()
        shown.add(image.tobytes())
    assert len(shown) > 20


def test_colours_change_and_places_do_not(tmp_path):
    pixels = np.zeros((56, 56, 3), np.uint8)
    pixels[:28] = (200, 90, 40)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    plain = load_image(str(tmp_path / "a.png"), Framing(56, 56))
    (change,) = Augment(color_jitter=0.5).draw(1, 1)
    jittered = load_image(str(tmp_path / "a.png"), Framing(56, 56), change)
    assert change.window is None and (jittered != plain).any()
    assert (jittered[:28] == jittered[0, 0]).all() and (jittered[28:] == jittered[-1, 0]).all()


def test_padding_stays_white_whatever_happens_to_colours(tmp_path):
    Image.new("RGB", (112, 56), (100, 60, 30)).save(tmp_path / "a.png")
    change = Change(colours=(0.5, 0.7, 1.3))
    image = load_image(str(tmp_path / "a.png"), Framing(56, 56, "pad"), change)
    assert (image[:14] == 255).all() and (image[-14:] == 255).all()
    assert image[20:36].max() < 100
