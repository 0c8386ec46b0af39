"""Settings of segmentation: limits, and values that are left open."""

import math

import pytest

from simzss.data.settings import Background, BenchmarkSettings, ProtocolValues
from simzss.errors import ConfigError
from simzss.segmentation.settings import (
    AggregateSettings,
    NoRefinement,
    PamrSettings,
    Protocol,
    SamRefinementSettings,
    VoteSettings,
    from_preset,
)
from simzss.settings.compose import choices
from tests.support.models import refused

VALUES = ProtocolValues(short_side=500, cos_factor=1.5, parts=3, threshold=0.1)


@pytest.mark.parametrize(
    ("settings", "changes", "says"),
    [
        (Protocol, {"inference": "slid"}, "inference=slid is unknown; did you mean slide"),
        (Protocol, {"short_side": 0}, "short_side=0 must be at least 1"),
        (Protocol, {"crop_size": -4}, "crop_size=-4"),
        (Protocol, {"crop_size": 224, "stride": 225}, "stride=225 must be at most protocol.crop_size=224"),
        (Protocol, {"merge": "maximum"}, "merge=maximum"),
        (Protocol, {"temperature": 0.0}, "temperature=0.0 must be above 0"),
        (Protocol, {"temperature": math.nan}, "temperature=nan"),
        (AggregateSettings, {"kind": "attentoin"}, "kind=attentoin is unknown; did you mean attention"),
        (AggregateSettings, {"cos_factor": -1}, "cos_factor=-1"),
        (AggregateSettings, {"temperature": 0}, "temperature=0"),
        (AggregateSettings, {"parts": 0}, "parts=0"),
        (PamrSettings, {"iterations": 0}, "iterations=0"),
        (PamrSettings, {"dilations": ()}, "dilations"),
        (PamrSettings, {"dilations": (8, 0)}, "dilations"),
        (PamrSettings, {"dilations": (8, 2.5)}, "dilations"),
        (SamRefinementSettings, {"threshold": 1.0}, "threshold=1.0"),
        (SamRefinementSettings, {"min_area": -1}, "min_area=-1"),
        (SamRefinementSettings, {"min_iou": 1.5}, "min_iou=1.5"),
        (SamRefinementSettings, {"mask_scale": 0}, "mask_scale=0"),
        (SamRefinementSettings, {"background": "competes"}, "background=competes is unknown; did you mean compete?"),
        (VoteSettings, {"points": 0}, "points=0"),
        (VoteSettings, {"min_stability": -0.1}, "min_stability=-0.1"),
        (VoteSettings, {"vote": "labels"}, "vote=labels is unknown; did you mean label?"),
    ],
)
def test_values_that_no_segmenter_could_have(settings, changes, says):
    refused(lambda: settings(**changes), says)


def test_short_side_of_the_benchmark():
    assert Protocol().resolved(VALUES) == Protocol()
    left = Protocol(name="tcl", short_side=None, crop_size=448)
    benchmark = BenchmarkSettings(name="b", root="r", protocols={"tcl": {"short_side": 560}})
    assert left.resolved(benchmark.values_of("tcl")).short_side == 560
    assert left.resolved(benchmark.values_of("trident")).short_side == left.resolved().short_side == 448


@pytest.mark.parametrize(
    ("chosen", "has_attention", "values", "expected"),
    [
        ({"kind": "sam"}, True, ProtocolValues(), ("attention", 1.2, 1)),
        ({"kind": "sam"}, False, ProtocolValues(), ("embedding", 1.2, 1)),
        ({"kind": "attention"}, True, VALUES, ("attention", 1.5, 3)),
        ({"kind": "embedding", "cos_factor": 0.7, "parts": 2}, True, VALUES, ("embedding", 0.7, 2)),
        ({"kind": "embedding", "cos_factor": 0.0, "parts": 1}, True, VALUES, ("embedding", 0.0, 1)),
        ({"kind": "patches"}, None, VALUES, ("patches", 1.5, 1)),  # no SAM sees parts
        ({"kind": "patches", "parts": 4}, None, ProtocolValues(), ("patches", 1.2, 1)),
        ({"kind": "none", "parts": 4}, True, VALUES, ("none", 1.5, 1)),
    ],
)
def test_open_values_of_the_aggregation(chosen, has_attention, values, expected):
    """Own values come first, then those of a benchmark, then the defaults."""
    found = AggregateSettings(**chosen).resolved(values, has_attention)
    assert (found.kind, found.cos_factor, found.parts) == expected
    assert found.needs_sam == (found.kind in ("attention", "embedding"))


def test_attention_of_a_sam_without_one_is_refused():
    refused(
        lambda: AggregateSettings(kind="attention").resolved(has_attention=False),
        "aggregate.kind=attention",
        "use embedding",
    )


@pytest.mark.parametrize(
    ("own", "background", "values", "threshold"),
    [
        (0.4, Background(kind="threshold", threshold=0.3), VALUES, 0.4),
        (None, Background(kind="threshold", threshold=0.3), VALUES, 0.3),
        (None, Background(kind="both", threshold=0.3, words=["sky"]), VALUES, 0.3),
        (None, Background(kind="words", words=["sky"]), VALUES, 0.1),
        (None, Background(), VALUES, 0.1),
        (None, Background(), ProtocolValues(), 0.5),
    ],
)
def test_regions_begin_where_a_class_wins_over_the_background(own, background, values, threshold):
    """Unless the settings say otherwise; the value of a benchmark is for the rules without a threshold."""
    assert SamRefinementSettings(threshold=own).resolved(background, values).threshold == threshold


def test_presets_are_the_kinds():
    """Each file has the defaults of its kind; settings themselves pass."""
    kinds = {"none": NoRefinement(), "pamr": PamrSettings(), "sam": SamRefinementSettings(), "vote": VoteSettings()}
    assert choices("refine") == list(kinds)
    assert {name: from_preset("refine", name) for name in kinds} == kinds
    assert from_preset("protocol", "tcl").crop_size == 448 and from_preset("refine", kinds["sam"]) is kinds["sam"]
    with pytest.raises(ConfigError, match=r"refine=pmr is unknown.*pamr"):
        from_preset("refine", "pmr")
