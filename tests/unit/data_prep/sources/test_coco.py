import json
import os
from pathlib import Path

import pytest

from data_prep.captions.records import RawSample
from data_prep.captions.sources import SourceSettings, open_source, read_task
from simzss.errors import InputError
from tests.support.caption_sources import Reading
from tests.support.files import make_image_folder, write_coco_json

CAPTIONS = {
    "c.jpg": ["A dog on a table.", "two tennis rackets"],
    "a.png": ["Café tables"],
    "b.JPEG": ["a cat", " a cat and a dog \n", "running"],
}
OTHER_SUFFIX = "suffix is none of jpg, jpeg, png, webp, bmp"


@pytest.fixture
def images(tmp_path) -> Path:
    return make_image_folder(tmp_path / "images", CAPTIONS)


def settings(images: Path, captions: Path, **more) -> SourceSettings:
    return SourceSettings(images=str(images), captions=str(captions), **more)


def refused(tmp_path, images, captions, *parts) -> None:
    with pytest.raises(InputError) as caught:
        open_source(settings(images, captions), tmp_path)
    message = str(caught.value)
    assert all(str(part) in message for part in parts), message
    assert "\n" not in message


def write_json(path: Path, images: list, annotations: list, images_first: bool = True) -> Path:
    content = {"info": {"images": 3}, "images": images, "annotations": annotations}
    if not images_first:
        content = dict(reversed(content.items()))
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_samples_in_the_order_of_the_file(tmp_path, images):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    found = Reading(settings(images, captions), tmp_path / "scratch")
    assert found.items == [
        RawSample(name, 100 + i, tuple(text.strip() for text in texts), (images / name).read_bytes())
        for i, (name, texts) in enumerate(CAPTIONS.items())
    ]
    assert found.outside == []


def test_lists_of_the_file_in_any_order(tmp_path, images):
    listed = [{"id": i, "file_name": name} for i, name in enumerate(CAPTIONS)]
    flat = [{"image_id": i, "caption": text} for i, texts in enumerate(CAPTIONS.values()) for text in texts]
    one = write_json(tmp_path / "one.json", listed, flat)
    two = write_json(tmp_path / "two.json", listed, flat[::-1], images_first=False)
    expected = Reading(settings(images, one), tmp_path / "1").captions
    assert expected == {name: [text.strip() for text in texts] for name, texts in CAPTIONS.items()}
    found = Reading(settings(images, two), tmp_path / "2").captions
    assert list(found) == list(expected)
    assert found == {name: texts[::-1] for name, texts in expected.items()}


def test_tasks_cut_the_list_and_two_passes_agree(tmp_path, images):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    whole = Reading(settings(images, captions), tmp_path / "1")
    cut = Reading(settings(images, captions, samples_per_shard=2), tmp_path / "2")
    assert cut.items == whole.items
    assert (len(whole.source), len(cut.source)) == (1, 2)
    assert [task.number for task in cut.tasks] == [0, 1]
    assert [task.name for task in cut.tasks] == [f"{captions}, images 1 to 2", f"{captions}, images 3 to 3"]
    assert list(cut.source.tasks()) == cut.tasks
    assert json.loads(json.dumps([task.payload for task in cut.tasks])) == [task.payload for task in cut.tasks]
    again = Reading(settings(images, captions, samples_per_shard=2), tmp_path / "3")
    assert again.tasks == cut.tasks


def test_task_is_read_from_another_folder(tmp_path, images, monkeypatch):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    monkeypatch.chdir(tmp_path)
    given = settings(Path("images"), Path("captions.json"))
    (task,) = open_source(given, tmp_path).tasks()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    captions.unlink()
    assert [item.name for item in read_task(task, given)] == list(CAPTIONS)


def test_stamp_is_of_the_records_and_the_files(tmp_path, images):
    def stamps(content) -> list[str]:
        captions = write_coco_json(tmp_path / "captions.json", content)
        given = settings(images, captions, samples_per_shard=1)
        return [task.stamp for task in open_source(given, tmp_path / name).tasks()]

    counter = iter("abcdef")
    for folder in "abcdef":
        (tmp_path / folder).mkdir()
    name = next(counter)
    before = stamps(CAPTIONS)
    name = next(counter)
    assert stamps(CAPTIONS) == before and len(set(before)) == 3
    name = next(counter)
    changed = stamps(CAPTIONS | {"a.png": ["A café"]})
    assert [one == other for one, other in zip(before, changed, strict=True)] == [True, False, True]
    stat = (images / "c.jpg").stat()
    os.utime(images / "c.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    (images / "b.JPEG").unlink()
    name = next(counter)
    touched = stamps(CAPTIONS)
    assert [one == other for one, other in zip(before, touched, strict=True)] == [False, True, False]
    (images / "b.JPEG").write_bytes(b"1")
    name = next(counter)
    assert stamps(CAPTIONS)[2] not in (before[2], touched[2])


def test_everything_left_out_is_told(tmp_path, images):
    half = "a dog \ud83d"
    (images / "folder.png").mkdir()
    make_image_folder(images, ["silent.png", "blank.png"])
    listed = [
        {"id": 1, "file_name": "c.jpg"},
        {"id": 2, "file_name": "gone.jpg"},
        {"id": 3, "file_name": "silent.png"},
        {"id": 4, "file_name": "blank.png"},
        {"id": 5, "file_name": "notes.gif"},
        {"id": 1, "file_name": "a.png"},
        {"id": 6, "file_name": "../secret.png"},
        {"id": 7, "file_name": "/secret.png"},
        {"id": 8, "file_name": "folder.png"},
        {"id": 9, "file_name": "\udce9.png"},
        {"id": 10, "file_name": "zero\x00.png"},
        {"id": 11, "file_name": "c.jpg/below.png"},
        {"id": 12, "file_name": ".png"},
        {"id": 13, "file_name": "png"},
        {"id": 14, "file_name": "x/.png"},
        {"id": 15, "file_name": ""},
    ]
    texts = [(1, "a dog"), (1, " \t"), (1, half), (2, "a cow"), (4, " \n"), (99, "a stray"), ("1", "another stray")]
    texts += [(number, "a cow") for number in range(5, 16)]
    annotations = [{"image_id": image_id, "caption": text} for image_id, text in texts]
    found = Reading(settings(images, write_json(tmp_path / "c.json", listed, annotations)), tmp_path / "scratch")
    assert found.captions == {"c.jpg": ["a dog"]}
    assert found.reasons == {
        ("caption", "c.jpg", "empty caption"),
        ("caption", "c.jpg", "caption with half a surrogate pair"),
        ("image", "gone.jpg", "image file missing"),
        ("image", "silent.png", "no caption"),
        ("caption", "blank.png", "empty caption"),
        ("image", "blank.png", "no caption"),
        ("image", "notes.gif", OTHER_SUFFIX),
        ("image", "a.png", "image id listed twice"),
        ("image", "../secret.png", "path leads out of the images folder"),
        ("image", "/secret.png", "path leads out of the images folder"),
        ("image", "folder.png", "image file cannot be read"),
        *(("image", name, OTHER_SUFFIX) for name in (".png", "png", "x/.png", "")),
        ("image", "\udce9.png", "image file missing"),
        ("image", "zero\x00.png", "path holds control characters"),
        ("image", "c.jpg/below.png", "image file missing"),
        ("caption", "image id 99", "caption of an image that is not listed"),
        ("caption", "image id '1'", "caption of an image that is not listed"),
    }
    assert {record.detail for record in found.outside if record.kind == "caption"} == {"a stray", "another stray"}


def test_images_below_folders_of_their_own(tmp_path):
    make_image_folder(tmp_path / "images" / "train", ["a.png"])
    captions = write_coco_json(tmp_path / "captions.json", {"train/a.png": ["a dog"]})
    assert Reading(settings(tmp_path / "images", captions), tmp_path / "s").captions == {"train/a.png": ["a dog"]}


@pytest.mark.parametrize(
    ("written", "read"), [("7", 7), ('"x"', "x"), ("1.0", 1), ("1.5", "1.5"), ("9" * 30, int("9" * 30))]
)
def test_ids(tmp_path, images, written, read):
    captions = tmp_path / "captions.json"
    captions.write_text(
        f'{{"images": [{{"id": {written}, "file_name": "a.png"}}],'
        f' "annotations": [{{"image_id": {written}, "caption": "a dog"}}]}}',
        encoding="utf-8",
    )
    (sample,) = Reading(settings(images, captions), tmp_path / "scratch").samples
    assert (sample.image_id, type(sample.image_id)) == (read, type(read))


@pytest.mark.parametrize("text", ["a dog 😀", 'a "dog"', "a \\ud83d dog", "é", "x" * 10_000, "a\x00b", "a \ude00"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_captions_are_what_json_says(tmp_path, images, text, ascii_only):
    captions = tmp_path / "captions.json"
    records = [{"id": 1, "file_name": "a.png"}], [{"image_id": 1, "caption": text}, {"image_id": 1, "caption": "a"}]
    content = json.dumps({"images": records[0], "annotations": records[1]}, ensure_ascii=ascii_only or "\ude00" in text)
    captions.write_text(content, encoding="utf-8")
    broken = "\ude00" in text
    found = Reading(settings(images, captions), tmp_path / "scratch").captions["a.png"]
    assert found == ["a"] if broken else [text, "a"]


@pytest.mark.parametrize("folder", ["gone", "empty", "notes", "captions.json"])
def test_images_folder_is_missing_or_empty_or_a_file(tmp_path, folder):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    refused(tmp_path, tmp_path / folder, captions, f"images={tmp_path / folder}")


IMAGE = b'{"id": 1, "file_name": "a.png"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable JSON"),
        (b"{broken", "not readable JSON"),
        (b"\xff\xfe{}", "not readable JSON"),
        (b'{"images": [%b], "annotations": [{"image_id": 1, "caption": "\xff"}]}' % IMAGE, "not readable JSON"),
        (b'{"images": [%b], "annotations": [{"image_id": 1, "caption": "\xed\xa0\xbd"}]}' % IMAGE, "not readable JSON"),
        (b'{"images": [%b], "annotations": [{"image_id": 1, "caption": "a dog"}' % IMAGE, "not readable JSON"),
        (b'{"images": [%b], "annotations": [{"image_id": 1, "caption": "a"}]} x' % IMAGE, "not readable JSON"),
        (b"[]", "no COCO captions file"),
        (b"3", "no COCO captions file"),
        (b"null", "no COCO captions file"),
        (b'"text"', "no COCO captions file"),
        (b"{}", "no COCO captions file"),
        (b'{"images": []}', "no COCO captions file"),
        (b'{"images": [], "annotations": []}', "none of the 0 images"),
        (b'{"images": null, "annotations": []}', "no COCO captions file"),
        (b'{"images": {"a.png": 1}, "annotations": []}', "no COCO captions file"),
        (b'{"images": ["a.png"], "annotations": []}', "no COCO captions file"),
        (b'{"images": [%b]}' % IMAGE, "no COCO captions file"),
        (b'{"images": [%b], "annotations": []}' % IMAGE, "none of the 1 images"),
        (b'{"images": [{"id": 1, "filename": "a.png"}], "annotations": []}', "file_name"),
        (b'{"images": [{"id": 1, "file_name": null}], "annotations": []}', "file_name None is no text"),
        (b'{"images": [{"id": [1], "file_name": "a.png"}], "annotations": []}', "id [1] is neither"),
        (b'{"images": [{"id": {}, "file_name": "a.png"}], "annotations": []}', "id {} is neither"),
        (b'{"images": [{"id": true, "file_name": "a.png"}], "annotations": []}', "id True is neither"),
        (b'{"images": [%b], "annotations": [{"image": 1, "caption": "a dog"}]}' % IMAGE, "image_id"),
        (b'{"images": [%b], "annotations": [{"image_id": 1, "text": "a dog"}]}' % IMAGE, "caption"),
        (b'{"images": [%b], "annotations": [{"image_id": 1, "caption": null}]}' % IMAGE, "caption None is no text"),
        (b'{"images": [%b], "annotations": [{"image_id": 1, "caption": ["a"]}]}' % IMAGE, "caption ['a'] is no text"),
        (b'{"images": [%b], "annotations": [{"image_id": 2, "caption": "a dog"}]}' % IMAGE, "none of the 1 images"),
        (b'{"images": [%b], "annotations": [{"image_id": 1, "caption": " "}]}' % IMAGE, "none of the 1 images"),
        (
            b'{"images": [{"id": 1, "file_name": "z.png"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}',
            "none of the 1 images",
        ),
        (b'{"a": ' * 100_000, "captions="),
        (b'{"images": [' + b"[" * 100_000, "captions="),
    ],
)
def test_captions_of_another_shape(tmp_path, images, content, message):
    captions = tmp_path / "captions.json"
    captions.write_bytes(content)
    refused(tmp_path, images, captions, captions, message)


def test_captions_missing_or_a_folder(tmp_path, images):
    refused(tmp_path, images, tmp_path / "gone.json", f"captions={tmp_path / 'gone.json'} does not exist")
    refused(tmp_path, images, images, f"captions={images}")
