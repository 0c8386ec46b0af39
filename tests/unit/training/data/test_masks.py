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

from simzss.data.benchmark import IGNORE
from simzss.errors import InputError
from simzss.segmentation.background import Background
from simzss.segmentation.classifier import checked_names
from simzss.training.data.masks import MaskBatch, MaskData, TrainingMasks, divide, write_split
from simzss.training.mask_run import build_masks
from tests.support.mask_training import blocks, coloured, masks_config, told, voc, write_pairs, write_voc
from tests.support.models import refused

GREY = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
SIZE = 16
VALUES = np.array([[0, 1, 2, 3], [255, 20, 8, 0], [15, 3, 3, 1], [12, 0, 7, 255]], np.uint8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_photos_are_divided():
    names = [f"photo {i:02d}" for i in range(40)]
    trained, held_out = divide(names, 0.3, seed=1)
    assert (len(trained), len(held_out)) == (28, 12)
    assert sorted(trained + held_out) == names
    assert trained == sorted(trained) and held_out == sorted(held_out)
    assert divide(names, 0.3, seed=1) == (trained, held_out)
    assert divide(names, 0.3, seed=2)[1] != held_out
    assert held_out not in (names[:12], names[-12:])
    backwards = divide(names[::-1], 0.3, seed=1)[0]
    assert backwards == sorted(backwards, reverse=True)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.02, 0), (0.1, 1), (0.25, 2), (0.9, 9)])
def test_share_that_is_held_out(share, count):
    trained, held_out = divide("abcdefghij", share, seed=0)
    assert (len(trained), len(held_out)) == (10 - count, count)


@pytest.mark.parametrize(("number", "share"), [(10, 0.96), (1, 0.6), (0, 0.0)])
def test_nothing_left_to_train_on(number, share):
    refused(lambda: divide(["a"] * number, share, seed=0), f"masks.held_out={share}", f"none of {number} photos")


def expected_labels(values: np.ndarray, background: bool, hidden: tuple[int, ...]) -> torch.Tensor:
    """Labels to train on of VOC's own values: 0 background, 1 to 20 the classes, 255 the border."""
    kept = [value for value in range(1, 21) if value not in hidden]
    table = {value: label for label, value in enumerate(kept)}
    none = len(kept) if background else IGNORE
    return torch.tensor([[none if v == 0 else table.get(int(v), IGNORE) for v in row] for row in values]).byte()


@pytest.mark.parametrize("benchmark", ["voc20", "voc21"])
@pytest.mark.parametrize(
    ("hidden", "values"), [((), ()), (("bird",), (3,)), (("tv monitor", "aeroplane", "cat"), (20, 1, 8))]
)
def test_labels(tmp_path, benchmark, hidden, values):
    write_voc(tmp_path, [VALUES])
    masks = TrainingMasks(voc(tmp_path, benchmark), hidden)
    assert masks.none == len(masks.class_groups) == 20 - len(hidden)
    assert [group[0] for group in masks.class_groups] == [
        group[0] for group in voc(tmp_path, benchmark).class_groups if group[0] not in hidden
    ]
    image, labels = masks.crop(0, 4, masks_config(), generator(0))
    assert image.shape == (3, 4, 4) and labels.shape == (4, 4) and image.dtype == labels.dtype == torch.uint8
    assert torch.equal(labels, expected_labels(VALUES, benchmark == "voc21", values))


def test_hidden_class_that_is_unknown(tmp_path):
    write_voc(tmp_path, [VALUES])
    said = refused(lambda: TrainingMasks(voc(tmp_path), ["cat", "diningtable"]), "masks.hidden", "voc20", "diningtable")
    assert "did you mean dining table" in said


def scenes(root: Path, classes: str, **changes):
    """A folder with classes of its own."""
    write_pairs(root / "images" / "val", root / "annotations" / "val", {"a": np.zeros((4, 4), np.uint8)})
    (root / "classes.txt").write_text(classes, encoding="utf-8")
    return voc(root, "scenes", **changes)


def test_every_class_hidden(tmp_path):
    benchmark = scenes(tmp_path, "cat, kitten\ndog\n")
    assert TrainingMasks(benchmark, ["dog"]).class_groups == (("cat", "kitten"),)
    refused(lambda: TrainingMasks(benchmark, ["dog", "cat"]), "masks.hidden", "no class")
    refused(lambda: TrainingMasks(benchmark, ["kitten"]), "masks.hidden", "'kitten'", "known: cat, dog")


def test_classes_that_do_not_fit_a_mask(tmp_path):
    rule = {"background": {"kind": "threshold", "threshold": 0.5}}
    masks = TrainingMasks(scenes(tmp_path, "".join(f"class {i}\n" for i in range(254)), **rule))
    values = np.array([[0, 1], [254, 255]], np.uint8)
    write_pairs(tmp_path / "images" / "val", tmp_path / "annotations" / "val", {"a": values})
    assert masks.crop(0, 2, masks_config(), generator(0))[1].tolist() == [[254, 0], [253, 255]]
    many = scenes(tmp_path, "".join(f"class {i}\n" for i in range(255)))
    refused(lambda: TrainingMasks(many), "scenes", "255 classes", "254")


def covered_pixels(length: int, short: int, scale: float, size: int) -> int:
    """Of a crop's side, by a photo's side of this length."""
    return min(size, max(1, round(length * scale * size / short)))


def covered_part(image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rectangle of a crop that its photo covers; the rest is grey and does not count."""
    beyond = (image == GREY).all(dim=0)
    assert (labels[beyond] == IGNORE).all()
    places = (~beyond).nonzero()
    (top, left), (bottom, right) = places.amin(dim=0).tolist(), (places.amax(dim=0) + 1).tolist()
    assert len(places) == (bottom - top) * (right - left)
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


@pytest.mark.parametrize("scales", [(0.3, 0.3), (0.8, 0.8), (1.0, 1.0), (1.7, 1.7), (0.4, 2.0)])
@pytest.mark.parametrize("size", [(48, 48), (90, 40), (40, 80)])
def test_colours_tell_the_labels(tmp_path, size, scales):
    write_voc(tmp_path, [blocks(*size)], ".png")
    masks = TrainingMasks(voc(tmp_path, "voc21", image_suffix=".png"), ["bird"])
    config = masks_config(scales=scales, flip=True)
    expected = expected_labels(np.arange(21)[None], True, (3,))[0]
    compared = set()
    for seed in range(8):
        image, labels = covered_part(*masks.crop(0, 48, config, generator(seed)))
        inside = uniform(labels, math.ceil(2 * max(1, 48 * scales[1] / min(size))) + 1, 48)
        assert torch.equal(labels[inside], expected[told(image)[inside]])
        compared |= set(labels[inside].tolist())
    assert len(compared) > 1


@pytest.mark.parametrize("scale", [0.005, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("size", [(48, 48), (90, 40), (37, 81), (20, 20), (200, 3), (2, 150), (400, 1), (1, 1)])
def test_part_of_a_crop_that_its_photo_covers(tmp_path, size, scale):
    write_voc(tmp_path, [blocks(*size)], ".png")
    masks = TrainingMasks(voc(tmp_path, "voc21", image_suffix=".png"))
    for seed in range(4):
        crop = masks.crop(0, 48, masks_config(scales=(scale, scale), flip=True), generator(seed))
        assert crop[0].shape == (3, 48, 48) and crop[1].shape == (48, 48)
        labels = covered_part(*crop)[1]
        assert list(labels.shape) == [covered_pixels(length, min(size), scale, 48) for length in size[::-1]]
        assert (labels != IGNORE).all()


@pytest.mark.parametrize("scale", [0.5, 0.9, 1.0, 1.3, 2.0, 3.1])
@pytest.mark.parametrize(("size", "side"), [((70, 48), 8), ((48, 90), 8), ((16, 20), 2), ((200, 4), 1)])
def test_edges_are_where_labels_change(tmp_path, size, side, scale):
    """Photo and mask are resampled about the same centres: a shift of a pixel would be seen."""
    squares = np.indices(size[::-1]) // side
    write_voc(tmp_path, [20 * (squares.sum(axis=0) % 2)], ".png")
    masks = TrainingMasks(voc(tmp_path, "voc21", image_suffix=".png"))
    for seed in range(6):
        crop = masks.crop(0, 48, masks_config(scales=(scale, scale), flip=True), generator(seed))
        image, labels = covered_part(*crop)
        assert set(labels.flatten().tolist()) == {19, 20}
        height = image[0].int() - 120  # over halfway between the two reds
        clear = height.abs() > 12
        assert torch.equal(height[clear] > 0, (labels == 19)[clear])
        assert clear.double().mean() > 0.5


def test_scale_of_one_is_the_photo_itself(tmp_path):
    """A window of it at any place, mirrored or not, pixel for pixel."""
    mask = np.arange(10 * 14, dtype=np.uint8).reshape(10, 14) % 21
    write_voc(tmp_path, [mask], ".png")
    masks = TrainingMasks(voc(tmp_path, "voc21", image_suffix=".png"))
    photo = torch.from_numpy(np.array(coloured(mask))).permute(2, 0, 1)
    expected = expected_labels(mask, True, ())
    windows = {}
    for across in range(5):
        for flipped in (False, True):
            part = (..., slice(across, across + 10))
            pair = (photo[part].flip(-1), expected[part].flip(-1)) if flipped else (photo[part], expected[part])
            windows[across, flipped] = pair
    found = Counter()
    for seed in range(300):
        image, labels = masks.crop(0, 10, masks_config(flip=True), generator(seed))
        (place,) = (key for key, pair in windows.items() if torch.equal(image, pair[0]))
        assert torch.equal(labels, windows[place][1])
        found[place] += 1
    assert set(found) == set(windows) and min(found.values()) > 12  # 30 each
    unflipped = [masks.crop(0, 10, masks_config(), generator(seed))[0] for seed in range(30)]
    assert all(any(torch.equal(image, windows[across, False][0]) for across in range(5)) for image in unflipped)


def test_window_may_start_between_two_pixels_of_the_photo(tmp_path):
    write_voc(tmp_path, [np.arange(1, 7, dtype=np.uint8)[None].repeat(4, axis=0)])
    masks, config = TrainingMasks(voc(tmp_path)), masks_config(scales=(2.0, 2.0))
    rows = Counter(tuple(masks.crop(0, 4, config, generator(seed))[1][0].tolist()) for seed in range(300))
    assert set(rows) == {tuple((start + place) // 2 for place in range(4)) for start in range(9)}
    assert min(rows.values()) > 12  # 33 each


def test_small_photo_lies_anywhere_in_its_crop(tmp_path):
    write_voc(tmp_path, [np.full((8, 8), 5, np.uint8)])
    masks = TrainingMasks(voc(tmp_path))
    corners = set()
    for seed in range(300):
        labels = masks.crop(0, 4, masks_config(scales=(0.5, 0.5)), generator(seed))[1]
        places = (labels != IGNORE).nonzero()
        assert len(places) == 4 and (labels[tuple(places.T)] == 4).all()
        corners.add(tuple(places[0].tolist()))
    assert corners == {(row, column) for row in range(3) for column in range(3)}


def test_scales_are_drawn_from_the_whole_range(tmp_path):
    write_voc(tmp_path, [np.full((10, 10), 1, np.uint8)])
    masks = TrainingMasks(voc(tmp_path))
    config = masks_config(scales=(0.2, 0.9))
    crops = [masks.crop(0, 20, config, generator(seed))[1] for seed in range(300)]
    sides = Counter(math.isqrt(int((labels != IGNORE).sum())) for labels in crops)
    assert set(sides) == set(range(4, 19))
    assert all(sides[side] > 5 for side in range(5, 18))  # 21 each, half as many at both ends


def make_data(root: Path, world: tuple[int, int] = (0, 1), monkeypatch=None, epoch: int = 0, seed: int = 0, **changes):
    """Data of rank `world[0]` of `world[1]`; the folder has been written."""
    if monkeypatch is not None:
        monkeypatch.setattr("simzss.training.data.masks.rank", lambda: world[0])
        monkeypatch.setattr("simzss.training.data.masks.world_size", lambda: world[1])
    config = masks_config(root, **{"scales": (0.5, 2.0), "flip": True} | changes)
    data = MaskData(TrainingMasks(voc(root, image_suffix=".png")), SIZE, config, seed)
    data.trainer = SimpleNamespace(current_epoch=epoch)
    return data


def epoch_of(*args, **kwargs) -> list[MaskBatch]:
    return list(make_data(*args, **kwargs).train_dataloader())


def crops_of(batches: list[MaskBatch]) -> list[bytes]:
    pairs = [pair for batch in batches for pair in zip(batch.images, batch.labels, strict=True)]
    return [image.numpy().tobytes() + labels.numpy().tobytes() for image, labels in pairs]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Ten photos of noise and random labels."""
    root = tmp_path_factory.mktemp("plain")
    write_voc(root, [blocks(20 + seed, 24, seed, side=3, labels=range(1, 21)) for seed in range(10)], ".png")
    return root


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> Path:
    """Five photos, each all of another class."""
    root = tmp_path_factory.mktemp("numbered")
    write_voc(root, [np.full((20, 20), value, np.uint8) for value in range(1, 6)], ".png")
    return root


def test_batches_are_of_one_size(plain):
    batches = epoch_of(plain)
    assert len(batches) == 3
    for batch in batches:
        assert batch.images.shape == (4, 3, SIZE, SIZE) and batch.labels.shape == (4, SIZE, SIZE)
        assert batch.images.dtype == batch.labels.dtype == torch.uint8
    assert len(set(crops_of(batches))) == 12


def test_same_seed_and_epoch_give_the_same_crops(plain):
    assert crops_of(epoch_of(plain, epoch=1, seed=2)) == crops_of(epoch_of(plain, epoch=1, seed=2))
    kinds = [epoch_of(plain, epoch=epoch, seed=seed) for epoch, seed in ((1, 2), (2, 2), (1, 3), (2, 1))]
    assert len({crop for batches in kinds for crop in crops_of(batches)}) == 48


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_epoch_after_another(plain, num_workers):
    """The loader is asked for anew, and sees the epoch that its trainer is in, as do workers that stay."""
    data = make_data(plain, num_workers=num_workers)
    first = crops_of(list(data.train_dataloader()))
    data.trainer.current_epoch = 1
    assert crops_of(list(data.train_dataloader())) == crops_of(epoch_of(plain, epoch=1)) != first


@pytest.mark.parametrize("num_workers", [1, 2])
def test_crops_do_not_depend_on_the_number_of_workers(plain, num_workers):
    assert crops_of(epoch_of(plain, num_workers=num_workers)) == crops_of(epoch_of(plain))


@pytest.mark.parametrize("world", [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(plain, world, monkeypatch):
    whole = epoch_of(plain)
    ranks = [epoch_of(plain, (rank, world), monkeypatch) for rank in range(world)]
    assert all(len(batches) == len(whole) for batches in ranks)
    for batch, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert all(len(part.images) == 4 // world for part in parts)
        assert sorted(crops_of(parts)) == sorted(crops_of([batch]))


@pytest.mark.parametrize(("batch_size", "crops"), [(1, 5), (2, 6), (4, 8), (5, 5), (6, 6), (12, 12)])
def test_every_photo_once_an_epoch_and_the_last_batch_filled_up(numbered, batch_size, crops):
    orders = []
    for epoch in range(3):
        batches = epoch_of(numbered, epoch=epoch, batch_size=batch_size)
        assert [len(batch.labels) for batch in batches] == [batch_size] * (crops // batch_size)
        seen = [int(labels[labels != IGNORE].unique()) for batch in batches for labels in batch.labels]
        assert len(seen) == crops
        assert sorted(seen[:5]) == [0, 1, 2, 3, 4]
        counts = Counter(seen)
        assert max(counts.values()) - min(counts.values()) <= 1
        orders.append(seen)
    assert len(set(map(tuple, orders))) > 1


def test_photo_that_is_there_twice_is_cropped_twice(plain):
    batches = epoch_of(plain, batch_size=16)
    assert len(crops_of(batches)) == 16 == len(set(crops_of(batches)))


def test_batch_on_its_device(plain):
    data = make_data(plain)
    batch = next(iter(data.train_dataloader()))
    assert data.on_before_batch_transfer(batch, 0) is batch
    moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert torch.equal(moved.images, batch.images) and torch.equal(moved.labels, batch.labels)
    away = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert away.images.device.type == away.labels.device.type == "meta"


@pytest.mark.parametrize("world", [3, 8])
def test_batch_that_does_not_divide_by_the_processes(plain, world, monkeypatch):
    data = make_data(plain, (0, world), monkeypatch)
    refused(lambda: data.local_batch_size, "masks.batch_size=4", f"{world} processes")
    refused(data.train_dataloader, "masks.batch_size=4")


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
    parts = {"label": ("label 33", "20 classes of voc20"), "photo": ("cannot be read",), "size": ("(7, 8)", "(8, 8)")}
    refused(lambda: data.on_before_batch_transfer(batch, 0), str(path), *parts[wrong])
    data.teardown("fit")  # workers that end with other garbage take five seconds


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *[({"held_out": value}, f"masks.held_out={value}") for value in (-0.1, 1.0, math.nan)],
        *[({"batch_size": value}, f"masks.batch_size={value}") for value in (0, -4)],
        ({"num_workers": -1}, "masks.num_workers=-1"),
        ({"photos": 0}, "masks.photos=0"),
        *[
            ({"scales": value}, f"masks.scales={list(value)}")
            for value in ((0.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0,), (1.0, 1.0, 1.0), (), (1.0, math.inf))
        ],
        ({"scales": (math.nan, 1.0)}, "masks.scales="),
        ({"scales": (1.0, math.nan)}, "masks.scales="),
    ],
)
def test_bad_values(changes, says):
    refused(lambda: masks_config(**changes), says, "must be")


def test_masks_as_configured(tmp_path):
    names = write_voc(tmp_path / "VOC2012", [VALUES] * 10)
    masks, held_out = build_masks(masks_config(tmp_path, held_out=0.3, photos=4, hidden=("cat",)), seed=5)
    trained, expected = divide(names, 0.3, 5)
    assert held_out == expected and masks.benchmark.names == trained[:4]
    assert len(masks.class_groups) == 19 and ("cat",) not in masks.class_groups
    assert len(build_masks(masks_config(tmp_path, photos=99), seed=0)[0].benchmark) == 10


def test_folders_in_place_of_the_benchmark_s(tmp_path):
    """Their names come from the folders, not from the benchmark's split, unless a split is given."""
    measured = write_voc(tmp_path, [VALUES] * 2)
    own = {f"train {i}": np.full((4, 4), i + 1, np.uint8) for i in range(3)}
    write_pairs(tmp_path / "photos", tmp_path / "labels", own)
    folders = {"images": "photos", "masks": "labels"}
    masks, _ = build_masks(masks_config(tmp_path, **folders), seed=0)
    assert masks.benchmark.names == list(own)
    assert masks.crop(2, 4, masks_config(), generator(0))[1].unique().tolist() == [2]
    (tmp_path / "some.txt").write_text("train 2\ntrain 0\n", encoding="utf-8")
    some, _ = build_masks(masks_config(tmp_path, **folders, split="some.txt"), seed=0)
    assert some.benchmark.names == ["train 2", "train 0"]
    write_pairs(tmp_path / "copies", tmp_path / "more", dict.fromkeys([*measured, "other"], VALUES))
    more, _ = build_masks(masks_config(tmp_path, masks="more"), seed=0)
    assert more.benchmark.names == measured
    assert more.benchmark.mask_path(measured[0]) == tmp_path / "more" / f"{measured[0]}.png"


def test_written_split_is_read_from_outside_the_root(tmp_path):
    names = write_voc(tmp_path / "voc", [VALUES] * 3)
    for name in names[:2]:
        for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
            path = tmp_path / "voc" / folder / f"{name}{suffix}"
            path.rename(path.with_name(f"my é {name}{suffix}"))
    names = [f"my é {names[0]}", f"my é {names[1]}", names[2]]
    write_split(tmp_path / "out" / "run", names[::-1], names[1:])
    assert voc(tmp_path / "voc", split=str(tmp_path / "out" / "run" / "train.txt")).names == names[::-1]
    assert voc(tmp_path / "voc", split=str(tmp_path / "out" / "run" / "held_out.txt")).names == names[1:]
    held_out = masks_config(tmp_path / "voc", split=str(tmp_path / "out" / "run" / "held_out.txt"))
    assert build_masks(held_out, seed=0)[0].benchmark.names == names[1:]


def test_split_of_nothing_held_out(tmp_path):
    write_split(tmp_path, ["a"], [])
    assert (tmp_path / "held_out.txt").read_text(encoding="utf-8") == ""
    assert (tmp_path / "train.txt").read_text(encoding="utf-8") == "a\n"


def test_split_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    refused(lambda: write_split(tmp_path / "file" / "run", ["a"], []), f"output_dir={tmp_path}/file/run")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"root": "gone"}, ("masks.root=gone", "no folder")),
        ({"benchmark": "ade20k"}, ("masks.root=", "ade20k", "annotations/validation")),
        ({"masks": "nowhere"}, ("masks.root=", "nowhere")),
        ({"images": "nowhere"}, ("masks.root=", "nowhere")),
        ({"split": "gone.txt"}, ("split", "gone.txt", "does not exist")),
        ({"split": "/gone/train.txt"}, ("split", "/gone/train.txt", "does not exist")),
        ({"benchmark": "retrieval"}, ("masks.benchmark=retrieval", "no segmentation set")),
        ({"benchmark": "classification"}, ("masks.benchmark=classification", "no segmentation set")),
        ({"benchmark": "all"}, ("masks.benchmark=all", "no segmentation set")),
        ({"benchmark": "vok20"}, ("masks.benchmark=vok20", "did you mean voc20")),
        ({"hidden": ("kat",)}, ("masks.hidden", "'kat'", "did you mean cat")),
        ({"held_out": 0.9}, ("masks.held_out=0.9", "none of 2 photos")),
    ],
)
def test_what_cannot_be_trained_on(tmp_path, changes, parts):
    write_voc(tmp_path, [VALUES] * 2)
    refused(lambda: build_masks(masks_config(**{"root": tmp_path} | changes), seed=0), *parts)


def test_class_names_that_are_repeated(tmp_path):
    with pytest.raises(InputError, match=r"classes\.txt:3: 'cat' is listed twice"):
        scenes(tmp_path, "cat\ndog\ncat\n")
    settings = masks_config(tmp_path, benchmark="scenes")
    refused(lambda: build_masks(settings, seed=0), str(tmp_path / "classes.txt"), "'cat' is listed twice")
    refused(lambda: checked_names((("cat",), ("dog",), ("cat", "kitten")), Background()), "'cat' is listed twice")
    refused(lambda: checked_names((("sea  horse",), ("sea horse",)), Background()), "'sea horse' is listed twice")
    assert checked_names((("background",), ("dog",)), Background()) == [("background",), ("dog",)]
