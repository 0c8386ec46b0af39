import numpy as np
from PIL import Image

from tests.support import official_layouts
from tests.support.masks import assert_same, seen_by_benchmark


def test_voc(tmp_path):
    truth = official_layouts.voc2012(tmp_path)
    assert len(truth) >= 10 and len({mask.shape for mask in truth.values()}) >= 10
    assert_same(seen_by_benchmark("voc21", tmp_path / "VOCdevkit"), truth)
    assert all((mask == 255).any() for mask in truth.values())
    with Image.open(tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass" / f"{next(iter(truth))}.png") as mask:
        assert mask.mode == "P"
        colours = np.array(mask.getpalette()).reshape(-1, 3)
    # Background, aeroplane, bicycle, tv monitor and the border in the colours of the official masks.
    assert colours[[0, 1, 2, 20, 255]].tolist() == [[0] * 3, [128, 0, 0], [0, 128, 0], [0, 64, 128], [224, 224, 192]]


def test_ade20k(tmp_path):
    truth = official_layouts.ade20k(tmp_path)
    assert len(truth) >= 10 and sorted(truth)[0] == "ADE_val_00000001"
    found = seen_by_benchmark("ade20k", tmp_path)
    assert_same(found, {name: np.where(mask == 0, 255, mask) for name, mask in truth.items()})


def test_another_seed_gives_other_masks(tmp_path):
    first, second = (official_layouts.voc2012(tmp_path / str(seed), seed) for seed in (0, 1))
    assert any(not np.array_equal(first[name], second[name]) for name in first)
