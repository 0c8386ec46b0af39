"""The picture of the parts: every part with arithmetic has its mark at its place and its name."""

import re

import pytest

from benchmarks.roofline import draw
from simzss.errors import InputError

PEAKS = {"towers": 1e12, "full": 2e11, "bandwidth": 2e10}


def part(step, name, seconds, flops, moved, full=False):
    return {"step": step, "name": name, "seconds": seconds, "flops": flops, "bytes": moved, "full": full}


@pytest.fixture
def measured():
    parts = [
        part("cached", "data", 0.1, 0, 1e8),
        part("cached", "text", 0.5, 2e11, 2e9),
        part("cached", "loss", 0.1, 2e9, 1e8, full=True),
        part("uncached", "text", 0.5, 2e11, 2e9),  # at the very same place
        part("uncached", "vision", 4.0, 3e12, 1e10),
    ]
    return {"machine": "a machine", "peaks": PEAKS, "parts": parts}


def test_names_and_roofs(measured, tmp_path):
    others = draw(measured, tmp_path / "roof.svg")
    assert others == ["cached data"]
    picture = (tmp_path / "roof.svg").read_text()
    # matplotlib draws letters as shapes and leaves the text beside them.
    texts = re.findall(r"<!-- (.*?) -->", picture)
    for name in ("cached: text", "cached: loss", "uncached: text", "uncached: vision"):
        assert texts.count(name) == 1, name
    assert "products of the towers: 1 TFLOP/s; memory: 20 GB/s" in texts
    assert "without arithmetic: cached data" in texts


def test_same_bytes_for_same_figures(measured, tmp_path):
    for name in ("a.svg", "b.svg"):
        draw(measured, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_nothing_to_draw(measured, tmp_path):
    measured["parts"] = measured["parts"][:1]
    with pytest.raises(InputError, match="nothing to draw"):
        draw(measured, tmp_path / "roof.svg")
