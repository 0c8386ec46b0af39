"""Segmentation sets in miniature, in the exact layouts of their downloads, all drawn here from a seed.

The raw ones are what the programs of `data_prep` read, the finished ones what `simzss eval` reads. Every function
returns the true label maps, name of the image -> (H, W) uint8, found pixel by pixel and without the code under test.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.files import picture

Masks = dict[str, np.ndarray]
Layer = tuple[np.ndarray, int]  # region (H, W) bool, value in the mask
SIZES = ((24, 40), (40, 24), (31, 31), (17, 53), (48, 36), (20, 20), (9, 64), (64, 9), (33, 47), (26, 28), (45, 19),
         (38, 38))  # fmt: skip
"""(height, width) of the images of every set."""


def _table(text: str) -> dict[int, str]:
    """Official id -> official name."""
    return {int(number): name for number, name in (entry.split(" ", 1) for entry in text.split(", "))}


CONTEXT = _table(
    "2 aeroplane, 9 bag, 18 bed, 19 bedclothes, 22 bench, 23 bicycle, 25 bird, 31 boat, 33 book, 34 bottle, "
    "44 building, 45 bus, 46 cabinet, 59 car, 65 cat, 68 ceiling, 72 chair, 80 cloth, 85 computer, 98 cow, 104 cup, "
    "105 curtain, 113 dog, 115 door, 144 fence, 158 floor, 159 flower, 162 food, 187 grass, 189 ground, 207 horse, "
    "220 keyboard, 232 light, 258 motorbike, 259 mountain, 260 mouse, 284 person, 295 plate, 296 platform, "
    "308 pottedplant, 324 road, 326 rock, 347 sheep, 349 shelves, 354 sidewalk, 355 sign, 360 sky, 366 snow, 368 sofa, "
    "397 table, 415 track, 416 train, 420 tree, 424 truck, 427 tvmonitor, 440 wall, 445 water, 454 window, 458 wood"
)
RARE = _table("1 accordion, 41 brick, 459 wool")
"""Classes beyond the 59; the names are real, their ids are not."""

THINGS = _table(
    "1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light, "
    "11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow, "
    "22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, "
    "34 frisbee, 35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, "
    "42 surfboard, 43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, "
    "52 banana, 53 apple, 54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, "
    "62 chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, "
    "76 keyboard, 77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, "
    "86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90 toothbrush"
)
STUFF = [*THINGS, *range(92, 183)]
"""Category ids of COCO-Stuff; place = class index."""

# Label -> (id, train id).
CITYSCAPES = {
    "unlabeled": (0, 255), "ego vehicle": (1, 255), "rectification border": (2, 255), "out of roi": (3, 255),
    "static": (4, 255), "dynamic": (5, 255), "ground": (6, 255), "road": (7, 0), "sidewalk": (8, 1),
    "parking": (9, 255), "rail track": (10, 255), "building": (11, 2), "wall": (12, 3), "fence": (13, 4),
    "guard rail": (14, 255), "bridge": (15, 255), "tunnel": (16, 255), "pole": (17, 5), "polegroup": (18, 255),
    "traffic light": (19, 6), "traffic sign": (20, 7), "vegetation": (21, 8), "terrain": (22, 9), "sky": (23, 10),
    "person": (24, 11), "rider": (25, 12), "car": (26, 13), "truck": (27, 14), "bus": (28, 15), "caravan": (29, 255),
    "trailer": (30, 255), "train": (31, 16), "motorcycle": (32, 17), "bicycle": (33, 18),
}  # fmt: skip


def stored(path: Path) -> np.ndarray:
    """The values of an index mask as stored."""
    with Image.open(path) as image:
        return np.asarray(image)


def voc2012(root: Path, seed: int = 0) -> Masks:
    """Finished: `root`/VOCdevkit/VOC2012 with palette masks, borders of objects 255; returns the split val."""
    rng = np.random.default_rng(seed)
    folder = root / "VOCdevkit" / "VOC2012"
    splits: dict[str, Masks] = {"train": {}, "val": {}}
    for number, size in enumerate((*SIZES, (22, 30), (30, 22))):
        name = f"20{7 + number % 3:02}_{33 + 9 * number:06}"
        objects = [(value + 1, _box(rng, size)) for value in rng.integers(0, 20, 4)]
        labels = np.zeros(size, dtype=np.uint8)
        instances = np.zeros(size, dtype=np.uint8)
        for count, (value, region) in enumerate(objects, start=1):
            labels[region], instances[region] = value, count
        border = np.zeros(size, dtype=bool)
        border[1:] |= instances[1:] != instances[:-1]
        border[:, 1:] |= instances[:, 1:] != instances[:, :-1]
        labels[border] = instances[border] = 255
        _save(picture(number, size[::-1]), folder / "JPEGImages" / f"{name}.jpg")
        for kind, values in (("Class", labels), ("Object", instances)):
            image = Image.fromarray(values)
            image.putpalette(_voc_palette())
            _save(image, folder / f"Segmentation{kind}" / f"{name}.png")
        splits["val" if number < len(SIZES) else "train"][name] = labels
    _save(picture(99), folder / "JPEGImages" / "2012_004331.jpg")  # most photos of the download have no mask
    lists = {**splits, "trainval": splits["train"] | splits["val"]}
    for split, masks in lists.items():
        _write_text(folder / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{n}\n" for n in sorted(masks)))
    return splits["val"]


def ade20k(root: Path, seed: int = 0) -> Masks:
    """Finished: `root`/ADEChallengeData2016, masks 0 (other) and 1 to 150; returns the validation images."""
    rng = np.random.default_rng(seed)
    folder = root / "ADEChallengeData2016"
    splits: dict[str, Masks] = {"training": {}, "validation": {}}
    for split, sizes in (("training", SIZES[:2]), ("validation", SIZES)):
        for number, size in enumerate(sizes, start=1):
            name = f"ADE_{split.removesuffix('ing').removesuffix('idation')}_{number:08}"
            labels = np.zeros(size, dtype=np.uint8)
            for value in rng.integers(0, 151, 6):
                labels[_box(rng, size)] = value
            _save(picture(number, size[::-1]), folder / "images" / split / f"{name}.jpg")
            _save(Image.fromarray(labels), folder / "annotations" / split / f"{name}.png")
            splits[split][name] = labels
    names = [name for masks in splits.values() for name in masks]
    _write_text(folder / "sceneCategories.txt", "".join(f"{name} misc\n" for name in names))
    _write_text(folder / "objectInfo150.txt", "Idx\tRatio\tTrain\tVal\tStuff\tName\n")
    return splits["validation"]


def context(root: Path, seed: int = 0) -> dict[str, Masks]:
    """Raw: `root`/VOCdevkit/VOC2010 with trainval_merged.json; returns the masks of each phase."""
    rng = np.random.default_rng(seed)
    folder = root / "VOCdevkit" / "VOC2010"
    categories = CONTEXT | RARE
    values = {name: value for value, name in enumerate(sorted(CONTEXT.values()), start=1)}
    images: dict[int, dict[str, Any]] = {}
    drawn = []
    for number, size in enumerate((*SIZES, *SIZES[:6])):
        year, serial = 2008 + number % 3, 2 + 7 * number
        image_id, name = year * 1_000_000 + serial, f"{year}_{serial:06}.jpg"
        phase = "test" if number > 15 else ("train", "val", "val")[number % 3]
        images[image_id] = {"file_name": name, "phase": phase, "height": size[0], "width": size[1],
                            "date_captured": "31-May-2015 17:46:52", "image_id": image_id}  # fmt: skip
        _save(picture(number, size[::-1]), folder / "JPEGImages" / name)
        drawn += [(image_id, _region(rng, size)) for _ in range(number % 9 if phase != "test" else 0)]
    annotations = []
    layers: dict[int, list[Layer]] = {image_id: [] for image_id in images}
    # Neither by image nor by id: the order of the file is the order of drawing.
    for number in rng.permutation(len(drawn)).tolist():
        image_id, region = drawn[number]
        category = int(rng.choice(list(categories)))
        counts = run_lengths(region)
        segmentation = {"size": list(region.shape), "counts": counts if number % 5 == 0 else pack(counts)}
        annotations.append(_annotation(number + 1, image_id, category, region, segmentation))
        layers[image_id].append((region, values.get(categories[category], 0)))
    content = {
        "info": {"description": "PASCAL in Detail", "version": "1.0"},
        "images": list(images.values()),
        "annos_segmentation": annotations,
        "annos_occlusion": [{"image_id": image_id, "ne": 0} for image_id in images],
        "annos_boundary": [{"image_id": image_id, "boundary_mask": {}} for image_id in images],
        "annos_joints": [],
        "parts": [],
        "categories": [
            {"category_id": number, "name": name, "supercategory": "object", "onlysemantic": number % 2, "parts": []}
            for number, name in categories.items()
        ],
    }
    _write_text(folder / "trainval_merged.json", json.dumps(content))
    masks: dict[str, Masks] = {"train": {}, "val": {}}
    for image_id, image in images.items():
        if image["phase"] in masks:
            size = (image["height"], image["width"])
            masks[image["phase"]][Path(image["file_name"]).stem] = _see(layers[image_id], size, _place)
    return masks


def coco_object(root: Path, seed: int = 0) -> Masks:
    """Raw: `root` with images/val2017 and annotations/instances_val2017.json (polygons, run lengths, crowds)."""
    rng = np.random.default_rng(seed)
    values = {number: value for value, number in enumerate(THINGS, start=1)}
    images: dict[int, dict[str, Any]] = {}
    drawn = []
    for number, size in enumerate(SIZES):
        image_id = 139 + 4013 * number
        name = f"{image_id:012}.jpg"
        images[image_id] = {"license": 2, "file_name": name, "coco_url": f"http://example.org/{name}",
                            "height": size[0], "width": size[1], "date_captured": "2013-11-21 01:34:01",
                            "flickr_url": "http://example.org", "id": image_id}  # fmt: skip
        _save(picture(number, size[::-1]), root / "images" / "val2017" / name)
        drawn += [(image_id, *_coco_shape(rng, size, kind)) for kind in range(number % 7)]
    # Two of the same size, of which the later one is to be seen.
    drawn += [drawn[-1], drawn[-1]]
    annotations = []
    layers: dict[int, list[Layer]] = {image_id: [] for image_id in images}
    for number in rng.permutation(len(drawn)).tolist():
        image_id, region, segmentation = drawn[number]
        category = int(rng.choice(list(THINGS)))
        crowd = int(isinstance(segmentation, dict))
        annotations.append(_annotation(number + 900_100, image_id, category, region, segmentation, crowd))
        layers[image_id].append((region, values[category]))
    content = {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"url": "http://example.org", "id": 2, "name": "ours"}],
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [{"supercategory": "thing", "id": number, "name": name} for number, name in THINGS.items()],
    }
    _write_text(root / "annotations" / "instances_val2017.json", json.dumps(content))
    return {
        f"{image_id:012}": _see(layers[image_id], (image["height"], image["width"]), _size_and_place)
        for image_id, image in images.items()
    }


def coco_stuff(root: Path, seed: int = 0) -> Masks:
    """Raw: `root` with images/val2017 and stuffthingmaps_trainval2017/{train,val}2017."""
    rng = np.random.default_rng(seed)
    maps = root / "stuffthingmaps_trainval2017"
    masks = {}
    for number, size in enumerate(SIZES):
        name = f"{139 + 4013 * number:012}"
        mask, raw = np.full(size, 255, dtype=np.uint8), np.full(size, 255, dtype=np.uint8)
        for value in (*rng.integers(0, 171, 6), (0, 10, 11, 79, 80, 170)[number % 6]):
            region = _region(rng, size)
            mask[region], raw[region] = value, STUFF[value] - 1
        _save(picture(number, size[::-1]), root / "images" / "val2017" / f"{name}.jpg")
        _save(Image.fromarray(raw), maps / "val2017" / f"{name}.png")
        masks[name] = mask
    _save(Image.fromarray(np.zeros(SIZES[0], dtype=np.uint8)), maps / "train2017" / "000000000009.png")
    return masks


def cityscapes(root: Path, seed: int = 0) -> Masks:
    """Raw: `root` with leftImg8bit and gtFine; three images have polygons without label images. Names: city/image."""
    rng = np.random.default_rng(seed)
    masks = {}
    for number, size in enumerate((*SIZES, SIZES[0])):
        split = "val" if number < len(SIZES) else "train"
        city = ("frankfurt", "lindau", "munster")[number % 3] if split == "val" else "aachen"
        name = f"{city}_{number:06}_000019"
        objects, boxes = _city_objects(rng, size)
        ids, mask = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
        for y, x in np.ndindex(size):
            top = [label for label, (x0, y0, x1, y1) in boxes if x0 <= x <= x1 and y0 <= y <= y1]
            ids[y, x], mask[y, x] = CITYSCAPES[top[-1] if top else "unlabeled"]
        start = root / "gtFine" / split / city / f"{name}_gtFine"
        _save(picture(number, size[::-1]), root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        _save(picture(number, size[::-1]).convert("RGBA"), start.with_name(f"{start.name}_color.png"))
        _save(Image.fromarray(ids.astype(np.uint16) * 1000), start.with_name(f"{start.name}_instanceIds.png"))
        content = {"imgHeight": size[0], "imgWidth": size[1], "objects": objects}
        _write_text(start.with_name(f"{start.name}_polygons.json"), json.dumps(content))
        if number % 4:
            _save(Image.fromarray(ids), start.with_name(f"{start.name}_labelIds.png"))
        if split == "val":
            masks[f"{city}/{name}"] = mask
    return masks


def run_lengths(region: np.ndarray) -> list[int]:
    """Lengths of the runs of 0 and 1 in turn, down the columns, the first of 0."""
    lengths, current = [0], False
    for value in region.T.ravel().tolist():
        if value != current:
            lengths.append(0)
            current = value
        lengths[-1] += 1
    return lengths


def pack(lengths: Sequence[int]) -> str:
    """COCO's text for run lengths."""
    text = ""
    for i, length in enumerate(lengths):
        number, more = length - (lengths[i - 2] if i > 2 else 0), True
        while more:
            digit = number & 31
            number >>= 5
            more = number != (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * more)
    return text


def _see(layers: Sequence[Layer], size: tuple[int, int], rank: Callable[[int, Layer], Any]) -> np.ndarray:
    """What is seen at every pixel: of the layers that hold it the one of highest rank, 0 where there is none."""
    mask = np.zeros(size, dtype=np.uint8)
    for place in np.ndindex(size):
        there = [(rank(number, layer), layer[1]) for number, layer in enumerate(layers) if layer[0][place]]
        if there:
            mask[place] = max(there)[1]
    return mask


def _place(number: int, layer: Layer) -> int:
    return number


def _size_and_place(number: int, layer: Layer) -> tuple[int, int]:
    return -int(layer[0].sum()), number


def _box(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A rectangle (H, W) bool with at least one pixel."""
    (y0, y1), (x0, x1) = (sorted(rng.choice(side + 1, 2, replace=False)) for side in size)
    region = np.zeros(size, dtype=bool)
    region[y0:y1, x0:x1] = True
    return region


def _region(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A rectangle, an ellipse, scattered pixels, or everything (H, W) bool."""
    kind = rng.integers(8)
    if kind < 3:
        return _box(rng, size)
    if kind == 3:
        return rng.random(size) < rng.random()
    if kind == 4:
        return np.ones(size, dtype=bool)
    y, x = (axis / side - rng.random() for axis, side in zip(np.indices(size), size, strict=True))
    return (y**2 + x**2 * rng.uniform(0.3, 3)) < rng.uniform(0.02, 0.3)


def _coco_shape(rng: np.random.Generator, size: tuple[int, int], kind: int) -> tuple[np.ndarray, Any]:
    """A region (H, W) bool and its segmentation: polygons along the edges of pixels, or run lengths."""
    if kind == 2:
        region = _region(rng, size)
        return region, {"counts": run_lengths(region), "size": list(size)}
    if kind == 5:
        region = _region(rng, size)
        return region, {"counts": pack(run_lengths(region)), "size": list(size)}
    region, polygons = np.zeros(size, dtype=bool), []
    for _ in range(1 + kind % 3):
        (y0, y1), (x0, x1) = (sorted(rng.choice(side + 1, 2, replace=False).tolist()) for side in size)
        middle_y, middle_x = (y0 + y1) // 2, (x0 + x1) // 2
        # A rectangle, or one without its lower right quarter.
        corner = [(x1, y1)] if kind == 1 else [(x1, middle_y), (middle_x, middle_y), (middle_x, y1)]
        polygons.append([float(value) for point in ((x0, y0), (x1, y0), *corner, (x0, y1)) for value in point])
        region[y0:middle_y, x0:x1] = region[middle_y:y1, x0 : x1 if kind == 1 else middle_x] = True
    return region, polygons


def _annotation(
    number: int, image_id: int, category: int, region: np.ndarray, segmentation: Any, crowd: int = 0
) -> dict[str, Any]:
    return {"segmentation": segmentation, "area": float(region.sum()), "iscrowd": crowd, "image_id": image_id,
            "bbox": [0.0, 0.0, 1.0, 1.0], "category_id": category, "id": number}  # fmt: skip


def _city_objects(rng: np.random.Generator, size: tuple[int, int]) -> tuple[list[dict], list[tuple[str, tuple]]]:
    """Objects of a polygon file, and what is to be seen of them: label and box with both ends inside."""
    objects, boxes = [], []
    labels = [*rng.choice(list(CITYSCAPES), 7).tolist(), "cargroup", "polegroup", "license plate", "bicyclegroup"]
    for number, label in enumerate(labels):
        # Some reach beyond the image.
        (y0, y1), (x0, x1) = (sorted(rng.choice(side + 4, 2, replace=False).tolist()) for side in size)
        thing: dict[str, Any] = {"label": label, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}
        if number == 3:
            thing["deleted"] = 1
        elif label != "license plate":
            boxes.append((label if label in CITYSCAPES else label.removesuffix("group"), (x0, y0, x1, y1)))
        objects.append(thing)
    return objects, boxes


def _voc_palette() -> list[int]:
    """VOC's colours: the bits of a label, the lowest first, go in turn to red, green and blue, the highest first."""
    return [
        sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
        for label in range(256)
        for channel in range(3)
    ]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
