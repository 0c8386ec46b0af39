import hashlib

import pytest
import torch

from simzss.data.images import decode_image
from simzss.data.transforms import RandomCrop, WholeImage
from simzss.features.views import Views
from tests.support.caching import jpeg


def photo(views):
    return decode_image(jpeg(0), views.min_side)


def test_one_view_is_the_whole_image():
    views = Views(64)
    found = views.make(photo(views), "a.tar", "1")
    assert found.shape == (1, 3, 64, 64) and found.dtype == torch.uint8
    assert found[0].equal(WholeImage(64)(decode_image(jpeg(0), 64)))


def test_crops_are_those_of_their_names_in_whatever_order():
    views = Views(64, 3, 0.4, seed=7)
    for shard, key in (("b.tar", "2"), ("a.tar", "1"), ("a.tar", "half \ud83d")):
        expected = [WholeImage(64)(photo(views))]
        for view in (1, 2):
            name = f"7/{view}/{shard}/{key}".encode(errors="backslashreplace")
            torch.manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:7], "big"))
            expected.append(RandomCrop(64, 0.4)(photo(views)))
        torch.manual_seed(99)
        before = torch.random.get_rng_state()
        found = views.make(photo(views), shard, key)
        assert torch.random.get_rng_state().equal(before)
        assert found.equal(torch.stack(expected))
        assert not any(found[i].equal(found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("change", [{"seed": 1}, {"min_crop": 0.5}])
def test_crops_follow_their_settings(change):
    options = {"size": 64, "count": 2, "min_crop": 0.4, "seed": 0}
    one, other = (Views(**options | more).make(decode_image(jpeg(0)), "a.tar", "1") for more in ({}, change))
    assert one[0].equal(other[0]) and not one[1].equal(other[1])


def test_metadata_names_what_the_pictures_depend_on():
    assert Views(64, 1, 0.9, 0).metadata() == Views(64, 1, 0.5, 3).metadata()
    different = {str(Views(64, *rest).metadata()) for rest in ((1,), (2,), (2, 0.5), (2, 0.9, 1))}
    assert len(different) == 4
    assert Views(64, 2, 0.5).metadata()["draft"] == RandomCrop(64, 0.5).min_side > Views(64).metadata()["draft"] == 64
