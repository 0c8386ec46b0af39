"""What strangers' data holds, each kind with its documented outcome (README, "What becomes of odd files")."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import data_prep.captions.program as program
from simzss.concepts.pipeline import ConceptPipeline
from simzss.data.shards import read_shards
from tests.support.files import contents, encode, image_bytes, picture, write_coco_json, write_tar
from tests.support.official_layouts import voc2012
from tests.support.program import exit_code


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """The program on `{file name: (bytes, captions)}`; gives the samples by name and what was left out."""

    def run(photos, *more, code=0):
        images, output = tmp_path / "images", tmp_path / "shards"
        images.mkdir()
        for name, (data, _) in photos.items():
            (images / name).write_bytes(data)
        captions = write_coco_json(tmp_path / "captions.json", {name: texts for name, (_, texts) in photos.items()})
        source = [f"images={images}", f"captions={captions}", f"output={output}", "executor=serial", *more]
        assert exit_code(program.main, source, monkeypatch) == code
        return result(output)

    return run


def result(output):
    samples = {sample.file_name: sample for sample in read_shards(sorted(map(str, output.glob("*.tar"))))}
    listed = output / "skipped.jsonl"
    lines = [json.loads(line) for line in listed.read_text().splitlines()] if listed.exists() else []
    return samples, {(line["kind"], line["name"]): (line["reason"], line["detail"]) for line in lines}


def bomb():
    """A small PNG whose header claims 20,000 x 20,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture(3, (40, 20)).save(buffer, "jpeg", exif=exif)
    return buffer.getvalue()


GOOD = {
    "alpha.png": encode(picture(1).convert("RGBA")),
    "cmyk.jpg": encode(picture(2).convert("CMYK"), "jpeg"),
    "deep.png": encode(Image.fromarray(np.arange(96, dtype=np.uint16).reshape(8, 12) * 600)),
    "rotated.jpg": rotated(),
}


def test_images_of_every_kind_are_kept_as_they_are(prepare):
    samples, left_out = prepare({name: (data, ["a dog"]) for name, data in GOOD.items()})
    assert {name: sample.image for name, sample in samples.items()} == GOOD
    assert left_out == {}


def test_orientation_counts_before_the_size_does(prepare):
    """Sides are those of the upright picture, though neither limit can tell them apart."""
    samples, left_out = prepare(
        {"rotated.jpg": (rotated(), ["a dog"])}, "filters.max_aspect=2.0", "filters.min_side=20"
    )
    assert samples.keys() == {"rotated.jpg"} and left_out == {}


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "unreadable image", "the file is empty"),
        (image_bytes(form="jpeg", size=(200, 200))[:900], "unreadable image", "truncated"),
        (bomb(), "more than 89 megapixels", ""),
    ],
    ids=["zero bytes", "truncated", "bomb"],
)
def test_images_that_are_left_out(prepare, data, reason, detail):
    samples, left_out = prepare({"bad.jpg": (data, ["a dog"]), "good.png": (image_bytes(), ["a cat"])})
    assert samples.keys() == {"good.png"}
    assert left_out.keys() == {("image", "bad.jpg")}
    assert left_out["image", "bad.jpg"][0] == reason and detail in left_out["image", "bad.jpg"][1]


def test_captions_of_every_kind(prepare):
    long = "a dog and " * 999 + "a tiny cat"
    assert len(long) == 10_000
    photos = {
        "long.png": (image_bytes(1), [long]),
        "longer.png": (image_bytes(2), [f"{long}s", "a cow"]),
        "empty.png": (image_bytes(3), ["", "a horse"]),
        "silent.png": (image_bytes(4), [" \n"]),
    }
    samples, left_out = prepare(photos)
    assert {name: [caption.text for caption in sample.captions] for name, sample in samples.items()} == {
        "long.png": [long],
        "longer.png": ["a cow"],
        "empty.png": ["a horse"],
    }
    assert len(samples["long.png"].captions[0].concepts) == 1000
    assert left_out["caption", "longer.png"][0] == "more than 10000 characters"
    assert left_out["caption", "empty.png"][0] == left_out["caption", "silent.png"][0] == "empty caption"
    assert left_out["image", "silent.png"][0] == "no caption"


def test_caption_that_is_not_utf8(tmp_path, monkeypatch):
    members = [("0.png", image_bytes(0)), ("0.txt", b"a caf\xe9"), ("1.png", image_bytes(1)), ("1.txt", b"a cat")]
    tar = write_tar(tmp_path / "in.tar", members)
    output = tmp_path / "shards"
    assert exit_code(program.main, [f"shards={tar}", f"output={output}", "executor=serial"], monkeypatch) == 0
    samples, left_out = result(output)
    assert samples.keys() == {"1.png"}
    assert left_out["caption", "0"][0] == "caption is not UTF-8" and left_out["image", "0"][0] == "no caption"


def test_captions_without_a_concept(prepare):
    photos = {"a.png": (image_bytes(1), ["running fast"]), "b.png": (image_bytes(2), ["running fast", "a dog"])}
    samples, left_out = prepare(photos, "filters.without_concepts=false")
    assert [caption.text for caption in samples["b.png"].captions] == ["running fast", "a dog"]
    assert left_out == {("image", "a.png"): ("no caption with a noun concept", "")}


def test_repeated_images_are_merged_and_near_ones_dropped(prepare):
    smooth = picture(9, (8, 8)).resize((64, 64), Image.Resampling.BICUBIC)
    first, again = encode(smooth), encode(smooth, "jpeg")
    photos = {
        "first.png": (first, ["a dog"]),
        "same.png": (first, ["a dog", "a hound"]),
        "near.jpg": (again, ["a cat"]),
        "other.png": (image_bytes(5, (64, 64)), ["a cow"]),
    }
    samples, left_out = prepare(
        photos, "filters.exact_duplicates=merge", "filters.near_duplicates=4", "samples_per_shard=1"
    )
    assert {name: [caption.text for caption in sample.captions] for name, sample in samples.items()} == {
        "first.png": ["a dog", "a hound"],
        "other.png": ["a cow"],
    }
    copy = f"first copy: {samples['first.png'].key}"
    assert left_out == {
        ("image", "same.png"): ("exact copy of an earlier image, which got its captions", copy),
        ("image", "near.jpg"): ("near copy of an earlier image", copy),
    }


def test_a_filtered_image_is_nobodys_first_copy(prepare):
    """The first of two equal images goes for its caption: the second one stays."""
    data = image_bytes(1)
    photos = {"first.png": (data, ["dog"]), "second.png": (data, ["a big dog"])}
    samples, left_out = prepare(photos, "filters.exact_duplicates=drop", "filters.min_words=2")
    assert samples.keys() == {"second.png"}
    assert left_out["image", "first.png"][0] == "no caption left"


def test_equal_captions_are_parsed_once(prepare, monkeypatch):
    parsed = []
    real = ConceptPipeline.annotate

    def counted(self, captions):
        captions = list(captions)
        parsed.extend(captions)
        return real(self, captions)

    monkeypatch.setattr(ConceptPipeline, "annotate", counted)
    photos = {f"{n}.png": (image_bytes(n), ["a dog", f"{n} cats", "a dog"]) for n in range(300)}
    samples, _ = prepare(photos)
    assert len(parsed) == len(set(parsed)) == 301
    assert all(len(sample.captions) == 3 for sample in samples.values())
    assert {caption.concepts for sample in samples.values() for caption in sample.captions if caption.text == "a dog"}


def test_near_copies_of_evaluation_photos_are_named(prepare, tmp_path):
    root = tmp_path / "sets"
    name = min(voc2012(root))
    (photo,) = root.rglob(f"{name}.jpg")
    copy = encode(Image.open(photo))
    photos = {"copy.png": (copy, ["a dog"]), "own.png": (image_bytes(7, (64, 48)), ["a cat"])}
    samples, left_out = prepare(photos, f"filters.evaluation_root={root}")
    assert samples.keys() == {"own.png"}
    reason, detail = left_out["image", "copy.png"]
    assert reason == "near copy of an evaluation photo" and name in detail and "voc20" in detail


def test_index_counts_everything(prepare, tmp_path):
    photos = {"a.png": (image_bytes(1), ["a dog", ""]), "b.png": (b"", ["a cat"]), "c.png": (b"", ["a cat"])}
    prepare(photos)
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert index["left_out"] == {"images": {"unreadable image": 2}, "captions": {"empty caption": 1}}
    assert "shards" not in str(contents(tmp_path / "shards")["skipped.jsonl"])
