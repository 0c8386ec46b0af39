import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

import simzss.evaluation.vectors as vectors_module
from simzss.data.settings import RetrievalSettings
from simzss.evaluation.retrieval import RECALLS, read_captioned_images, recalls, retrieve
from simzss.evaluation.vectors import image_vectors, ranks
from simzss.models.simzss import SimZSS
from tests.support.evaluating import scene
from tests.support.files import write_coco_json
from tests.support.models import encode_alone, make_backbone, make_scratch, refused, scratch_model, shaken
from tests.support.processes import on_two_processes

CPU = torch.device("cpu")
WORDS = ("cat", "dog", "tree", "car", "boat", "sky", "red", "green", "two", "old")
BROKEN = "03.png"


def sentences(seed: int, count: int) -> list[str]:
    random = np.random.default_rng(1000 + seed)
    return [" ".join(random.choice(WORDS, 4)) for _ in range(count)]


def write_set(folder: Path, count: int = 13, broken: str | None = None) -> RetrievalSettings:
    """Images with one to four captions each; the last image shares one with the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir()
    captions = {f"{i:02d}.png": sentences(i, 1 + i % 4) for i in range(count)}
    for i, name in enumerate(captions):
        scene(i).save(folder / "images" / name)
    captions[f"{count - 1:02d}.png"].append(captions["00.png"][0])
    if broken is not None:
        (folder / "images" / broken).write_bytes(b"no image")
    path = write_coco_json(folder / "captions.json", captions)
    return RetrievalSettings(name="tiny", root=str(folder / "images"), captions=str(path))


def run(config: RetrievalSettings, model: SimZSS | None = None, **options) -> dict:
    settings = {"batch_size": 4, "num_workers": 0} | options
    return retrieve(model or scratch_model(), config, "32-true", CPU, **settings).plain()


def first_own(similarity: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Place of each row's first own column when the row is sorted, own columns after the others that are equal."""
    places = []
    for scores, mine in zip(similarity, own, strict=True):
        order = np.lexsort((mine, -scores))
        places.append(1 + int(np.flatnonzero(mine[order])[0]))
    return np.array(places)


def image_by_hand(model: SimZSS, path: Path) -> np.ndarray:
    pixels = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
    squashed = v2.functional.resize(pixels, [64, 64], interpolation=InterpolationMode.BICUBIC)
    norm = model.feature_norm
    vector = model.backbone(squashed[None]).cls[0].double().numpy() - norm.cls_mean.double().numpy()
    return vector / np.linalg.norm(vector)


def text_by_hand(model: SimZSS, text: str) -> np.ndarray:
    vector = encode_alone(model.text_encoder, text)[1].pooled[0].double().numpy()
    return vector / np.linalg.norm(vector)


def by_numpy(config: RetrievalSettings, model: SimZSS, leave_out: tuple[str, ...] = ()) -> dict:
    """Both recalls, each image and each distinct caption encoded alone."""
    content = json.loads(Path(config.captions).read_text())
    records = [image for image in content["images"] if image["file_name"] not in leave_out]
    ids = [image["id"] for image in records]
    kept = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    images = np.stack([image_by_hand(model, Path(config.root) / image["file_name"]) for image in records])
    vectors = {text: text_by_hand(model, text) for text in {entry["caption"] for entry in kept}}
    texts = np.stack([vectors[entry["caption"]] for entry in kept])
    own = np.array([[entry["image_id"] == image_id for entry in kept] for image_id in ids])
    similarity = (images[:, None] * texts).sum(axis=-1)  # not a matrix product, which adds equal columns differently
    places = {"image_to_text": first_own(similarity, own), "text_to_image": first_own(similarity.T, own.T)}
    found = {key: {f"R@{k}": 100 * (place <= k).mean() for k in RECALLS} for key, place in places.items()}
    return found | {"images": len(images), "captions": len(texts)}


def assert_same(found: dict, expected: dict) -> None:
    for key in ("image_to_text", "text_to_image"):
        assert found[key] == pytest.approx(expected[key]), key
    assert (found["images"], found["captions"]) == (expected["images"], expected["captions"])


# Ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("cells", [1, 90, 2**23])
def test_ranks_against_a_sort(seed, cells, monkeypatch):
    """Vectors of few values, so that many cosines are equal and NumPy's are exact."""
    monkeypatch.setattr(vectors_module, "_CELLS", cells)
    random = np.random.default_rng(seed)
    queries, gallery = random.integers(-2, 3, (20, 4)) / 4, random.integers(-2, 3, (31, 4)) / 4
    owners = random.permutation(20) if seed % 2 else random.integers(0, 5, 20)
    gallery_owners = np.concatenate([np.arange(20), random.integers(0, 20, 11)])
    similarity, own = queries @ gallery.T, owners[:, None] == gallery_owners
    arrays = (queries, owners, gallery, gallery_owners)
    found = ranks(*(torch.from_numpy(array) for array in arrays))
    np.testing.assert_array_equal(found.numpy(), first_own(similarity, own))
    ties = (similarity == np.where(own, similarity, -np.inf).max(axis=1, keepdims=True)) & ~own
    assert ties.sum() > 10


@pytest.mark.parametrize(("count", "rows"), [(1001, 1), (37, 1), (500, 7)])
def test_equal_vectors_tie_whatever_code_multiplies_them(count, rows):
    generator = torch.Generator().manual_seed(0)
    query, entry = torch.nn.functional.normalize(torch.randn(2, 768, generator=generator), dim=-1)
    owners = torch.arange(rows) * 3
    found = ranks(query.repeat(rows, 1), owners, entry.repeat(count, 1), torch.arange(count))
    assert found.tolist() == [count] * rows


UP, NOTHING = [0.0, 1.0, 0.0], [float("nan")] * 3
SAME = [[1.0, 0.0, 0.0]] * 3 + [UP]
EYE = torch.eye(3).tolist()


@pytest.mark.parametrize(
    ("query", "owner", "gallery", "owners", "rank"),
    [
        (SAME[0], 7, SAME, [7, 7, 7, 1], 1),  # equal entries of its own do not count against it
        (SAME[0], 7, SAME, [7, 7, 1, 1], 2),
        (UP, 1, EYE, [0, 1, 2], 1),
        (NOTHING, 1, EYE, [0, 1, 2], 3),  # vectors that are no numbers come last
        (UP, 1, [EYE[0], NOTHING, EYE[2]], [0, 1, 2], 3),
        (UP, 5, EYE, [0, 1, 2], 4),  # a query without an entry
    ],
)
def test_rank_of_one_query(query, owner, gallery, owners, rank):
    arguments = (torch.tensor([query]), torch.tensor([owner]), torch.tensor(gallery), torch.tensor(owners))
    assert ranks(*arguments).tolist() == [rank]
    assert ranks(torch.empty(0, 3), torch.empty(0, dtype=torch.long), *arguments[2:]).tolist() == []


def test_recalls():
    found = recalls(torch.tensor([1, 5, 6, 10, 11, 1, 2, 300]))
    assert found == {"R@1": 25.0, "R@5": 50.0, "R@10": 75.0}


# A set ------------------------------------------------------------------------------------------------------------


def test_against_numpy(tmp_path):
    config = write_set(tmp_path)
    found = run(config)
    assert_same(found, by_numpy(config, scratch_model()))
    assert found["kind"] == "retrieval" and found["skipped"] == []
    assert 0 < found["text_to_image"]["R@5"] < found["text_to_image"]["R@10"] < 100
    assert 0 < found["image_to_text"]["R@5"] < found["image_to_text"]["R@10"]
    assert json.loads(json.dumps(found)) == found
    protocol = {"image_size": 64, "precision": "32-true", "limit": None, "readout": "sentence"}
    assert found["protocol"].items() >= protocol.items()


def test_class_tokens_are_centred_as_in_training(tmp_path):
    config = write_set(tmp_path)
    model = SimZSS(make_backbone(), make_scratch(), "center")
    shaken(model.backbone.model)
    names = read_captioned_images(config).names
    plain = image_vectors(model, Path(config.root), names, device=CPU, batch_size=5, num_workers=0).vectors
    model.feature_norm.cls_mean.copy_(model.backbone(torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)).cls[0])
    found = image_vectors(model, Path(config.root), names, device=CPU, batch_size=5, num_workers=0)
    expected = np.stack([image_by_hand(model, Path(config.root) / name) for name in names])
    np.testing.assert_allclose(found.vectors.numpy(), expected, rtol=0, atol=1e-5)
    assert (found.vectors - plain).abs().max() > 0.1
    assert found.index.tolist() == list(range(len(names)))
    assert_same(run(config, model), by_numpy(config, model))


def test_workers_and_batches_change_nothing(tmp_path):
    config = write_set(tmp_path, broken=BROKEN)
    expected = run(config)
    assert run(config, num_workers=2) == expected
    assert run(config, batch_size=1) == expected
    assert run(config, batch_size=1000) == expected


def test_limit_takes_the_first_images(tmp_path):
    config = write_set(tmp_path / "all")
    (tmp_path / "few").mkdir()
    captions = json.loads(Path(config.captions).read_text())
    captions["images"] = captions["images"][:5]
    captions["annotations"] = [entry for entry in captions["annotations"] if entry["image_id"] < 105]
    few = tmp_path / "few" / "captions.json"
    few.write_text(json.dumps(captions))
    expected = run(config.replace(captions=str(few)))
    (Path(config.root) / "12.png").unlink()  # a file beyond the limit
    found = run(config.replace(limit=5))
    assert found["images"] == 5
    assert found | {"protocol": None} == expected | {"protocol": None}


def test_unreadable_images_leave_with_their_captions(tmp_path, caplog):
    config = write_set(tmp_path, broken=BROKEN)
    with caplog.at_level(logging.WARNING):
        found = run(config)
    assert found["skipped"] == [{"name": BROKEN, "reason": "unreadable image: no known format"}]
    assert "skipped 1 samples" in caplog.text and BROKEN in caplog.text
    assert found["images"] == 12
    assert_same(found, by_numpy(config, scratch_model(), leave_out=(BROKEN,)))


def test_images_without_captions_and_empty_captions_are_listed(tmp_path):
    config = write_set(tmp_path)
    content = json.loads(Path(config.captions).read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 102]
    content["annotations"].append({"image_id": 105, "caption": " \n"})
    Path(config.captions).write_text(json.dumps(content), encoding="utf-8-sig")
    found = run(config)
    assert found["skipped"] == [
        {"name": "02.png", "reason": "no caption"},
        {"name": "05.png", "reason": "a caption is empty"},
    ]
    content["annotations"].pop()
    Path(config.captions).write_text(json.dumps(content))
    assert_same(found, by_numpy(config, scratch_model(), leave_out=("02.png",)))


def test_backbone_is_rounded_for_bf16(tmp_path):
    config = write_set(tmp_path)
    model = SimZSS(make_backbone(), make_scratch())
    found = retrieve(model, config, "bf16-mixed", CPU, batch_size=4, num_workers=0)
    assert next(model.backbone.model.parameters()).dtype == torch.bfloat16
    assert found.protocol["precision"] == "bf16-mixed" and found.images == 13
    refused(lambda: retrieve(model, config, "half", CPU), "precision=half")


def test_two_processes_measure_as_one(tmp_path):
    """Thirteen images of which the second process cannot read one, and one image, of which it gets none."""
    config = write_set(tmp_path, broken=BROKEN)

    def measure():
        return [run(config.replace(limit=limit)) for limit in (None, 1)]

    expected = measure()
    assert [len(result["skipped"]) for result in expected] == [1, 0]
    assert on_two_processes(lambda rank: measure(), tmp_path) == [expected, expected]


# Bad input --------------------------------------------------------------------------------------------------------


def test_missing_folder_and_file(tmp_path):
    config = write_set(tmp_path)
    for key, value in (("root", "/nowhere"), ("captions", "/nowhere.json"), ("captions", config.root)):
        refused(lambda key=key, value=value: run(config.replace(**{key: value})), f"benchmark.{key}={value}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not readable JSON"),
        ("[" * 100000, "not readable JSON"),
        ("[]", "no COCO captions file"),
        ("3", "no COCO captions file"),
        ('{"images": []}', "'annotations'"),
        ('{"images": [{"id": 1}], "annotations": []}', "'file_name'"),
        ('{"images": [{"id": 1, "file_name": 7}], "annotations": []}', "file_name 7"),
        ('{"images": [{"id": [1], "file_name": "a"}], "annotations": []}', "no COCO captions file"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": null}]}', "caption None"),
        ('{"images": [], "annotations": [{"image_id": {}, "caption": "a"}]}', "no COCO captions file"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": "\\ud800"}]}', "ud800' is no text"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}', "the id 1"),
        ('{"images": [], "annotations": []}', "has no caption"),
    ],
)
def test_json_of_another_shape(text, says, tmp_path):
    (tmp_path / "captions.json").write_text(text)
    config = RetrievalSettings(root=str(tmp_path), captions=str(tmp_path / "captions.json"))
    refused(lambda: run(config), f"benchmark.captions={config.captions}", says)


def test_captions_and_images_that_do_not_fit(tmp_path):
    config = write_set(tmp_path)
    content = json.loads(Path(config.captions).read_text())
    stray = {"image_id": 999, "caption": "a dog"}
    Path(config.captions).write_text(json.dumps(content | {"annotations": [*content["annotations"], stray]}))
    refused(lambda: run(config), config.captions, "image_id 999", "1 such captions")
    Path(config.captions).write_text(json.dumps(content))
    for path in Path(config.root).iterdir():
        path.write_bytes(b"")
    refused(lambda: run(config), "none of the 13 images", "00.png", "the file is empty")
    (Path(config.root) / "04.png").unlink()
    refused(lambda: run(config), f"{config.root}/04.png does not exist", "1 of 13")
