"""A `Segmenter` on the backbone alone: whole images, windows, backgrounds, classes, threads."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from simzss.data.settings import Background
from simzss.models.checkpoint import save_model
from simzss.models.simzss import SimZSS
from simzss.segmentation import segmenter as module
from simzss.segmentation.prompts import embed_names, templates
from simzss.segmentation.refine.pamr import pamr
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import PamrSettings, Protocol
from tests.support.files import picture
from tests.support.loops import enlarged
from tests.support.models import make_backbone, make_scratch, refused, save_backbone, scratch_model
from tests.unit.segmentation.small import NAMES, pixels_of, segmenter


def predict(image, classes=NAMES, background: Background | None = None, **changes):
    return segmenter(**changes).predict(image, classes, background)


def whole_by_hand(model: SimZSS, image: Image.Image) -> np.ndarray:
    """(K, H, W) cosines at the image's size, patch by patch."""
    pixels = pixels_of(image)
    rows, columns = pixels.shape[1] // 16, pixels.shape[2] // 16
    patches = model.backbone(pixels[None]).patches[0].double().numpy()
    names = embed_names(model, NAMES, templates("photo"), "tokens").double().numpy()
    grid = np.zeros((len(NAMES), rows, columns))
    for y in range(rows):
        for x in range(columns):
            patch = patches[y * columns + x] - model.feature_norm.patch_mean.double().numpy()
            grid[:, y, x] = names @ (patch / np.sqrt((patch**2).sum()))
    return enlarged(torch.from_numpy(grid), image.height, image.width).numpy()


@pytest.mark.parametrize("size", [(64, 64), (80, 50), (33, 71), (20, 15)])
def test_whole_equals_a_pipeline_by_hand(size):
    image = picture(3, size)
    found = predict(image)
    cosines = whole_by_hand(scratch_model(), image)
    assert found.logits.shape == (3, size[1], size[0]) and found.logits.dtype == torch.float32
    assert found.mask.shape == (size[1], size[0]) and found.mask.dtype == torch.int64
    assert found.class_names == tuple(NAMES) and found.regions is None
    np.testing.assert_allclose(found.logits.numpy(), cosines / 0.05, rtol=0, atol=2e-3)
    best = np.sort(cosines, axis=0)
    clear = best[-1] - best[-2] > 1e-3
    assert clear.mean() > 0.8 and (found.mask.numpy() == cosines.argmax(axis=0))[clear].all()
    assert torch.equal(found.mask, found.logits.argmax(dim=0))


def test_feature_statistics_are_used():
    model, image = SimZSS(make_backbone(), make_scratch(), "center").eval(), picture(3, (64, 64))
    model.backbone.model.load_state_dict(scratch_model().backbone.model.state_dict())
    before = predict(image, model=model).logits
    model.feature_norm.fit([model.backbone(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))])
    found = predict(image, model=model).logits
    np.testing.assert_allclose(found.numpy(), whole_by_hand(model, image) / 0.05, rtol=0, atol=2e-3)
    assert (found - before).abs().max() > 0.1


def test_backgrounds():
    image = picture(4, (50, 40))
    plain = predict(image)
    best = (plain.logits.double().softmax(dim=0)).amax(dim=0)
    threshold = float(best.median())
    found = predict(image, background=Background(kind="threshold", threshold=threshold))
    assert found.class_names == ("background", *NAMES) and found.logits.shape == (4, 40, 50)
    unsure = (best - threshold).abs() < 1e-5
    assert torch.equal(found.mask[~unsure], torch.where(best < threshold, 0, plain.mask + 1)[~unsure])
    assert unsure.float().mean() < 0.05 and 0.4 < (found.mask == 0).float().mean() < 0.6
    flat = predict(image, [*NAMES, "sky", "wall"])
    found = predict(image, background=Background(kind="words", words=["sky", "wall"]))
    assert torch.equal(found.mask, torch.where(flat.mask >= 3, 0, flat.mask + 1))
    assert (found.mask == 0).any() and (found.mask > 0).any()
    torch.testing.assert_close(found.logits[0], flat.logits[3:].amax(dim=0))


# Sliding --------------------------------------------------------------------------------------------------------------


def test_one_window_equals_the_whole():
    for size, changes in (((64, 64), {}), ((96, 64), {"crop_size": 128, "stride": 64})):  # the latter beyond the image
        image = picture(5, size)
        window = predict(image, inference="slide", **changes)
        torch.testing.assert_close(window.logits, predict(image).logits, rtol=1e-4, atol=1e-4)
    refused(lambda: segmenter(inference="slide", crop_size=70), "70", "16")
    segmenter(inference="whole", crop_size=70)  # no windows


def test_windows_are_averaged():
    """An image of 64 by 128 in windows of 64, 32 apart: the middle is seen by two or three of them."""
    image, model = picture(6, (128, 64)), scratch_model()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    names = embed_names(model, NAMES, templates("photo"), "tokens").double().numpy()
    total, count = np.zeros((3, 64, 128)), np.zeros((64, 128))
    for start in (0, 32, 64):
        patches = model.backbone(pixels[None, :, :, start : start + 64]).patches[0].double().numpy()
        patches /= np.sqrt((patches**2).sum(axis=1, keepdims=True))
        total[:, :, start : start + 64] += enlarged(torch.from_numpy(names @ patches.T).view(3, 4, 4), 64, 64).numpy()
        count[:, start : start + 64] += 1
    found = predict(image, inference="slide")
    np.testing.assert_allclose(found.logits.numpy(), total / count / 0.05, rtol=0, atol=2e-3)
    assert (predict(image).logits - found.logits).abs().max() > 0.1  # windows see other neighbours


@pytest.mark.parametrize("inference", ["whole", "slide"])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_are_the_images_one_by_one(inference, batch_size):
    sizes = [(80, 64), (64, 80), (80, 64), (33, 20), (81, 64), (1, 1), (7, 61), (300, 40)]
    images = [picture(seed, size) for seed, size in enumerate(sizes)]
    together = segmenter(inference=inference, batch_size=batch_size).predict_batch(images, NAMES)
    for image, found in zip(images, together, strict=True):
        alone = predict(image, inference=inference)
        torch.testing.assert_close(found.logits, alone.logits, rtol=1e-4, atol=1e-4)
        assert (found.mask == alone.mask).float().mean() > 0.999 and found.mask.shape == image.size[::-1]


@pytest.mark.parametrize("inference", ["whole", "slide"])
def test_refinement_works_on_the_resized_image(inference):
    """PAMR on the class probabilities of the resized image, background among them; then up to the photo's size."""
    image, rule = picture(1, (75, 90)), Background(kind="threshold", threshold=0.34)
    coarse = segmenter(inference=inference)
    photo = coarse.prepare(image)
    small = replace(photo, size=tuple(photo.pixels.shape[1:]))
    ((flat,),) = coarse.predict_prepared([small], [coarse.classifier(NAMES, rule)])
    probabilities = pamr(photo.pixels.float(), flat.logits.exp(), 3, (2, 5))
    full = torch.nn.functional.interpolate(probabilities[None], size=(90, 75), mode="bilinear")[0]
    found = predict(image, background=rule, inference=inference, refine=PamrSettings(iterations=3, dilations=(2, 5)))
    torch.testing.assert_close(found.logits.exp(), full, rtol=1e-4, atol=1e-5)
    assert (found.mask == full.argmax(dim=0)).float().mean() > 0.999
    assert (found.mask != coarse.predict(image, NAMES, rule).mask).float().mean() > 0.01


# Classes --------------------------------------------------------------------------------------------------------------


def test_classes_in_every_form():
    made, image = segmenter(), picture(1, (40, 40))
    expected = made.predict(image, [["cat", "kitten"], ["dog"]]).logits
    forms = ["cat/kitten,dog", ["cat/kitten", "dog"], {"cat": ["kitten"], "dog": []}, {"cat": "kitten", "dog": ()}]
    for classes in (*forms, made.classifier("cat/kitten,dog")):
        assert torch.equal(made.predict(image, classes).logits, expected)
    ((first, second),) = made.predict_prepared(
        [made.prepare(image)], [made.classifier(NAMES), made.classifier(["tree", "cat"])]
    )
    assert torch.equal(first.mask, made.predict(image, NAMES).mask)
    assert torch.equal(second.mask, made.predict(image, ["tree", "cat"]).mask)
    refused(lambda: made.predict(image, made.classifier(NAMES), Background()), "background")


def test_best_of_several_names():
    """With `merge=max` a class scores as the best of its names, patch by patch."""
    image = picture(2, (64, 64))
    flat = predict(image, ["cat", "kitten", "dog"]).logits
    found = predict(image, ["cat/kitten", "dog"], merge="max").logits
    assert found.shape == (2, 64, 64)
    torch.testing.assert_close(found[1], flat[2], rtol=1e-4, atol=1e-4)
    assert (found[0] >= flat[:2].amax(dim=0) - 1e-4).all()  # the maximum comes before the interpolation
    centre = (slice(8, None, 16), slice(8, None, 16))  # pixel beside a patch's centre: hardly any interpolation
    torch.testing.assert_close(found[0][centre], flat[:2].amax(dim=0)[centre], rtol=0, atol=0.05)


@pytest.fixture
def embedded(monkeypatch):
    """Lists of names that were embedded."""
    calls, embed = [], embed_names

    def counted(model, names, *others):
        calls.append(tuple(names))
        return embed(model, names, *others)

    monkeypatch.setattr(module, "embed_names", counted)
    return calls


def test_vectors_of_the_last_class_lists_are_kept(embedded):
    made, image = segmenter(model=SimZSS(make_backbone(), make_scratch())), picture(1, (40, 40))
    first = made.predict(image, NAMES).logits
    assert torch.equal(made.predict(image, list(NAMES)).logits, first) and embedded == [tuple(NAMES)]
    for number in range(20):
        made.predict(image, [f"cat {number}", "dog"])
    made.predict(image, ["cat 19", "dog"])
    assert len(embedded) == 21
    made.predict(image, NAMES)  # the least recently used one is forgotten
    assert len(embedded) == 22
    with torch.no_grad():
        made.model.text_encoder.projection.weight *= -1  # training does so, without a word to the segmenter
    assert not torch.equal(made.predict(image, NAMES).logits, first)


@pytest.mark.parametrize("kept", [True, False])
def test_two_threads_with_two_class_lists(monkeypatch, kept):
    """Twenty times each, with and without kept vectors, and never is one's list the other's."""
    if not kept:
        monkeypatch.setattr(module, "_CLASS_LISTS", 0)
    made, image = segmenter(), picture(1, (40, 40))
    lists = [NAMES, ["tree", "green grass", "dog", "sky"]]
    expected = [segmenter().predict(image, classes) for classes in lists]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda number: made.predict(image, lists[number % 2]), range(40)))
        masks = list(pool.map(lambda prediction: prediction.mask, found))
    for number, (prediction, mask) in enumerate(zip(found, masks, strict=True)):
        assert prediction.class_names == tuple(lists[number % 2])
        assert (mask == expected[number % 2].mask).float().mean() > 0.999
        torch.testing.assert_close(prediction.logits, expected[number % 2].logits, rtol=1e-4, atol=1e-4)


def test_set_classes_for_one_version_more():
    image, expected = picture(1, (40, 40)), predict(picture(1, (40, 40)))
    with pytest.warns(DeprecationWarning, match="predict"):
        bound = segmenter().set_classes(NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(bound.predict(image).logits, expected.logits)
        assert torch.equal(bound.predict_batch([image])[0].mask, expected.mask)


# Photos and results ---------------------------------------------------------------------------------------------------


def test_photos_in_every_form(tmp_path):
    image = picture(8, (47, 31))
    image.save(tmp_path / "a.png")
    expected = predict(image).logits
    for photo in (np.array(image), tmp_path / "a.png", str(tmp_path / "a.png"), image.convert("RGBA")):
        assert torch.equal(predict(photo).logits, expected)
    assert not torch.equal(predict(np.array(image)[:, :, ::-1]).logits, expected)  # the channels have an order


def test_masks_and_overlays_are_pictures(tmp_path):
    made, image = segmenter(), picture(8, (400, 310))
    found = made.predict(image, NAMES, Background(kind="threshold", threshold=0.4))
    found.save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), found.mask.numpy())
    drawn = found.overlay()
    assert drawn.width == 400 and drawn.height > 310
    ((prepared,),) = made.predict_prepared([made.prepare(image)], [made.classifier(NAMES)])
    refused(lambda: prepared.overlay(), "photo")
    assert prepared.overlay(image).width == 400


# Settings -------------------------------------------------------------------------------------------------------------


def test_text_poolings_and_temperatures_are_used():
    image = picture(1, (40, 40))
    logits = [predict(image, text_pooling=pooling).logits for pooling in ("sentence", "tokens", "both")]
    assert (logits[0] - logits[1]).abs().max() > 0.05 and (logits[2] - logits[1]).abs().max() > 0.05
    assert torch.equal(predict(image).logits, logits[1])  # the model's own
    hot, cold = (predict(image, temperature=value).logits for value in (1.0, 0.01))
    torch.testing.assert_close(hot * 100, cold, rtol=1e-4, atol=1e-4)


def test_from_pretrained(tmp_path):
    weights = str(save_backbone(tmp_path / "vit.safetensors"))
    model, image = SimZSS(make_backbone(weights=weights), make_scratch()).eval(), picture(1, (40, 40))
    model.text_pooling = "sentence"
    save_model(model, tmp_path / "model")
    options = {"protocol": Protocol(short_side=64, templates="photo"), "precision": "32-true", "device": "cpu"}
    loaded = Segmenter.from_pretrained(tmp_path / "model", **options)
    assert loaded.text_pooling == "sentence"
    expected = Segmenter(model, **options).predict(image, NAMES)
    assert torch.equal(loaded.predict(image, NAMES).logits, expected.logits)
    assert Segmenter.from_pretrained(tmp_path / "model", text_pooling="both", **options).text_pooling == "both"


def test_presets_by_name():
    made = Segmenter(scratch_model(), "tcl", refine="pamr", precision="32-true", device="cpu")
    facts = made.describe(made.classifier(NAMES))
    assert (facts["name"], facts["short_side"]) == ("tcl", 448)
    assert facts["refine"] == {"kind": "pamr", "iterations": 10, "dilations": [8, 16]}
    refused(lambda: Segmenter(scratch_model(), refine="pmr"), "refine=pmr is unknown", "pamr")


def test_described_for_the_record():
    """In the words of version 0.1, for results of all versions compare."""
    made = segmenter()
    facts = made.describe(made.classifier(NAMES, Background(kind="words", words=["sky"])))
    sizes = {"name": "test", "inference": "whole", "short_side": 64, "crop_size": 64, "stride": 32}
    rest = {"templates": "photo", "merge": "mean", "temperature": 0.05, "readout": "concept", "precision": "32-true"}
    rest |= {"features": "last", "correlate": "none", "refine": "none"}
    assert facts == sizes | rest | {"background": {"kind": "words", "threshold": 0.0, "words": ["sky"]}}
    assert list(facts) == [*sizes, *rest, "background"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"precision": "bf16"}, "precision=bf16"), ({"text_pooling": "concepts"}, "text_pooling=concepts"),
     ({"batch_size": 0}, "batch_size=0")],
)  # fmt: skip
def test_refused_at_once(changes, says):
    refused(lambda: Segmenter(scratch_model(), **{"device": "cpu"} | changes), says)
