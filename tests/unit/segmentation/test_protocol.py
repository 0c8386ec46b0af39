import pytest

from simzss.errors import InputError
from simzss.segmentation.background import Background
from simzss.segmentation.protocol import Protocol

WHOLE = {
    "name": "whole",
    "inference": "whole",
    "short_side": 336,
    "crop_size": 336,
    "stride": 224,
    "templates": "photo",
    "merge": "mean",
    "temperature": 0.05,
}


def refused(make, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_unknown_inference():
    refused(lambda: Protocol(**WHOLE | {"inference": "slid"}), "protocol.inference=slid", "slide")


@pytest.mark.parametrize("key", ["short_side", "crop_size", "stride"])
@pytest.mark.parametrize("value", [0, -4])
def test_sizes_below_one(key, value):
    refused(lambda: Protocol(**WHOLE | {key: value}), f"protocol.{key}={value}")


def test_stride_beyond_the_window():
    refused(lambda: Protocol(**WHOLE | {"inference": "slide", "crop_size": 224, "stride": 225}), "stride")


def test_unknown_merge():
    refused(lambda: Protocol(**WHOLE | {"merge": "maximum"}), "protocol.merge=maximum", "max")


def test_short_side_of_the_benchmark():
    own = Protocol(**WHOLE)
    assert own.resolved({"whole": 500}) == own
    left = Protocol(**WHOLE | {"short_side": None, "name": "tcl", "crop_size": 448})
    assert left.resolved({"tcl": 560, "trident": 688}).short_side == 560
    assert left.resolved({"trident": 688}).short_side == left.resolved().short_side == 448


@pytest.mark.parametrize("value", [0.0, -0.05])
def test_temperature_must_be_positive(value):
    refused(lambda: Protocol(**WHOLE | {"temperature": value}), "temperature")


def test_background():
    assert not Background().present
    assert Background("threshold", threshold=0.5).present
    assert Background("words", words=("sky",)).present


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"kind": "word"}, ["background.kind=word", "words"]),
        ({"kind": "threshold"}, ["background.threshold=0"]),
        ({"kind": "threshold", "threshold": 1.0}, ["background.threshold=1.0"]),
        ({"kind": "threshold", "threshold": -0.5}, ["background.threshold=-0.5"]),
        ({"kind": "words"}, ["background.words"]),
    ],
)
def test_background_refuses(arguments, parts):
    refused(lambda: Background(**arguments), *parts)
    assert Background("both", threshold=0.5, words=("sky",)).present
    refused(lambda: Background("both", threshold=0.0, words=("sky",)), "background.threshold=0.0")
    refused(lambda: Background("both", threshold=0.5), "background.words")
