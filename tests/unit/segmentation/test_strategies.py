"""Windows, correlations, proxies and refinements as one `Segmenter` puts them together."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from simzss.models.sam.load import load_sam
from simzss.models.simzss import SimZSS
from simzss.segmentation.background import Background
from simzss.segmentation.inference.aggregate import Correlation, correlate
from simzss.segmentation.prompts import embed_names, templates
from simzss.segmentation.protocol import Protocol
from simzss.segmentation.refine.refinement import PixelRefinement
from simzss.segmentation.refine.sam import SamRefinement, refine
from simzss.segmentation.refine.vote import RegionVote, vote
from simzss.segmentation.segmenter import Segmenter
from tests.support.files import picture
from tests.support.models import make_backbone, make_scratch, refused, scratch_model, shaken
from tests.unit.models.sam.tiny import PATCH, SIDE, save_first, save_second

NAMES = ["cat", "dog", "tree"]
CPU = torch.device("cpu")
PROXY = {"name": "sam", "timm_name": None, "weights": None, "features": "last", "shift": 1.0, "gain": 3.0}
# What the tiny models expect of their masks lies closely together; some are above and some below.
REDRAWN = SamRefinement(threshold=0.34, min_area=1, min_iou=0.17)
VOTED = RegionVote(points=4, min_iou=0.52, min_stability=0)


@cache
def model_of(features: str) -> SimZSS:
    """As `scratch_model`, with other features; do not change it."""
    if features == "last":
        return scratch_model()
    model = SimZSS(make_backbone(features=features, proxy=PROXY if features == "proxy" else None), make_scratch())
    shaken(model.backbone.model)
    return model.eval()


@pytest.fixture(scope="module")
def sams(tmp_path_factory):
    """A SAM of each generation; the second has no attention to give."""
    folder = tmp_path_factory.mktemp("sams")
    return {"first": load_sam(str(save_first(folder / "1"))), "second": load_sam(str(save_second(folder / "2")))}


@pytest.fixture(scope="module")
def sam(sams):
    return sams["first"]


@pytest.fixture
def encoded(sam, monkeypatch):
    """Shapes of the images that the SAM was asked to encode, and whether with the attention."""
    calls, encode = [], sam.encode

    def counted(pixels, attention=False):
        calls.append((tuple(pixels.shape[1:]), attention))
        return encode(pixels, attention)

    monkeypatch.setattr(sam, "encode", counted)
    return calls


def protocol(inference: str = "whole", **changes) -> Protocol:
    options = {"short_side": 64, "crop_size": 64, "stride": 32, "templates": "photo", "merge": "mean"}
    return Protocol(**({"name": "test", "inference": inference, "temperature": 0.05} | options | changes))


def segmenter(inference="whole", correlation=None, sam=None, refinement=None, features="last", **changes) -> Segmenter:
    classes, background = changes.pop("classes", NAMES), changes.pop("background", None)
    if isinstance(correlation, str):
        correlation = Correlation(correlation)
    options = {name: changes.pop(name) for name in ("values", "batch_size") if name in changes}
    made = Segmenter(
        model_of(features), protocol(inference, **changes), "concept", "32-true", CPU, refinement,
        correlation=correlation, sam=sam, **options,
    )  # fmt: skip
    return made.set_classes(classes, background)


def pixels_of(image: Image.Image, short_side: int = 64) -> torch.Tensor:
    """(3, H, W) uint8: the short side as asked, both sides to the nearest multiple of 16, bicubic."""
    scale = short_side / min(image.size)
    width, height = (max(16, round(side * scale / 16) * 16) for side in image.size)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return v2.functional.resize(pixels, [height, width], interpolation=InterpolationMode.BICUBIC)


def patch_map(features: str, pixels: torch.Tensor) -> torch.Tensor:
    """(C, h, w) before the last norm, of one image or window."""
    with torch.no_grad():
        return model_of(features).backbone.patch_map(pixels[None])[0]


def cosines(features: str, maps: torch.Tensor) -> np.ndarray:
    """(K, h, w) of a map of patches before the last norm, patch by patch in float64."""
    model = model_of(features)
    names = embed_names(model, NAMES, templates("photo"), "concept").double().numpy()
    norm = model.backbone.model.norm
    grid = np.zeros((len(NAMES), *maps.shape[1:]))
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            patch = maps[:, y, x].double().numpy()
            if features != "last":
                patch = (patch - patch.mean()) / np.sqrt(patch.var() + norm.eps)
                patch = patch * norm.weight.detach().double().numpy() + norm.bias.detach().double().numpy()
            grid[:, y, x] = names @ patch / np.sqrt((patch**2).sum())
    return grid


def enlarged(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(K, h, w) -> (K, H, W), bilinear."""
    return F.interpolate(torch.from_numpy(grid)[None], (height, width), mode="bilinear")[0].numpy()


def assert_scores(found, grid: np.ndarray, image: Image.Image) -> None:
    """The prediction's logits are these cosines (K, h, w) at the photo's size, over the temperature."""
    expected = enlarged(grid, image.height, image.width) / 0.05
    np.testing.assert_allclose(found.logits.numpy(), expected, rtol=0, atol=2e-3)
    assert torch.equal(found.mask, found.logits.argmax(dim=0))


# Splice ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["last", "self"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_windows_are_spliced_before_the_norm(features, batch_size):
    """Cells of 16 pixels in windows of 64, 32 apart: a cell is the mean over the windows that its centre lies in."""
    image = picture(6, (128, 64))
    pixels = pixels_of(image)
    assert pixels.shape == (3, 64, 128)
    windows = {left: patch_map(features, pixels[:, :, left : left + 64]) for left in (0, 32, 64)}
    whole = torch.zeros(64, 4, 8)
    for y in range(4):
        for x in range(8):
            cells = [cells[:, y, x - left // 16] for left, cells in windows.items() if left <= 16 * x + 8 < left + 64]
            assert len(cells) == (1, 1, 2, 2, 2, 2, 1, 1)[x]
            whole[:, y, x] = sum(cells) / len(cells)
    found = segmenter("splice", features=features, batch_size=batch_size).predict(image)
    assert_scores(found, cosines(features, whole), image)
    slides = segmenter("slide", features=features).predict(image)
    assert (slides.logits - found.logits).abs().max() > 0.01  # which averages scores


@pytest.mark.parametrize("size", [(64, 64), (30, 30), (97, 64), (64, 80)])
def test_one_spliced_window_is_the_whole(size):
    image = picture(5, size)
    whole, splice = segmenter().predict(image), segmenter("splice", crop_size=128, stride=64).predict(image)
    torch.testing.assert_close(splice.logits, whole.logits, rtol=1e-4, atol=1e-4)
    assert (splice.mask == whole.mask).float().mean() > 0.999


def test_spliced_window_must_fit_the_stride():
    refused(lambda: segmenter("splice", crop_size=70), "70", "16")


# Correlate ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sam", "attention", "embedding", "patches"])
@pytest.mark.parametrize("inference", ["whole", "splice"])
def test_features_are_correlated_before_the_norm(sam, inference, kind):
    image = picture(3, (64, 50))
    maps = patch_map("self", pixels_of(image))
    if inference == "splice":
        assert pixels_of(image).shape == (3, 64, 80)
        left, right = (patch_map("self", pixels_of(image)[:, :, start : start + 64]) for start in (0, 16))
        maps = torch.cat([left[:, :, :1], (left[:, :, 1:] + right[:, :, :-1]) / 2, right[:, :, -1:]], dim=2)
    seen = [] if kind == "patches" else [sam.encode(sam.resize(image), attention=True)]
    settings = Correlation("attention" if kind == "sam" else kind, 1.2, 0.05, 1)
    found = segmenter(inference, kind, sam, features="self", stride=16).predict(image)
    assert_scores(found, cosines("self", correlate(maps, seen, settings)), image)
    plain = segmenter(inference, features="self", stride=16).predict(image)
    assert (plain.logits - found.logits).abs().max() > 0.05


def test_sam_without_attention_correlates_by_its_embedding(sams):
    image, second = picture(3, (64, 50)), sams["second"]
    found = segmenter(correlation="sam", sam=second).predict(image)
    seen = second.encode(second.resize(image))
    maps = correlate(patch_map("last", pixels_of(image)), [seen], Correlation("embedding", 1.2, 0.05, 1))
    assert_scores(found, cosines("last", maps), image)
    refused(lambda: segmenter(correlation="attention", sam=second), "correlate.kind=attention", "use embedding")


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (64, 64), (64, 66), (66, 64)])
def test_sam_sees_parts(sam, size):
    """Two along the longer side of the photo, though its grid of patches be square."""
    image = picture(4, size)
    maps, (width, height) = patch_map("last", pixels_of(image)), size
    half = Correlation("attention", 1.2, 0.05, 1)
    if width >= height:
        boxes, dim = [(0, 0, width // 2, height), (width // 2, 0, width, height)], 2
    else:
        boxes, dim = [(0, 0, width, height // 2), (0, height // 2, width, height)], 1
    pieces = [
        correlate(part, [sam.encode(sam.resize(image.crop(box)), attention=True)], half)
        for part, box in zip(maps.chunk(2, dim=dim), boxes, strict=True)
    ]
    found = segmenter(correlation=Correlation("attention", parts=2), sam=sam).predict(image)
    assert_scores(found, cosines("last", torch.cat(pieces, dim=dim)), image)


@pytest.mark.parametrize("size", [(51, 11), (11, 51), (3, 2), (1, 1), (101, 37)])
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_odd_photos(sam, size, parts):
    found = segmenter(correlation=Correlation("sam", parts=parts), sam=sam).predict(picture(4, size))
    assert found.mask.shape == size[::-1] and found.logits.isfinite().all()


@pytest.mark.parametrize("kind", ["attention", "patches"])
def test_windows_of_scores_cannot_be_correlated(sam, kind):
    refused(lambda: segmenter("slide", kind, sam), f"correlate={kind}", "whole and splice", "not slide")


# Proxy ----------------------------------------------------------------------------------------------------------------


def guide_of(embedding: np.ndarray, cells: tuple[float, float], left: int, shape: tuple[int, int]) -> torch.Tensor:
    """The embedding as a window of 64 pixels from `left` sees it, its centres found cell by cell."""
    rows, columns = round(cells[0]), round(64 * cells[1] / shape[1])
    found = np.zeros((len(embedding), rows, columns))
    for row in range(rows):
        for column in range(columns):
            y = (row + 0.5) / rows * cells[0]
            x = (left + (column + 0.5) / columns * 64) * cells[1] / shape[1]
            y, x = (min(max(at, 0.5), length - 0.5) for at, length in zip((y, x), embedding.shape[1:], strict=True))
            down = np.maximum(0, 1 - np.abs(np.arange(embedding.shape[1]) + 0.5 - y))
            across = np.maximum(0, 1 - np.abs(np.arange(embedding.shape[2]) + 0.5 - x))
            found[:, row, column] = np.einsum("chw,h,w->c", embedding, down, across)
    return torch.from_numpy(found).float()


@pytest.mark.parametrize(("width", "lefts"), [(64, [0]), (96, [0, 32]), (128, [0, 32, 64])])
def test_windows_are_guided_by_their_part_of_the_embedding(sam, monkeypatch, width, lefts):
    image = picture(7, (width, 64))
    made = segmenter("slide", sam=sam, features="proxy")
    guides, inner = [], made.model.backbone.patch_map

    def spied(images, guide=None):
        guides.extend(guide)
        return inner(images, guide)

    monkeypatch.setattr(made.model.backbone, "patch_map", spied)
    found = made.predict(image)
    scale = SIDE / max(width, 64)
    cells = (int(64 * scale + 0.5) / PATCH, int(width * scale + 0.5) / PATCH)
    embedding = sam.encode(sam.resize(image)).embedding.double().numpy()
    assert len(guides) == len(lefts)
    total, count = np.zeros((3, 64, width)), np.zeros(width)
    for left, guide in zip(lefts, guides, strict=True):
        expected = guide_of(embedding, cells, left, (64, width))
        torch.testing.assert_close(guide, expected, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            maps = inner(pixels_of(image)[None, :, :, left : left + 64], expected[None])[0]
        total[:, :, left : left + 64] += enlarged(cosines("proxy", maps), 64, 64)
        count[left : left + 64] += 1
    np.testing.assert_allclose(found.logits.numpy(), total / count / 0.05, rtol=0, atol=2e-3)


def test_guide_of_a_whole_photo(sam):
    """A photo of 96 x 64 is encoded as 64 x 43, which is 8 cells by 5.375: the guide has 5 rows of equal height."""
    image = picture(7, (96, 64))
    embedding = sam.encode(sam.resize(image)).embedding
    rows = [(row + 0.5) / 5 * 5.375 - 0.5 for row in range(5)]
    parts = [torch.lerp(embedding[:, int(at)], embedding[:, int(at) + 1], at - int(at)) for at in rows]
    with torch.no_grad():
        maps = model_of("proxy").backbone.patch_map(pixels_of(image)[None], torch.stack(parts, dim=1)[None])[0]
    assert maps.shape == (64, 5, 8)
    assert_scores(segmenter(sam=sam, features="proxy").predict(image), cosines("proxy", maps), image)


# Refine ---------------------------------------------------------------------------------------------------------------


def coarse(image: Image.Image, made: Segmenter) -> torch.Tensor:
    """(K, h, w) class probabilities of a segmenter without refinement, at the size of the resized photo."""
    photo = made.prepare(image)
    small = replace(photo, size=tuple(photo.pixels.shape[1:]), sam=None)
    ((found,),) = made.predict_prepared([small], [made.classifier])
    return found.logits.exp() if made.classifier.background.has_threshold else found.logits.softmax(dim=0)


RULES = [None, Background("threshold", threshold=0.345), Background("words", words=("sky", "wall"))]


@pytest.mark.parametrize("inference", ["whole", "slide", "splice"])
@pytest.mark.parametrize("rule", RULES, ids=["none", "threshold", "words"])
def test_regions_are_redrawn(sam, inference, rule):
    """On the probabilities at the resized photo's size, the background being a class of its own."""
    image = picture(1, (75, 90))
    plain = segmenter(inference, background=rule)
    by_hand = refine(
        sam, sam.encode(sam.resize(image)), coarse(image, plain), REDRAWN, (90, 75), background=rule is not None
    )
    found = segmenter(inference, sam=sam, refinement=REDRAWN, background=rule).predict(image)
    assert torch.equal(found.mask, by_hand.labels)
    torch.testing.assert_close(found.logits.exp(), by_hand.scores(), rtol=1e-4, atol=1e-6)
    for name in ("prompts", "accepted", "failed", "small", "lost"):
        assert torch.equal(getattr(found.regions, name), getattr(by_hand.counts, name))
    assert found.regions.prompts.sum() > 0 and plain.predict(image).regions is None
    assert (found.mask != plain.predict(image).mask).any()
    assert len(found.regions.prompts) == len(found.class_names) == 3 + (rule is not None)


@pytest.mark.parametrize("inference", ["whole", "splice"])
@pytest.mark.parametrize("rule", RULES, ids=["none", "threshold", "words"])
def test_regions_vote(sams, inference, rule):
    image, second = picture(1, (75, 90)), sams["second"]
    plain = segmenter(inference, background=rule)
    by_hand = vote(second, second.encode(second.resize(image)), coarse(image, plain), VOTED, (90, 75))
    found = segmenter(inference, sam=second, refinement=VOTED, background=rule).predict(image)
    assert torch.equal(found.mask, by_hand.labels)
    torch.testing.assert_close(found.logits.exp(), by_hand.scores(), rtol=1e-4, atol=1e-6)
    counts = found.regions
    assert counts.kept == by_hand.counts.kept > 0 and counts.covered == by_hand.counts.covered > 0
    assert counts.points == 4 * 3 - counts.answered and counts.pixels == 75 * 90
    assert (found.mask != plain.predict(image).mask).any()


def test_without_a_region_the_coarse_map_stays(sam):
    image = picture(1, (64, 64))
    nothing = SamRefinement(threshold=0.99)
    found, plain = segmenter(sam=sam, refinement=nothing).predict(image), segmenter().predict(image)
    assert torch.equal(found.mask, plain.mask)
    torch.testing.assert_close(found.logits.softmax(dim=0), plain.logits.softmax(dim=0), rtol=1e-4, atol=1e-6)
    assert found.regions.prompts.sum() == 0 and found.regions.lost.sum() == 0


def test_pixel_refinement_counts_no_regions():
    assert segmenter(refinement=PixelRefinement(2, (2,))).predict(picture(1, (40, 40))).regions is None


@pytest.mark.parametrize("refinement", [REDRAWN, replace(VOTED, min_iou=0)])
def test_one_class_and_one_row_of_pixels(sam, refinement):
    for classes, size in ((["cat"], (40, 30)), (NAMES, (9, 1)), (NAMES, (1, 9)), (["cat"], (1, 1))):
        made = segmenter("splice", "sam", sam, refinement, features="proxy", classes=classes)
        found = made.predict(picture(2, size))
        assert found.mask.shape == size[::-1] and found.mask.min() >= 0 and found.mask.max() < len(classes)
        assert found.logits.shape == (len(classes), *size[::-1]) and found.logits.isfinite().all()
        assert torch.equal(found.mask, found.logits.argmax(dim=0))


# Everything together --------------------------------------------------------------------------------------------------

TOGETHER = [
    *[("whole", kind, "last") for kind in ("none", "attention", "embedding", "patches")],
    *[("splice", kind, "last") for kind in ("none", "attention", "embedding", "patches")],
    ("slide", "none", "last"),
    ("slide", "none", "proxy"),
    ("splice", "sam", "proxy"),
]


@pytest.mark.parametrize(("inference", "kind", "features"), TOGETHER)
def test_images_together_are_the_images_alone(sam, inference, kind, features):
    images = [picture(seed, size) for seed, size in enumerate([(80, 64), (64, 80), (80, 64), (33, 20), (90, 64)])]
    chosen = None if kind == "none" else Correlation(kind, parts=2 if kind == "embedding" else 1)
    made = segmenter(inference, chosen, sam, SamRefinement(threshold=0.34, min_area=1, min_iou=0.17), features)
    for image, found in zip(images, made.predict_batch(images), strict=True):
        alone = made.predict(image)
        torch.testing.assert_close(found.logits.exp(), alone.logits.exp(), rtol=1e-3, atol=1e-4)
        assert (found.mask == alone.mask).float().mean() > 0.99 and found.mask.shape == image.size[::-1]
        assert (found.regions.prompts - alone.regions.prompts).abs().max() <= 1


def test_threads_share_a_segmenter(sam):
    images = [picture(seed, size) for seed, size in enumerate([(80, 64), (64, 96), (40, 64), (64, 64), (70, 64)])]
    made = segmenter("splice", "sam", sam, REDRAWN, "proxy")
    alone = [made.predict(image) for image in images]
    expected = [(found.mask, found.logits, found.regions.prompts) for found in alone]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(made.predict, images))
        masks = list(pool.map(lambda found: found.mask, together))
    for found, mask, (label, logits, prompts) in zip(together, masks, expected, strict=True):
        assert torch.equal(mask, label) and torch.equal(found.logits, logits)
        assert torch.equal(found.regions.prompts, prompts)


def test_an_image_is_encoded_once(sam, encoded):
    made = segmenter("splice", "attention", sam, REDRAWN, "proxy")
    classifiers = [made.classifier_of(NAMES), made.classifier_of(["tree", "cat"])]
    images = [made.prepare(picture(seed, (80, 64))) for seed in range(2)]
    for found in made.predict_prepared(images, classifiers):
        for prediction in found:
            assert prediction.mask.shape == (64, 80) and prediction.logits.isfinite().all()
    assert encoded == [((51, 64), True)] * 2


def test_parts_are_encoded_beside_the_image_where_it_is_asked_for(sam, encoded):
    photo = picture(1, (128, 64))
    _ = segmenter("splice", Correlation("attention", parts=2), sam, REDRAWN, "proxy").predict(photo).mask
    assert encoded == [((32, 64), False), ((64, 64), True), ((64, 64), True)]
    encoded.clear()
    _ = segmenter("splice", Correlation("embedding", parts=2), sam).predict(photo).mask
    assert encoded == [((64, 64), False)] * 2


@pytest.mark.parametrize(
    ("options", "attends"),
    [({"features": "proxy"}, False), ({"refinement": REDRAWN}, False), ({"correlation": "embedding"}, False),
     ({"correlation": "attention"}, True)],
)  # fmt: skip
def test_attention_is_made_where_it_is_asked_for(sam, encoded, options, attends):
    _ = segmenter(sam=sam, **options).predict(picture(1, (64, 64))).mask
    assert encoded == [((64, 64), attends)]


@pytest.mark.parametrize("options", [{}, {"correlation": "patches"}, {"refinement": PixelRefinement(2, (2,))}])
def test_nothing_is_encoded_where_nothing_asks_a_sam(sam, encoded, options):
    made = segmenter(sam=sam, **options)
    assert made.predict(picture(1, (64, 64))).mask.shape == (64, 64)
    assert encoded == [] and made.sam is None and "sam" not in made.describe()
    assert made.prepare(picture(1, (64, 64))).sam is None


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"refinement": REDRAWN}, "refine=sam"),
        ({"refinement": VOTED}, "refine=vote"),
        ({"correlation": "attention"}, "correlate=attention"),
        ({"correlation": "sam"}, "correlate=sam"),
        ({"features": "proxy"}, "proxy=sam"),
    ],
)
def test_sam_that_is_asked_and_not_given(options, says):
    refused(lambda: segmenter(**options), says, "Segment Anything", "give sam.weights")


def settled(made: Segmenter) -> tuple[float, int, float]:
    facts = made.describe()
    return facts["correlate"]["cos_factor"], facts["correlate"]["parts"], facts["refine"]["threshold"]


def test_values_of_a_benchmark(sam):
    image, values = picture(3, (128, 64)), {"cos_factor": 0.5, "parts": 2, "threshold": 0.36}
    open_ones = SamRefinement(min_area=1, min_iou=0.17)
    found = segmenter("splice", "attention", sam, open_ones, values=values)
    assert settled(found) == (0.5, 2, 0.36)
    own = Correlation("attention", 0.5, parts=2), replace(open_ones, threshold=0.36)
    same, others = segmenter("splice", own[0], sam, own[1]), {"cos_factor": 2.0, "parts": 1, "threshold": 0.1}
    expected = same.predict(image)
    for made in (found, segmenter("splice", own[0], sam, own[1], values=others)):
        assert torch.equal(made.predict(image).logits, expected.logits)
        assert made.describe() == same.describe()
    for name, other in others.items():
        changed = segmenter("splice", "attention", sam, open_ones, values=values | {name: other}).predict(image)
        assert not torch.equal(changed.logits, expected.logits), name
    plain = segmenter("splice", "attention", sam, SamRefinement())
    assert settled(plain) == (1.2, 1, 0.5)


@pytest.mark.parametrize("kind", ["threshold", "both"])
def test_regions_begin_where_a_class_wins_over_the_background(sam, kind):
    """Unless the settings say otherwise; the value of a benchmark is for the rules without a threshold."""
    image, rule = picture(1, (75, 90)), Background(kind, 0.345, ("sky",) if kind == "both" else ())
    open_one, own = replace(REDRAWN, threshold=None), replace(REDRAWN, threshold=0.345)
    made = segmenter(sam=sam, refinement=open_one, background=rule, values={"threshold": 0.1})
    assert made.describe()["refine"]["threshold"] == 0.345
    same = segmenter(sam=sam, refinement=own, background=rule).predict(image)
    assert torch.equal(made.predict(image).logits, same.logits) and same.regions.prompts.sum() > 0
    words = made.classifier_of(NAMES, Background("words", words=("sky",)))
    assert made.describe(words)["refine"]["threshold"] == 0.1
    other = segmenter(sam=sam, refinement=REDRAWN, background=rule, values={"threshold": 0.1})
    assert other.describe()["refine"]["threshold"] == REDRAWN.threshold


def test_described_with_resolved_values(sam):
    values = {"cos_factor": 0.5, "parts": 2, "threshold": 0.36}
    facts = segmenter("splice", "sam", sam, SamRefinement(), "proxy", values=values).describe()
    assert (facts["inference"], facts["features"]) == ("splice", "proxy")
    assert facts["proxy"] == {"name": "sam", "shift": 1.0, "gain": 3.0, "weights": None}
    assert facts["correlate"] == {"kind": "attention", "cos_factor": 0.5, "temperature": 0.05, "parts": 2}
    assert facts["refine"] == {"kind": "sam", "threshold": 0.36, "min_area": 225, "min_iou": 0.8,
                               "mask_scale": 0.005, "background": "compete"}  # fmt: skip
    assert facts["sam"] == {"name": sam.name, "weights": sam.fingerprint}
    facts = segmenter(correlation="patches", sam=sam, values=values).describe()
    assert facts["correlate"] == {"kind": "patches", "cos_factor": 0.5, "temperature": 0.05, "parts": 1}
    facts = segmenter(sam=sam, refinement=RegionVote(), values=values).describe()
    assert facts["refine"] == {"kind": "vote", "points": 16, "min_iou": 0.88, "min_stability": 0.9,
                               "max_overlap": 0.7, "vote": "probability"}  # fmt: skip
    assert facts["correlate"] == "none"
