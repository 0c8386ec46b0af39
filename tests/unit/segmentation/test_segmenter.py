import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from simzss.models.checkpoint import save_model
from simzss.models.simzss import SimZSS
from simzss.segmentation.background import Background
from simzss.segmentation.prompts import embed_names, templates
from simzss.segmentation.protocol import Protocol
from simzss.segmentation.refine.pamr import pamr
from simzss.segmentation.refine.refinement import PixelRefinement
from simzss.segmentation.segmenter import Segmenter
from tests.support.files import picture
from tests.support.models import (
    backbone_options,
    make_backbone,
    make_scratch,
    refused,
    save_backbone,
    scratch_model,
)

NAMES = ["cat", "dog", "tree"]
CPU = torch.device("cpu")


def protocol(**changes) -> Protocol:
    options = {"inference": "whole", "short_side": 64, "crop_size": 64, "stride": 32, "templates": "photo"}
    return Protocol(**(options | {"name": "test", "merge": "mean", "temperature": 0.05} | changes))


def segmenter(model: SimZSS | None = None, background: Background | None = None, classes=None, **changes) -> Segmenter:
    made = Segmenter(model or scratch_model(), protocol(**changes), "concept", "32-true", CPU)
    return made.set_classes(classes or NAMES, background)


def resized(image: Image.Image, short_side: int, stride: int = 16) -> torch.Tensor:
    """(3, H, W) uint8: the short side as asked, both sides to the nearest multiple of the stride, bicubic."""
    scale = short_side / min(image.size)
    width, height = (max(stride, round(side * scale / stride) * stride) for side in image.size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return v2.functional.resize(pixels, [height, width], interpolation=InterpolationMode.BICUBIC)


def bilinear(small: np.ndarray, height: int, width: int) -> np.ndarray:
    """(K, h, w) -> (K, H, W) in float64: half-pixel centres, edges repeated."""

    def place(target: int, length: int, size: int) -> tuple[int, int, float]:
        at = min(max((target + 0.5) * length / size - 0.5, 0.0), length - 1.0)
        low = min(math.floor(at), max(length - 2, 0))
        return low, min(low + 1, length - 1), at - low

    out = np.zeros((len(small), height, width))
    for y in range(height):
        top, bottom, down = place(y, small.shape[1], height)
        rows = (1 - down) * small[:, top] + down * small[:, bottom]
        for x in range(width):
            left, right, across = place(x, small.shape[2], width)
            out[:, y, x] = (1 - across) * rows[:, left] + across * rows[:, right]
    return out


def whole_by_hand(model: SimZSS, image: Image.Image, short_side: int) -> np.ndarray:
    """(K, H, W) cosines at the image's size, patch by patch."""
    pixels = resized(image, short_side)
    rows, columns = pixels.shape[1] // 16, pixels.shape[2] // 16
    with torch.no_grad():
        features = model.backbone(pixels[None])
    patches = features.patches[0].double().numpy()
    names = embed_names(model, NAMES, templates("photo"), "concept").double().numpy()
    grid = np.zeros((len(NAMES), rows, columns))
    for y in range(rows):
        for x in range(columns):
            patch = patches[y * columns + x] - model.feature_norm.patch_mean.double().numpy()
            patch = patch / np.sqrt((patch**2).sum())
            for k, name in enumerate(names):
                grid[k, y, x] = (patch * name).sum()
    return bilinear(grid, image.height, image.width)


@pytest.mark.parametrize("size", [(64, 64), (80, 50), (33, 71), (20, 15)])
def test_whole_equals_a_pipeline_by_hand(size):
    image = picture(3, size)
    found = segmenter().predict(image)
    cosines = whole_by_hand(scratch_model(), image, 64)
    assert found.logits.shape == (3, size[1], size[0]) and found.logits.dtype == torch.float32
    assert found.mask.shape == (size[1], size[0]) and found.mask.dtype == torch.int64
    assert found.class_names == tuple(NAMES)
    np.testing.assert_allclose(found.logits.numpy(), cosines / 0.05, rtol=0, atol=2e-3)
    best = np.sort(cosines, axis=0)
    clear = best[-1] - best[-2] > 1e-3
    assert clear.mean() > 0.8
    assert (found.mask.numpy() == cosines.argmax(axis=0))[clear].all()
    assert torch.equal(found.mask, found.logits.argmax(dim=0))


def test_feature_statistics_are_used():
    model = SimZSS(make_backbone(), make_scratch(), "center").eval()
    model.backbone.model.load_state_dict(scratch_model().backbone.model.state_dict())
    before = segmenter(model).predict(picture(3, (64, 64))).logits
    model.feature_norm.fit([model.backbone(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))])
    found = segmenter(model).predict(picture(3, (64, 64))).logits
    np.testing.assert_allclose(found.numpy(), whole_by_hand(model, picture(3, (64, 64)), 64) / 0.05, rtol=0, atol=2e-3)
    assert (found - before).abs().max() > 0.1


def test_background_by_threshold():
    image = picture(4, (50, 40))
    plain = segmenter().predict(image)
    best = (plain.logits.double().softmax(dim=0)).amax(dim=0)
    threshold = float(best.median())
    found = segmenter(background=Background("threshold", threshold=threshold)).predict(image)
    assert found.class_names == ("background", *NAMES) and found.logits.shape == (4, 40, 50)
    expected = torch.where(best < threshold, 0, plain.mask + 1)
    unsure = (best - threshold).abs() < 1e-5
    assert torch.equal(found.mask[~unsure], expected[~unsure]) and unsure.float().mean() < 0.05
    assert 0.4 < (found.mask == 0).float().mean() < 0.6


def test_background_by_words():
    image = picture(4, (50, 40))
    flat = segmenter(classes=[*NAMES, "sky", "wall"]).predict(image)
    found = segmenter(background=Background("words", words=("sky", "wall"))).predict(image)
    assert torch.equal(found.mask, torch.where(flat.mask >= 3, 0, flat.mask + 1))
    assert (found.mask == 0).any() and (found.mask > 0).any()
    torch.testing.assert_close(found.logits[0], flat.logits[3:].amax(dim=0))


# Sliding ----------------------------------------------------------------------------------------------------------


def test_one_window_equals_the_whole():
    image = picture(5, (64, 64))
    whole, window = segmenter().predict(image), segmenter(inference="slide").predict(image)
    torch.testing.assert_close(window.logits, whole.logits, rtol=1e-4, atol=1e-4)
    # A window larger than the image is the image.
    wide = picture(5, (96, 64))
    whole, window = segmenter().predict(wide), segmenter(inference="slide", crop_size=128, stride=64).predict(wide)
    torch.testing.assert_close(window.logits, whole.logits, rtol=1e-4, atol=1e-4)


def test_windows_are_averaged():
    """An image of 64 by 128 in windows of 64, 32 apart: the middle is seen by two or three of them."""
    image = picture(6, (128, 64))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    model = scratch_model()
    names = embed_names(model, NAMES, templates("photo"), "concept").double().numpy()
    total, count = np.zeros((3, 64, 128)), np.zeros((64, 128))
    for start in (0, 32, 64):
        with torch.no_grad():
            patches = model.backbone(pixels[None, :, :, start : start + 64]).patches[0].double().numpy()
        patches /= np.sqrt((patches**2).sum(axis=1, keepdims=True))
        grid = (names @ patches.T).reshape(3, 4, 4)
        total[:, :, start : start + 64] += bilinear(grid, 64, 64)
        count[:, start : start + 64] += 1
    found = segmenter(inference="slide").predict(image)
    np.testing.assert_allclose(found.logits.numpy(), total / count / 0.05, rtol=0, atol=2e-3)
    whole = segmenter().predict(image)
    assert (whole.logits - found.logits).abs().max() > 0.1  # windows see other neighbours


@pytest.mark.parametrize("inference", ["whole", "slide"])
@pytest.mark.parametrize("size", [(20, 15), (1, 1), (7, 61), (101, 37), (300, 40)])
def test_odd_sizes(inference, size):
    found = segmenter(inference=inference).predict(picture(7, size))
    assert found.mask.shape == (size[1], size[0]) and found.logits.shape == (3, size[1], size[0])
    assert found.logits.isfinite().all() and found.mask.max() < 3


@pytest.mark.parametrize("inference", ["whole", "slide"])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_are_the_images_one_by_one(inference, batch_size):
    images = [picture(seed, size) for seed, size in enumerate([(80, 64), (64, 80), (80, 64), (33, 20), (81, 64)])]
    made = Segmenter(scratch_model(), protocol(inference=inference), "concept", "32-true", CPU, None, batch_size)
    together = made.set_classes(NAMES).predict_batch(images)
    for image, found in zip(images, together, strict=True):
        alone = segmenter(inference=inference).predict(image)
        torch.testing.assert_close(found.logits, alone.logits, rtol=1e-4, atol=1e-4)
        assert (found.mask == alone.mask).float().mean() > 0.999 and found.mask.shape == image.size[::-1]


def test_several_classifiers_share_the_features():
    made = segmenter()
    image = picture(1, (40, 40))
    classifiers = [made.classifier_of(NAMES), made.classifier_of(["tree", "cat"])]
    ((first, second),) = made.predict_prepared([made.prepare(image)], classifiers)
    assert torch.equal(first.mask, made.predict(image).mask)
    assert torch.equal(second.mask, made.set_classes(["tree", "cat"]).predict(image).mask)


@pytest.mark.parametrize("inference", ["whole", "slide"])
def test_refinement_works_on_the_resized_image(inference):
    """PAMR on the class probabilities of the resized image, background among them; then up to the photo's size."""
    image = picture(1, (75, 90))
    rule = Background("threshold", threshold=0.34)
    coarse = segmenter(background=rule, inference=inference)
    photo = coarse.prepare(image)
    small = replace(photo, size=photo.pixels.shape[1:])
    ((flat,),) = coarse.predict_prepared([small], [coarse.classifier])
    probabilities = pamr(photo.pixels.float(), flat.logits.exp(), 3, (2, 5))
    full = torch.nn.functional.interpolate(probabilities[None], size=(90, 75), mode="bilinear")[0]
    refined = Segmenter(
        scratch_model(), protocol(inference=inference), "concept", "32-true", CPU, PixelRefinement(3, (2, 5))
    )
    found = refined.set_classes(NAMES, rule).predict(image)
    torch.testing.assert_close(found.logits.exp(), full, rtol=1e-4, atol=1e-5)
    assert (found.mask == full.argmax(dim=0)).float().mean() > 0.999
    assert (found.mask != coarse.predict(image).mask).float().mean() > 0.01
    assert refined.describe()["refine"] == {"kind": "pamr", "iterations": 3, "dilations": (2, 5)}


def test_best_of_several_names():
    """With `merge=max` a class scores as the best of its names, patch by patch."""
    image = picture(2, (64, 64))
    flat = segmenter(classes=["cat", "kitten", "dog"]).predict(image).logits
    found = segmenter(classes=[["cat", "kitten"], "dog"], merge="max", short_side=64).predict(image)
    assert found.logits.shape == (2, 64, 64)
    torch.testing.assert_close(found.logits[1], flat[2], rtol=1e-4, atol=1e-4)
    assert (found.logits[0] >= flat[:2].amax(dim=0) - 1e-4).all()  # the maximum comes before the interpolation
    centre = (slice(8, None, 16), slice(8, None, 16))  # pixel beside a patch's centre: hardly any interpolation
    torch.testing.assert_close(found.logits[0][centre], flat[:2].amax(dim=0)[centre], rtol=0, atol=0.05)


# Kinds of image ---------------------------------------------------------------------------------------------------


def test_array_and_image_agree():
    image = picture(8, (47, 31))
    expected = segmenter().predict(image)
    assert torch.equal(segmenter().predict(np.array(image)).logits, expected.logits)
    flipped = segmenter().predict(np.array(image)[:, :, ::-1])
    assert not torch.equal(flipped.logits, expected.logits)  # the channels have an order


@pytest.mark.parametrize("kind", ["L", "LA", "array of two dimensions", "1"])
def test_grey_images_are_the_same_grey_in_colour(kind):
    grey = np.random.default_rng(0).integers(0, 256, (31, 47), dtype=np.uint8)
    if kind == "1":
        grey = np.where(grey > 127, 255, 0).astype(np.uint8)
    expected = segmenter().predict(np.stack([grey] * 3, axis=2))
    image = Image.fromarray(grey)
    found = segmenter().predict(grey if kind.startswith("array") else image.convert(kind, dither=Image.Dither.NONE))
    assert torch.equal(found.logits, expected.logits)


def test_transparency_shows_white():
    pixels = np.random.default_rng(0).integers(0, 256, (31, 47, 4), dtype=np.uint8)
    pixels[..., 3] = np.where(pixels[..., 3] > 127, 255, 0)
    expected = segmenter().predict(np.where(pixels[..., 3:] > 0, pixels[..., :3], 255).astype(np.uint8))
    assert torch.equal(segmenter().predict(Image.fromarray(pixels)).logits, expected.logits)
    assert torch.equal(segmenter().predict(pixels).logits, expected.logits)


def test_palette_images():
    image = picture(9, (47, 31)).quantize(16)
    expected = segmenter().predict(image.convert("RGB"))
    assert torch.equal(segmenter().predict(image).logits, expected.logits)


def test_sixteen_bit_grey():
    grey = np.random.default_rng(0).integers(0, 256, (31, 47), dtype=np.uint8)
    expected = segmenter().predict(grey)
    found = segmenter().predict(Image.fromarray(grey.astype(np.uint16) * 257))
    assert torch.equal(found.mask, expected.mask)


# The object -------------------------------------------------------------------------------------------------------


def test_classes_come_first():
    made = Segmenter(scratch_model(), protocol(), "concept", "32-true", CPU)
    refused(lambda: made.predict(picture()), "set_classes")
    refused(lambda: made.class_names, "set_classes")
    refused(lambda: made.describe(), "set_classes")


def test_classes_can_be_exchanged():
    made = segmenter()
    first = made.predict(picture(1, (40, 40)))
    second = made.set_classes(["tree", "cat", "dog"]).predict(picture(1, (40, 40)))
    assert made.class_names == ("tree", "cat", "dog")
    torch.testing.assert_close(second.logits, first.logits[[2, 0, 1]], rtol=1e-5, atol=1e-5)
    third = made.set_classes([["cat", "kitten"]]).predict(picture(1, (40, 40)))
    assert third.logits.shape == (1, 40, 40) and third.mask.max() == 0


def test_readouts_are_used():
    logits = []
    for readout in ("sentence", "concept", "both"):
        made = Segmenter(scratch_model(), protocol(), readout, "32-true", CPU).set_classes(NAMES)
        logits.append(made.predict(picture(1, (40, 40))).logits)
    assert (logits[0] - logits[1]).abs().max() > 0.05 and (logits[2] - logits[1]).abs().max() > 0.05


def test_temperature_scales():
    hot, cold = segmenter(temperature=1.0), segmenter(temperature=0.01)
    image = picture(1, (40, 40))
    torch.testing.assert_close(hot.predict(image).logits * 100, cold.predict(image).logits, rtol=1e-4, atol=1e-4)


def test_window_must_fit_the_stride():
    refused(lambda: segmenter(inference="slide", crop_size=70, stride=32), "70", "16")
    segmenter(inference="whole", crop_size=70)  # no windows


def test_from_pretrained(tmp_path):
    spec = backbone_options(weights=str(save_backbone(tmp_path / "vit.safetensors")))
    model = SimZSS(make_backbone(**spec), make_scratch()).eval()
    save_model(model, tmp_path / "model", spec, {"readout": "sentence"})
    options = {"protocol": protocol(), "precision": "32-true", "device": CPU}
    loaded = Segmenter.from_pretrained(tmp_path / "model", **options)
    assert loaded.readout == "sentence"
    expected = Segmenter(model, readout="sentence", **options).set_classes(NAMES).predict(picture(1, (40, 40)))
    assert torch.equal(loaded.set_classes(NAMES).predict(picture(1, (40, 40))).logits, expected.logits)
    assert Segmenter.from_pretrained(tmp_path / "model", readout="both", **options).readout == "both"


def test_described_for_the_record():
    made = segmenter(background=Background("words", words=("sky",)))
    assert made.describe() == {
        "name": "test",
        "inference": "whole",
        "short_side": 64,
        "crop_size": 64,
        "stride": 32,
        "templates": "photo",
        "merge": "mean",
        "temperature": 0.05,
        "readout": "concept",
        "precision": "32-true",
        "features": "last",
        "correlate": "none",
        "refine": "none",
        "background": {"kind": "words", "threshold": 0.0, "words": ["sky"]},
    }


def test_unknown_precision():
    refused(lambda: Segmenter(scratch_model(), protocol(), precision="bf16", device=CPU), "precision=bf16")


def test_unknown_readout_is_refused_at_once():
    refused(lambda: Segmenter(scratch_model(), protocol(), "concepts", "32-true", CPU), "readout=concepts")
