"""Crops of photos whose colours tell the labels, the order of an epoch, and folders of masks as they are configured."""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from simzss.data.benchmark import IGNORE, Benchmark
from simzss.training.data.masks import MaskBatch, MaskDataModule, MaskDataset, hold_out, open_masks, write_split
from tests.support.mask_training import blocks, coloured, mask_settings, told, voc, write_pairs, write_voc
from tests.support.models import refused

GREY = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
VALUES = np.array([[0, 1, 2, 3], [255, 20, 8, 0], [15, 3, 3, 1], [12, 0, 7, 255]], np.uint8)


def crops(benchmark: Benchmark, size: int, count: int, index: int = 0, **changes) -> list[MaskBatch]:
    """Random crops of one photo."""
    dataset = MaskDataset(benchmark, size, mask_settings(**changes))
    return [dataset.crop(index, torch.Generator().manual_seed(seed)) for seed in range(count)]


def expected_labels(values: np.ndarray, background: bool, excluded: tuple[int, ...]) -> torch.Tensor:
    """Labels to train on of VOC's own values: 0 background, 1 to 20 the classes, 255 the border."""
    kept = [value for value in range(1, 21) if value not in excluded]
    table = {value: label for label, value in enumerate(kept)} | {0: len(kept) if background else IGNORE}
    return torch.tensor([[table.get(int(value), IGNORE) for value in row] for row in values]).byte()


@pytest.mark.parametrize(("number", "share", "count"), [(40, 0.3, 12), (10, 0.0, 0), (10, 0.02, 0), (10, 0.9, 9)])
def test_photos_held_out(number, share, count):
    names = [f"photo {i:02d}" for i in reversed(range(number))]
    trained, held_out = hold_out(names, share, seed=1)
    assert len(held_out) == count and sorted(trained + held_out) == sorted(names)
    assert trained == sorted(trained, reverse=True) and held_out == sorted(held_out, reverse=True)
    assert hold_out(names, share, seed=1) == (trained, held_out)
    if count:
        assert held_out not in (hold_out(names, share, seed=2)[1], names[:count], names[-count:])


@pytest.mark.parametrize(("number", "share"), [(10, 0.96), (1, 0.6), (0, 0.0)])
def test_nothing_left_to_train_on(number, share):
    refused(lambda: hold_out(["a"] * number, share, seed=0), f"masks.held_out={share}", f"none of {number} photos")


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["voc20", "voc21"])
@pytest.mark.parametrize(
    ("excluded", "values"), [([], ()), (["bird"], (3,)), (["tv monitor", "aeroplane", "cat"], (20, 1, 8))]
)
def test_labels(tmp_path, name, excluded, values):
    write_voc(tmp_path, [VALUES])
    benchmark = voc(tmp_path, name)
    dataset = MaskDataset(benchmark, 4, mask_settings(exclude_classes=excluded))
    assert list(dataset.class_groups) == [group for group in benchmark.class_groups if group[0] not in excluded]
    image, labels = dataset.crop(0, torch.Generator())
    assert image.shape == (3, 4, 4) and image.dtype == labels.dtype == torch.uint8
    assert torch.equal(labels, expected_labels(VALUES, name == "voc21", values))


def scenes(root: Path, classes: str, values: np.ndarray = VALUES % 2) -> Benchmark:
    """A folder with classes of its own."""
    write_pairs(root / "images" / "val", root / "annotations" / "val", {"a": values})
    (root / "classes.txt").write_text(classes, encoding="utf-8")
    return voc(root, "scenes", background={"kind": "threshold"})


@pytest.mark.parametrize(
    ("classes", "excluded", "parts"),
    [
        ("cat, kitten\ndog\n", ["dog", "cat"], ("masks.exclude_classes", "no class")),
        ("cat, kitten\ndog\n", ["kitten"], ("masks.exclude_classes", "scenes", "'kitten'", "known: cat, dog")),
        ("".join(f"class {i}\n" for i in range(255)), [], ("scenes", "255 classes", "254")),
    ],
)
def test_classes_that_cannot_be_trained_on(tmp_path, classes, excluded, parts):
    benchmark = scenes(tmp_path, classes)
    refused(lambda: MaskDataset(benchmark, 4, mask_settings(exclude_classes=excluded)), *parts)


def test_as_many_classes_as_fit_a_mask(tmp_path):
    benchmark = scenes(tmp_path, "".join(f"class {i}\n" for i in range(254)), np.array([[0, 1], [254, 255]], np.uint8))
    assert crops(benchmark, 2, 1)[0].labels.tolist() == [[254, 0], [253, 255]]


# Crops ----------------------------------------------------------------------------------------------------------------


def covered(image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rectangle of a crop that its photo covers; the rest is grey and does not count."""
    beyond = (image == GREY).all(dim=0)
    assert (labels[beyond] == IGNORE).all()
    positions = (~beyond).nonzero()
    (top, left), (bottom, right) = positions.amin(dim=0).tolist(), (positions.amax(dim=0) + 1).tolist()
    assert len(positions) == (bottom - top) * (right - left)
    return image[:, top:bottom, left:right], labels[top:bottom, left:right]


def uniform(labels: torch.Tensor, margin: int, size: int) -> torch.Tensor:
    """Pixels with one label all around, as far as can be seen: what lies beyond a crop's rim may be another."""
    padded = labels[None, None].float()
    most, least = (F.max_pool2d(sign * padded, 2 * margin + 1, 1, margin)[0, 0] * sign for sign in (1, -1))
    same = most == least
    for dim, length in enumerate(labels.shape):
        if length == size:
            same.narrow(dim, 0, margin).fill_(False)
            same.narrow(dim, length - margin, margin).fill_(False)
    return same


@pytest.mark.parametrize("scale", [0.005, 0.3, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("size", [(48, 48), (90, 40), (40, 80), (20, 20), (200, 3), (2, 150), (400, 1), (1, 1)])
def test_a_crop_shows_its_photo_and_its_colours_tell_the_labels(tmp_path, size, scale):
    write_voc(tmp_path, [blocks(*size)], ".png")
    benchmark, expected = voc(tmp_path, "voc21", image_suffix=".png"), expected_labels(np.arange(21)[None], True, ())[0]
    compared = set()
    for crop in crops(benchmark, 48, 6, scales=(scale, scale), flip=True):
        assert crop.images.shape == (3, 48, 48) and crop.labels.shape == (48, 48)
        image, labels = covered(*crop)
        assert list(labels.shape) == [min(48, max(1, round(side * scale * 48 / min(size)))) for side in size[::-1]]
        assert (labels != IGNORE).all()
        inside = uniform(labels, min(24, math.ceil(2 * max(1, 48 * scale / min(size))) + 1), 48)
        if scale > 0.1:  # else a pixel is an average of many labels
            assert torch.equal(labels[inside], expected[told(image)[inside]])
            compared |= set(labels[inside].tolist())
    assert len(compared) > 1 or scale < 0.1 or min(size) < 40


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.3, 2.0, 3.1])
@pytest.mark.parametrize(("size", "side"), [((70, 48), 8), ((48, 90), 8), ((16, 20), 2), ((200, 4), 1)])
def test_edges_are_where_labels_change(tmp_path, size, side, scale):
    """Photo and mask are resampled about the same centres: a shift of a pixel would be seen."""
    write_voc(tmp_path, [20 * ((np.indices(size[::-1]) // side).sum(axis=0) % 2)], ".png")
    for crop in crops(voc(tmp_path, "voc21", image_suffix=".png"), 48, 6, scales=(scale, scale), flip=True):
        image, labels = covered(*crop)
        height = image[0].int() - 120  # over halfway between the two reds
        clear = height.abs() > 12
        assert torch.equal(height[clear] > 0, (labels == 19)[clear]) and clear.double().mean() > 0.5


def test_scale_of_one_is_the_photo_itself(tmp_path):
    """A window of it at any position, mirrored or not, pixel for pixel."""
    mask = np.arange(10 * 14, dtype=np.uint8).reshape(10, 14) % 21
    write_voc(tmp_path, [mask], ".png")
    benchmark = voc(tmp_path, "voc21", image_suffix=".png")
    whole = (torch.from_numpy(np.array(coloured(mask))).permute(2, 0, 1), expected_labels(mask, True, ()))
    windows = {(left, False): [part[..., left : left + 10] for part in whole] for left in range(5)}
    windows |= {(left, True): [part.flip(-1) for part in windows[left, False]] for left in range(5)}
    found = Counter()
    for crop in crops(benchmark, 10, 300, flip=True):
        (place,) = (key for key, pair in windows.items() if torch.equal(crop.images, pair[0]))
        assert torch.equal(crop.labels, windows[place][1])
        found[place] += 1
    assert set(found) == set(windows) and min(found.values()) > 12  # 30 each
    for image, _ in crops(benchmark, 10, 30):
        assert any(torch.equal(image, windows[left, False][0]) for left in range(5))


def test_positions_and_scales_are_drawn_evenly(tmp_path):
    """A window may start between two pixels; a small photo lies anywhere; scales come from the whole range."""
    write_voc(tmp_path, [np.arange(1, 7, dtype=np.uint8)[None].repeat(4, axis=0), np.full((8, 8), 5, np.uint8)])
    benchmark = voc(tmp_path)
    rows = Counter(tuple(labels[0].tolist()) for _, labels in crops(benchmark, 4, 300, scales=(2.0, 2.0)))
    assert set(rows) == {tuple((start + place) // 2 for place in range(4)) for start in range(9)}
    assert min(rows.values()) > 12  # 33 each
    small = [(labels != IGNORE).nonzero() for _, labels in crops(benchmark, 4, 300, 1, scales=(0.5, 0.5))]
    assert {len(pixels) for pixels in small} == {4}
    assert {tuple(pixels[0].tolist()) for pixels in small} == {(row, column) for row in range(3) for column in range(3)}
    jittered = crops(benchmark, 20, 300, 1, scales=(0.2, 0.9))
    sides = Counter(math.isqrt(int((labels != IGNORE).sum())) for _, labels in jittered)
    assert set(sides) == set(range(4, 19)) and all(sides[side] > 5 for side in range(5, 18))  # 21 each


# Batches --------------------------------------------------------------------------------------------------------------


def make_data(root: Path, epoch: int = 0, seed: int = 0, **changes) -> MaskDataModule:
    settings = mask_settings(root, **{"scales": (0.5, 2.0), "flip": True} | changes)
    data = MaskDataModule(MaskDataset(voc(root, image_suffix=".png"), 16, settings), seed)
    data.trainer = SimpleNamespace(current_epoch=epoch)
    return data


def crops_of(batches: list[MaskBatch]) -> list[bytes]:
    pairs = [pair for batch in batches for pair in zip(batch.images, batch.labels, strict=True)]
    return [image.numpy().tobytes() + labels.numpy().tobytes() for image, labels in pairs]


def epoch_of(*args, **kwargs) -> list[bytes]:
    return crops_of(list(make_data(*args, **kwargs).train_dataloader()))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Ten photos of noise and random labels."""
    root = tmp_path_factory.mktemp("photos")
    write_voc(root, [blocks(20 + seed, 24, seed, side=3, labels=range(1, 21)) for seed in range(10)], ".png")
    return root


def test_crops_depend_on_seed_and_epoch(photos):
    """Batches are of one size, and a photo that is there twice is cropped twice."""
    batches = list(make_data(photos).train_dataloader())
    assert [batch.images.shape for batch in batches] == [(4, 3, 16, 16)] * 3
    assert {(batch.labels.shape, batch.labels.dtype) for batch in batches} == {((4, 16, 16), torch.uint8)}
    assert epoch_of(photos, 1, 2) == epoch_of(photos, 1, 2)
    kinds = [epoch_of(photos, epoch, seed) for epoch, seed in ((0, 0), (1, 2), (2, 2), (1, 3), (2, 1))]
    assert len({crop for crops in kinds for crop in crops}) == 60


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_one_epoch_after_another(photos, num_workers):
    """Workers stay, and see the epoch that the trainer is in; crops do not depend on their number."""
    data = make_data(photos, num_workers=num_workers)
    for epoch in (0, 1):
        data.trainer.current_epoch = epoch
        assert crops_of(list(data.train_dataloader())) == epoch_of(photos, epoch)


@pytest.mark.parametrize("world", [2, 4, 3])
def test_global_batches_do_not_depend_on_the_number_of_ranks(photos, world, monkeypatch):
    whole, ranks = epoch_of(photos), []
    monkeypatch.setattr("simzss.training.data.masks.world_size", lambda: world)
    for number in range(world):
        monkeypatch.setattr("simzss.training.data.masks.rank", lambda number=number: number)
        if 4 % world:
            refused(make_data(photos).train_dataloader, "masks.batch_size=4", f"{world} processes")
            return
        ranks.append(epoch_of(photos))
    assert [crop for crops in zip(*ranks, strict=True) for crop in crops] == whole


@pytest.mark.parametrize(("batch_size", "count"), [(1, 5), (2, 6), (4, 8), (5, 5), (6, 6), (12, 12)])
def test_every_photo_once_an_epoch_and_the_last_batch_filled_up(tmp_path, batch_size, count):
    write_voc(tmp_path, [np.full((20, 20), value, np.uint8) for value in range(1, 6)], ".png")
    orders = set()
    for epoch in range(3):
        batches = list(make_data(tmp_path, epoch, batch_size=batch_size).train_dataloader())
        assert [len(batch.labels) for batch in batches] == [batch_size] * (count // batch_size)
        seen = [int(labels[labels != IGNORE].unique()) for batch in batches for labels in batch.labels]
        counts = Counter(seen)
        assert sorted(seen[:5]) == [0, 1, 2, 3, 4] and max(counts.values()) - min(counts.values()) <= 1
        orders.add(tuple(seen))
    assert len(orders) > 1


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("wrong", ["label", "photo", "size"])
def test_error_of_a_worker_arrives_in_its_own_words(tmp_path, num_workers, wrong):
    names = write_voc(tmp_path, [np.full((8, 8), 1, np.uint8)] * 3, ".png")
    path = tmp_path / ("JPEGImages" if wrong == "photo" else "SegmentationClass") / f"{names[1]}.png"
    if wrong == "photo":
        path.write_bytes(b"no image")
    else:
        Image.fromarray(np.full((8, 8) if wrong == "label" else (7, 8), 33, np.uint8)).save(path)
    data = make_data(tmp_path, num_workers=num_workers, batch_size=3)
    (batch,) = data.train_dataloader()
    refused(lambda: data.on_before_batch_transfer(batch, 0), str(path), "33" if wrong == "label" else "")
    data.teardown("fit")  # workers that end with other garbage take five seconds


# Folders --------------------------------------------------------------------------------------------------------------


def test_masks_as_configured(tmp_path):
    names = write_voc(tmp_path / "VOC2012", [VALUES] * 10)
    settings = mask_settings(tmp_path, held_out=0.3, limit=4, exclude_classes=["cat"])
    dataset, held_out = open_masks(settings, 8, seed=5)
    trained, expected = hold_out(names, 0.3, 5)
    assert held_out == expected and dataset.benchmark.names == trained[:4]
    assert len(dataset.class_groups) == 19 and ("cat",) not in dataset.class_groups
    assert len(open_masks(mask_settings(tmp_path, limit=99), 8, seed=0)[0].benchmark) == 10


def test_folders_in_place_of_the_benchmark_s(tmp_path):
    """Their names come from the folders, not from the benchmark's split, unless a split is given."""
    measured = write_voc(tmp_path, [VALUES] * 2)
    own = {f"train {i}": np.full((4, 4), i + 1, np.uint8) for i in range(3)}
    write_pairs(tmp_path / "photos", tmp_path / "labels", own)
    write_pairs(tmp_path / "copies", tmp_path / "more", dict.fromkeys([*measured, "other"], VALUES))
    (tmp_path / "some.txt").write_text("train 2\ntrain 0\n", encoding="utf-8")
    folders = {"images": "photos", "masks": "labels"}

    def names(**changes) -> list[str]:
        return open_masks(mask_settings(tmp_path, **changes), 4, seed=0)[0].benchmark.names

    assert names(**folders) == list(own) and names(**folders, split="some.txt") == ["train 2", "train 0"]
    assert names(masks="more") == measured


def test_written_splits_are_read_from_outside_the_root(tmp_path):
    names = write_voc(tmp_path / "voc", [VALUES] * 3)
    for name in names[:2]:
        for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
            path = tmp_path / "voc" / folder / f"{name}{suffix}"
            path.rename(path.with_name(f"my é {name}{suffix}"))
    names, run = [f"my é {names[0]}", f"my é {names[1]}", names[2]], tmp_path / "out" / "run"
    write_split(run, names[::-1], names[1:])
    assert voc(tmp_path / "voc", split=str(run / "train.txt")).names == names[::-1]
    settings = mask_settings(tmp_path / "voc", split=str(run / "held_out.txt"))
    assert open_masks(settings, 4, seed=0)[0].benchmark.names == names[1:]
    write_split(tmp_path, ["a"], [])
    assert (tmp_path / "held_out.txt").read_bytes() == b"" and (tmp_path / "train.txt").read_bytes() == b"a\n"
    refused(lambda: write_split(tmp_path / "train.txt" / "run", ["a"], []), f"output_dir={tmp_path}/train.txt/run")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"root": "gone"}, ("masks.root=gone",)),
        ({"benchmark": "ade20k"}, ("masks.root=", "ade20k", "annotations/validation")),
        ({"masks": "nowhere"}, ("masks.root=", "nowhere")),
        ({"split": "gone.txt"}, ("split", "gone.txt", "does not exist")),
        ({"benchmark": "retrieval"}, ("masks.benchmark=retrieval", "no segmentation set")),
        ({"benchmark": "vok20"}, ("masks.benchmark=vok20", "did you mean voc20")),
        ({"held_out": 0.9}, ("masks.held_out=0.9", "none of 2 photos")),
    ],
)
def test_what_cannot_be_trained_on(tmp_path, changes, parts):
    write_voc(tmp_path, [VALUES] * 2)
    refused(lambda: open_masks(mask_settings(**{"root": str(tmp_path)} | changes), 4, seed=0), *parts)
