"""Colours, overlays with a legend, index masks and comparisons."""

import io

import numpy as np
import pytest
from PIL import Image

from simzss import visualize
from simzss.visualize import index_mask, overlay, palette, side_by_side

NAMES = ["background", "cat", "dog", "tree", "sky"]


def _photo(width: int = 400, height: int = 300) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _halves(width: int = 400, height: int = 300) -> np.ndarray:
    """Return a mask with class 1 on the left quarter and class 3 on the rest."""
    mask = np.full((height, width), 3)
    mask[:, : width // 4] = 1
    return mask


def _holds(picture: Image.Image, colour: np.ndarray) -> bool:
    return bool((np.asarray(picture) == colour).all(axis=-1).any())


# ------------------------------------------------------------------------------------------------- palette


def test_palette_is_stable_and_of_any_count():
    large = palette(150)
    assert large.shape == (150, 3) and large.dtype == np.uint8
    np.testing.assert_array_equal(palette(7), large[:7])
    palette(3)[:] = 0  # a caller's own copy
    np.testing.assert_array_equal(palette(150), large)
    assert palette(0).shape == (0, 3) and palette(5000).shape == (5000, 3)
    with pytest.raises(ValueError, match="-1"):
        palette(-1)


def test_palette_colours_are_distinct():
    def nearest(colours: np.ndarray) -> float:
        lab = visualize._oklab(colours)
        gaps = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
        return float(gaps[~np.eye(len(lab), dtype=bool)].min())

    # 0.02 is about the smallest difference that one notices in OKLab.
    assert nearest(palette(21)) > 0.10
    assert nearest(palette(150)) > 0.04
    assert len(np.unique(palette(1000), axis=0)) == 1000
    colours = palette(500).astype(int)  # greys and extremes are left out
    assert (colours.max(axis=1) - colours.min(axis=1)).min() > 30 and (colours.max(axis=1) > 60).all()


def test_oklab_of_known_colours():
    lab = visualize._oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], dtype=np.uint8))
    np.testing.assert_allclose(lab, [[1, 0, 0], [0, 0, 0], [0.62796, 0.22486, 0.12585]], atol=2e-4)


# ------------------------------------------------------------------------------------------------- overlay


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.55, 1.0])
def test_overlay_blends_by_the_formula(alpha):
    photo = _photo()
    drawn = np.asarray(overlay(photo, _halves(), NAMES, alpha=alpha, legend=False)).astype(float)
    original = np.asarray(photo).astype(float)
    colours = palette(len(NAMES)).astype(float)
    for column, label in ((40, 1), (300, 3)):
        expected = (1 - alpha) * original[:, column] + alpha * colours[label]
        assert np.abs(drawn[:, column] - expected).max() <= 0.5


def test_overlay_draws_a_contour_between_regions_only():
    photo = Image.new("RGB", (400, 300), (0, 0, 0))
    drawn = np.asarray(overlay(photo, _halves(), NAMES, alpha=0.0, legend=False))
    assert np.flatnonzero((drawn > 200).all(axis=(0, 2))).tolist() == [99]
    assert (np.delete(drawn, 99, axis=1) == 0).all()


def test_overlay_leaves_ignored_pixels_as_they_are():
    photo, mask = _photo(), _halves()
    mask[100:200, 200:300] = 255
    drawn = np.asarray(overlay(photo, mask, NAMES, legend=False))
    # One pixel off the border of the hole, where the contour runs.
    np.testing.assert_array_equal(drawn[101:198, 201:298], np.asarray(photo)[101:198, 201:298])
    nothing = overlay(photo, np.zeros((300, 400), dtype=np.uint8), NAMES, ignore_index=0)
    np.testing.assert_array_equal(np.asarray(nothing), np.asarray(photo))  # no label, no legend


def test_overlay_draws_the_background_as_the_photo():
    """And lists it, without its colour; a class of the same index as the pixels that do not count is none."""
    photo, mask = _photo(), _halves()  # cat on the left, tree on the right
    drawn = overlay(photo, mask, NAMES, background=3)
    pixels, plain = np.asarray(drawn), np.asarray(overlay(photo, mask, NAMES, legend=False))
    np.testing.assert_array_equal(pixels[:300, 101:], np.asarray(photo)[:, 101:])
    np.testing.assert_array_equal(pixels[:300, :100], plain[:, :100])
    strip = drawn.crop((0, 300, 400, drawn.height))
    assert strip.size == overlay(photo, mask, NAMES).crop((0, 300, 400, drawn.height)).size
    assert [_holds(strip, colour) for colour in palette(len(NAMES))] == [False, True, False, False, False]
    np.testing.assert_array_equal(
        overlay(photo, mask, NAMES, ignore_index=3, background=3), overlay(photo, mask, NAMES, ignore_index=3)
    )


def test_legend_lists_the_classes_present_and_no_other(monkeypatch):
    drawn = overlay(_photo(), _halves(), NAMES)
    assert drawn.width == 400 and drawn.height > 300
    strip = drawn.crop((0, 300, 400, drawn.height))
    assert [_holds(strip, colour) for colour in palette(len(NAMES))] == [False, True, False, True, False]
    listed = []
    monkeypatch.setattr(visualize, "_legend", lambda width, entries, *_: listed.extend(entries) or _photo(width))
    mask = _halves()
    mask[:30, 200:] = 255
    overlay(_photo(), mask, NAMES)
    assert [(index, name) for index, name, _ in listed] == [(3, "tree"), (1, "cat")]
    assert [share for _, _, share in listed] == pytest.approx([0.70, 0.25])


def test_legend_wraps_to_the_width_of_the_photo():
    names = [f"quite a long class name, number {i}" for i in range(12)]
    mask = np.repeat(np.arange(12), 25)[:, None].repeat(400, axis=1)
    few, many = overlay(_photo(), mask // 12, names), overlay(_photo(), mask, names)
    assert few.width == many.width == 400
    assert many.height > few.height + 8 * 13
    right_edge = np.asarray(many)[301:, -6:]
    assert (right_edge == 255).all()  # nothing runs into the margin


def test_size_of_the_picture_and_of_its_contours():
    assert overlay(_photo(100, 60), _halves(100, 60), NAMES, legend=False).size == (400, 240)  # enlarged, to be legible
    assert overlay(_photo(1, 1), np.zeros((1, 1), dtype=np.int64), NAMES).width >= 320
    drawn = np.asarray(overlay(Image.new("RGB", (1200, 1000)), _halves(1200, 1000), NAMES, alpha=0.0, legend=False))
    assert np.flatnonzero((drawn > 200).all(axis=(0, 2))).tolist() == [298, 299, 300]


@pytest.mark.parametrize("name", ["café ß ÅØ", "猫", "кот", "🐈", "<b>", "", "two\nlines", "\ud800", "x" * 500, "\x00"])
def test_any_name_can_be_drawn(name):
    drawn = overlay(_photo(), np.zeros((300, 400), dtype=np.int64), [name])
    assert drawn.width == 400


@pytest.mark.parametrize(
    ("name", "shown"),
    [("tree", "tree"), ("what?", "what?"), ("猫", "#3 ?"), ("", "#3"), ("two\n lines", "two lines")],
)
def test_names_beyond_the_font_stay_identifiable(name, shown):
    assert visualize._legend_name(name, 3, visualize._font(14)) == shown


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_overlay_takes_any_image_mode(mode):
    assert overlay(_photo().convert(mode), _halves(), NAMES).mode == "RGB"


@pytest.mark.parametrize(
    ("mask", "alpha", "message"),
    [
        (np.zeros((400, 300), dtype=int), 0.5, r"300 x 400.*400 x 300"),
        (np.zeros((300, 400)), 0.5, "integers"),
        (np.zeros((1, 300, 400), dtype=int), 0.5, "2-d"),
        (np.full((300, 400), 5), 0.5, r"\[5\].*5 class names"),
        (np.full((300, 400), -1), 0.5, r"\[-1\]"),
        (np.zeros((300, 400), dtype=int), 1.5, r"1\.5"),
    ],
)
def test_overlay_refuses_what_it_cannot_draw(mask, alpha, message):
    with pytest.raises(ValueError, match=message):
        overlay(_photo(), mask, NAMES, alpha=alpha)


# ------------------------------------------------------------------------------------- masks, comparisons


@pytest.mark.parametrize(("largest", "mode"), [(20, "L"), (255, "L"), (256, "I;16"), (846, "I;16"), (65535, "I;16")])
def test_index_mask_survives_a_png(largest, mode):
    mask = np.random.default_rng(1).integers(0, largest + 1, (37, 53))
    mask[0, 0] = largest
    image = index_mask(mask)
    assert image.mode == mode and image.size == (53, 37)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    np.testing.assert_array_equal(np.asarray(Image.open(buffer)), mask)


def test_index_masks_of_a_dataset_have_one_mode():
    mask = np.zeros((4, 4), dtype=np.int64)
    assert (index_mask(mask, num_classes=150).mode, index_mask(mask, num_classes=847).mode) == ("L", "I;16")
    for wrong in ([[-1]], [[65536]], [[0.5]], [1, 2]):
        with pytest.raises(ValueError, match="mask"):
            index_mask(np.array(wrong))


def test_side_by_side_scales_to_one_width_and_aligns_at_the_top():
    red, blue = Image.new("RGB", (400, 300), (255, 0, 0)), Image.new("L", (200, 100), 80)
    picture = side_by_side([red, blue], ["Photo", "Prediction"])
    pixels = np.asarray(picture)
    header = picture.height - 300
    assert header > 0
    assert (pixels[header:, :400] == (255, 0, 0)).all()
    assert (pixels[header : header + 200, -400:] == 80).all()
    assert (pixels[header + 200 :, -400:] == 255).all()
    assert (pixels[:header, :400].min(axis=-1) < 128).any()  # the title
    assert side_by_side([_photo(), _photo()], ["", ""]).height == 300  # no title, no header
    for images, titles in (([], []), ([_photo()], ["a", "b"])):
        with pytest.raises(ValueError, match="titles"):
            side_by_side(images, titles)
