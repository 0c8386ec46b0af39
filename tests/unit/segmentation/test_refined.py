"""Refinements in a `Segmenter`, everything together, and what a SAM is asked."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image

from simzss.data.settings import Background, ProtocolValues
from simzss.segmentation.prediction import MapScores
from simzss.segmentation.refine.base import MapRefinement, Refiner
from simzss.segmentation.refine.sam import refine
from simzss.segmentation.refine.vote import vote
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import AggregateSettings, PamrSettings, SamRefinementSettings, VoteSettings
from tests.support.files import picture
from tests.support.models import refused
from tests.unit.segmentation.small import NAMES, REDRAWN, VOTED, segmenter

RULES = {
    "none": Background(),
    "threshold": Background(kind="threshold", threshold=0.345),
    "words": Background(kind="words", words=["sky", "wall"]),
}
VALUES = ProtocolValues(cos_factor=0.5, parts=2, threshold=0.36)


def coarse(image: Image.Image, made: Segmenter, rule: Background) -> torch.Tensor:
    """(K, h, w) class probabilities of a segmenter without refinement, at the size of the resized photo."""
    photo = made.prepare(image)
    small = replace(photo, size=tuple(photo.pixels.shape[1:]), sam=None)
    ((found,),) = made.predict_prepared([small], [made.classifier(NAMES, rule)])
    return found.logits.exp() if rule.has_threshold else found.logits.softmax(dim=0)


@pytest.mark.parametrize("inference", ["whole", "slide", "stitch"])
@pytest.mark.parametrize("rule", RULES)
def test_regions_are_redrawn(sam, inference, rule):
    """On the probabilities at the resized photo's size, the background being a class of its own."""
    image, plain, rule = picture(1, (75, 90)), segmenter(inference), RULES[rule]
    probabilities, encoding = coarse(image, plain, rule), sam.encode(sam.resize(image))
    by_hand = refine(sam, encoding, probabilities, REDRAWN, (90, 75), background=rule.present)
    found = segmenter(inference, sam=sam, refine=REDRAWN).predict(image, NAMES, rule)
    assert torch.equal(found.mask, by_hand.labels)
    torch.testing.assert_close(found.logits.exp(), by_hand.scores(), rtol=1e-4, atol=1e-6)
    for name in ("prompts", "accepted", "failed", "small", "lost"):
        assert torch.equal(getattr(found.regions, name), getattr(by_hand.counts, name))
    assert found.regions.prompts.sum() > 0 and plain.predict(image, NAMES, rule).regions is None
    assert (found.mask != plain.predict(image, NAMES, rule).mask).any()
    assert len(found.regions.prompts) == len(found.class_names) == 3 + rule.present


@pytest.mark.parametrize("inference", ["whole", "stitch"])
@pytest.mark.parametrize("rule", RULES)
def test_regions_vote(sams, inference, rule):
    image, second, plain, rule = picture(1, (75, 90)), sams["second"], segmenter(inference), RULES[rule]
    by_hand = vote(second, second.encode(second.resize(image)), coarse(image, plain, rule), VOTED, (90, 75))
    found = segmenter(inference, sam=second, refine=VOTED).predict(image, NAMES, rule)
    assert torch.equal(found.mask, by_hand.labels)
    torch.testing.assert_close(found.logits.exp(), by_hand.scores(), rtol=1e-4, atol=1e-6)
    counts = found.regions
    assert counts.kept == by_hand.counts.kept > 0 and counts.covered == by_hand.counts.covered > 0
    assert counts.points == 4 * 3 - counts.answered and counts.pixels == 75 * 90
    assert (found.mask != plain.predict(image, NAMES, rule).mask).any()


def test_without_a_region_the_coarse_map_stays(sam):
    image = picture(1, (64, 64))
    found = segmenter(sam=sam, refine=SamRefinementSettings(threshold=0.99)).predict(image, NAMES)
    plain = segmenter().predict(image, NAMES)
    assert torch.equal(found.mask, plain.mask)
    torch.testing.assert_close(found.logits.softmax(dim=0), plain.logits.softmax(dim=0), rtol=1e-4, atol=1e-6)
    assert found.regions.prompts.sum() == 0 and found.regions.lost.sum() == 0


@pytest.mark.parametrize("refinement", [REDRAWN, VOTED.replace(min_iou=0)])
def test_one_class_and_one_row_of_pixels(sam, refinement):
    made = segmenter("stitch", aggregate="sam", sam=sam, refine=refinement, features="proxy")
    for classes, size in ((["cat"], (40, 30)), (NAMES, (9, 1)), (NAMES, (1, 9)), (["cat"], (1, 1))):
        found = made.predict(picture(2, size), classes)
        assert found.mask.shape == size[::-1] and found.mask.min() >= 0 and found.mask.max() < len(classes)
        assert found.logits.shape == (len(classes), *size[::-1]) and found.logits.isfinite().all()
        assert torch.equal(found.mask, found.logits.argmax(dim=0))


class Reversed(Refiner):
    """The least probable class."""

    def __call__(self, image, probabilities, background):
        return MapRefinement(1 - probabilities, image.prepared.size)

    def describe(self, background):
        return {"kind": "reversed"}


def test_a_refiner_of_your_own():
    image, made = picture(1, (64, 64)), segmenter(refine=Reversed())
    found, plain = made.predict(image, NAMES), segmenter().predict(image, NAMES)
    assert torch.equal(found.mask, plain.logits.argmin(dim=0)) and found.regions is None
    assert made.describe(made.classifier(NAMES))["refine"] == {"kind": "reversed"}
    assert isinstance(plain.score(), MapScores)


# Everything together --------------------------------------------------------------------------------------------------

TOGETHER = [
    *[(inference, kind, "last") for inference in ("whole", "stitch") for kind in ("attention", "embedding", "patches")],
    ("slide", "none", "last"),
    ("slide", "none", "proxy"),
    ("stitch", "sam", "proxy"),
]


@pytest.mark.parametrize(("inference", "kind", "features"), TOGETHER)
def test_images_together_are_the_images_alone(sam, inference, kind, features):
    images = [picture(seed, size) for seed, size in enumerate([(80, 64), (64, 80), (80, 64), (33, 20), (90, 64)])]
    chosen = AggregateSettings(kind=kind, parts=2 if kind == "embedding" else 1)
    made = segmenter(inference, aggregate=chosen, sam=sam, refine=REDRAWN, features=features)
    for image, found in zip(images, made.predict_batch(images, NAMES), strict=True):
        alone = made.predict(image, NAMES)
        torch.testing.assert_close(found.logits.exp(), alone.logits.exp(), rtol=1e-3, atol=1e-4)
        assert (found.mask == alone.mask).float().mean() > 0.99 and found.mask.shape == image.size[::-1]
        assert (found.regions.prompts - alone.regions.prompts).abs().max() <= 1


def test_threads_share_a_segmenter(sam):
    images = [picture(seed, size) for seed, size in enumerate([(80, 64), (64, 96), (40, 64), (64, 64), (70, 64)])]
    made = segmenter("stitch", aggregate="sam", sam=sam, refine=REDRAWN, features="proxy")
    alone = [made.predict(image, NAMES) for image in images]
    expected = [(found.mask, found.logits, found.regions.prompts) for found in alone]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda image: made.predict(image, NAMES), images))
        masks = list(pool.map(lambda found: found.mask, together))
    for found, mask, (label, logits, prompts) in zip(together, masks, expected, strict=True):
        assert torch.equal(mask, label) and torch.equal(found.logits, logits)
        assert torch.equal(found.regions.prompts, prompts)


def test_an_image_is_encoded_once(sam, encoded):
    """For all classifiers; beside its parts where it is asked for."""
    made = segmenter("stitch", aggregate="attention", sam=sam, refine=REDRAWN, features="proxy")
    classifiers = [made.classifier(NAMES), made.classifier(["tree", "cat"])]
    images = [made.prepare(picture(seed, (80, 64))) for seed in range(2)]
    for found in made.predict_prepared(images, classifiers):
        for prediction in found:
            assert prediction.mask.shape == (64, 80) and prediction.logits.isfinite().all()
    assert encoded == [((51, 64), True)] * 2
    encoded.clear()
    photo = picture(1, (128, 64))
    by_attention, by_embedding = (AggregateSettings(kind=kind, parts=2) for kind in ("attention", "embedding"))
    made = segmenter("stitch", aggregate=by_attention, sam=sam, refine=REDRAWN, features="proxy")
    _ = made.predict(photo, NAMES).mask
    assert encoded == [((32, 64), False), ((64, 64), True), ((64, 64), True)]
    encoded.clear()
    _ = segmenter("stitch", aggregate=by_embedding, sam=sam).predict(photo, NAMES).mask
    assert encoded == [((64, 64), False)] * 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"features": "proxy"}, [False]),
        ({"refine": REDRAWN}, [False]),
        ({"aggregate": "embedding"}, [False]),
        ({"aggregate": "attention"}, [True]),
        ({}, []),
        ({"aggregate": "patches"}, []),
        ({"refine": PamrSettings(iterations=2, dilations=(2,))}, []),
    ],
)
def test_attention_is_made_where_it_is_asked_for(sam, encoded, options, expected):
    """And nothing is encoded where nothing asks a SAM."""
    made = segmenter(sam=sam, **options)
    assert made.predict(picture(1, (64, 64)), NAMES).mask.shape == (64, 64)
    assert encoded == [((64, 64), attends) for attends in expected]
    if not expected:
        assert made.sam is None and "sam" not in made.describe(made.classifier(NAMES))
        assert made.prepare(picture(1, (64, 64))).sam is None


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"refine": REDRAWN}, "refine=sam"),
        ({"refine": VOTED}, "refine=vote"),
        ({"aggregate": "attention"}, "aggregate=attention"),
        ({"aggregate": "sam"}, "aggregate=sam"),
        ({"features": "proxy"}, "proxy=sam"),
    ],
)
def test_sam_that_is_asked_and_not_given(tmp_path, options, says):
    """Its weights may be given instead, which are then read."""
    refused(lambda: segmenter(**options), says, "Segment Anything", "give sam.weights")
    refused(lambda: segmenter(sam=tmp_path / "sam.pt", **options), "sam.pt", "does not exist")
    assert segmenter(sam=tmp_path / "sam.pt").sam is None


def described(made: Segmenter, rule: Background = RULES["none"]) -> dict:
    return made.describe(made.classifier(NAMES, rule))


def test_values_of_a_benchmark(sam):
    image, open_ones = picture(3, (128, 64)), REDRAWN.replace(threshold=None)
    options = {"inference": "stitch", "sam": sam}
    found = segmenter(aggregate="attention", refine=open_ones, values=VALUES, **options)
    own = {
        "aggregate": AggregateSettings(kind="attention", cos_factor=0.5, parts=2),
        "refine": REDRAWN.replace(threshold=0.36),
    }
    same, others = segmenter(**own, **options), {"cos_factor": 2.0, "parts": 1, "threshold": 0.1}
    expected = same.predict(image, NAMES).logits
    for made in (found, segmenter(values=ProtocolValues(**others), **own, **options)):
        assert torch.equal(made.predict(image, NAMES).logits, expected) and described(made) == described(same)
    for name, other in others.items():
        changed = segmenter(aggregate="attention", refine=open_ones, values=VALUES.replace(**{name: other}), **options)
        assert not torch.equal(changed.predict(image, NAMES).logits, expected), name


def test_regions_begin_where_a_class_wins_over_the_background(sam):
    image, rule, open_one = picture(1, (75, 90)), RULES["threshold"], REDRAWN.replace(threshold=None)
    made = segmenter(sam=sam, refine=open_one, values=ProtocolValues(threshold=0.1))
    assert described(made, rule)["refine"]["threshold"] == 0.345
    assert described(made, RULES["words"])["refine"]["threshold"] == 0.1
    same = segmenter(sam=sam, refine=REDRAWN.replace(threshold=0.345)).predict(image, NAMES, rule)
    assert torch.equal(made.predict(image, NAMES, rule).logits, same.logits) and same.regions.prompts.sum() > 0


def test_described_with_resolved_values(sam):
    """In the words of version 0.1, for results of all versions compare."""
    options = {"sam": sam, "values": VALUES}
    facts = described(segmenter("stitch", aggregate="sam", refine=SamRefinementSettings(), features="proxy", **options))
    assert (facts["inference"], facts["features"]) == ("splice", "proxy")
    assert facts["proxy"] == {"name": "sam", "shift": 1.0, "gain": 3.0, "weights": None}
    assert facts["correlate"] == {"kind": "attention", "cos_factor": 0.5, "temperature": 0.05, "parts": 2}
    redrawn = {"threshold": 0.36, "min_area": 225, "min_iou": 0.8, "mask_scale": 0.005, "background": "compete"}
    assert facts["refine"] == {"kind": "sam"} | redrawn and isinstance(facts["refine"]["min_area"], int)
    assert facts["sam"] == {"name": sam.name, "weights": sam.fingerprint}
    facts = described(segmenter(aggregate="patches", **options))
    assert facts["correlate"] == {"kind": "patches", "cos_factor": 0.5, "temperature": 0.05, "parts": 1}
    facts = described(segmenter(refine=VoteSettings(), **options))
    voted = {"points": 16, "min_iou": 0.88, "min_stability": 0.9, "max_overlap": 0.7, "vote": "probability"}
    assert facts["refine"] == {"kind": "vote"} | voted and facts["correlate"] == "none"
