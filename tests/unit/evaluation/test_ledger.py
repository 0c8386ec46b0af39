"""Records of finished photos."""

import pytest
import torch

from simzss.atomic import pack_tensors
from simzss.evaluation.ledger import Entry, Ledger, plain_regions, read_regions, stamp_of
from simzss.segmentation.refine.sam import RegionCounts
from simzss.segmentation.refine.vote import VoteCounts

LOST = torch.tensor([0, 2, 1])


@pytest.mark.parametrize("regions", [None, RegionCounts(*[LOST] * 5), VoteCounts(*range(9), LOST)])
def test_regions_come_back(tmp_path, regions):
    """With their kind, and numbers as numbers."""
    tensors, kind = plain_regions(regions)
    stamp = stamp_of(tmp_path / "missing.jpg")
    Ledger(tmp_path).records({"a": 1}).add(3, {"one|name": (stamp, Entry(tensors, kind))})
    found = Ledger(tmp_path).records({"a": 1}).find({"one|name": stamp})["one|name"]
    again = read_regions(found.tensors, found.note)
    names = ("cat", "dog", "car")
    assert again is regions is None or again.by_name(names) == regions.by_name(names)
    assert not Ledger(tmp_path).records({"a": 2}).find({"one|name": stamp})
    assert not Ledger(tmp_path).records({"a": 1}).find({"one|name": [[1, 2]]})


def test_equal_content_has_equal_bytes():
    """The library alone orders metadata anew in every call."""
    metadata = dict.fromkeys("abcdefgh", "ä\u2028")
    contents = {pack_tensors({"x": LOST, "empty": LOST[:0]}, metadata) for _ in range(20)}
    assert len(contents) == 1
