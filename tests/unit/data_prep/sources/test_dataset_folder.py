import io
import json
import os
import pickle
import socket
from pathlib import Path

import datasets
import pytest
from PIL import Image

from data_prep.captions.records import RawSample
from data_prep.captions.sources import SourceSettings, open_source, read_task
from simzss.errors import InputError
from tests.support.caption_sources import Reading, save_dataset
from tests.support.files import encode, image_bytes, make_image_folder, picture

FORMS = {"jpg": "jpeg", "png": "png", "webp": "webp", "bmp": "bmp"}


@pytest.fixture(autouse=True)
def neither_network_nor_pickle(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("network or pickle")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)


def read(tmp_path: Path, folder: Path, **more) -> Reading:
    return Reading(SourceSettings(dataset=str(folder), **more), tmp_path / "scratch")


def refused(tmp_path: Path, folder: Path, *parts, **more) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, folder, **more)
    message = str(caught.value)
    assert all(str(part) in message for part in parts), message
    assert "\n" not in message


def test_bytes_are_passed_on_as_they_are(tmp_path):
    cmyk = encode(picture(9).convert("CMYK"), "jpeg")
    stored = [image_bytes(seed, form=form) for seed, form in enumerate(FORMS.values())] + [cmyk, cmyk[:300]]
    folder = save_dataset(
        tmp_path / "set",
        {"image": [{"bytes": data, "path": None} for data in stored], "caption": [f" dog {i}" for i in range(6)]},
    )
    found = read(tmp_path, folder)
    names = [f"{i:09d}.{suffix}" for i, suffix in enumerate([*FORMS, "jpg", "jpg"])]
    assert found.items == [
        RawSample(name, i, (f"dog {i}",), data) for i, (name, data) in enumerate(zip(names, stored, strict=True))
    ]
    assert found.outside == []


def test_names_from_paths(tmp_path):
    images = make_image_folder(tmp_path / "images", ["a.png", "b.jpg"])
    paths = [str(images / "a.png"), str(images / "b.jpg")]
    folder = save_dataset(tmp_path / "set", {"image": paths, "caption": ["a dog", "a cat"]})
    (images / "a.png").unlink()  # saving has put it into the folder
    found = read(tmp_path, folder)
    assert found.captions == {"a.png": ["a dog"], "b.jpg": ["a cat"]}
    assert found.samples[1].data == (images / "b.jpg").read_bytes()


def test_lists_of_captions_and_images_as_plain_bytes(tmp_path):
    columns = {"photo": [image_bytes(0), image_bytes(1)], "texts": [["a dog", "a cat ", ""], []]}
    kinds = {"photo": datasets.Value("binary"), "texts": datasets.List(datasets.Value("string"))}
    folder = save_dataset(tmp_path / "set", columns, **kinds)
    found = read(tmp_path, folder, image_column="photo", caption_column="texts")
    assert found.captions == {"000000000.png": ["a dog", "a cat"]}
    assert found.reasons == {("caption", "000000000.png", "empty caption"), ("image", "000000001.png", "no caption")}


def test_everything_left_out_is_told(tmp_path):
    make_image_folder(tmp_path, ["secret.png"])
    rows = [
        ({"bytes": image_bytes(0), "path": "a.png"}, "a dog"),
        (None, "a dog"),
        ({"bytes": b"", "path": None}, "a dog"),
        ({"bytes": image_bytes(0, form="gif"), "path": "b.gif"}, "a dog"),
        ({"bytes": image_bytes(0), "path": "c.gif"}, "a dog"),
        ({"bytes": b"", "path": "d.jpg"}, "a dog"),
        ({"bytes": image_bytes(0), "path": "e.png"}, None),
        ({"bytes": image_bytes(0), "path": "f.png"}, "  "),
    ]
    folder = save_dataset(tmp_path / "set", {"image": [row[0] for row in rows], "caption": [row[1] for row in rows]})
    found = read(tmp_path, folder)
    # An empty file with a name is for the decoder to judge, as it is in the other layouts.
    assert found.captions == {name: ["a dog"] for name in ("a.png", "c.gif.png", "d.jpg")}
    assert found.reasons == {
        ("image", "row 1", "row without an image"),
        ("image", "row 2", "image is none of jpg, jpeg, png, webp, bmp"),
        ("image", "b.gif", "image is none of jpg, jpeg, png, webp, bmp"),
        ("caption", "e.png", "empty caption"),
        ("image", "e.png", "no caption"),
        ("caption", "f.png", "empty caption"),
        ("image", "f.png", "no caption"),
    }


def test_images_that_are_not_in_the_folder(tmp_path):
    make_image_folder(tmp_path, ["secret.png"])
    paths = ["inside.png", "gone.png", "zero\x00.png", "../secret.png", str(tmp_path / "secret.png")]
    kind = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                              "caption": datasets.Value("string")})  # fmt: skip
    plain = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": path} for path in paths], "caption": ["a dog"] * 5}, kind
    )
    plain.save_to_disk(tmp_path / "set")  # saved as images they would be looked for now
    info = json.loads((tmp_path / "set" / "dataset_info.json").read_text(encoding="utf-8"))
    info["features"]["image"] = {"_type": "Image"}
    (tmp_path / "set" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    make_image_folder(tmp_path / "set", ["inside.png"])
    found = read(tmp_path, tmp_path / "set")
    assert found.captions == {"inside.png": ["a dog"]}
    outside = "path leads out of the images folder"
    assert found.reasons == {
        ("image", "gone.png", "image file missing"),
        ("image", "zero\x00.png", "image file missing"),
        ("image", "../secret.png", outside),
        ("image", str(tmp_path / "secret.png"), outside),
    }


def test_caption_that_is_not_utf8(tmp_path):
    columns = {"image": [{"bytes": image_bytes(i), "path": f"{i}.png"} for i in range(2)], "caption": ["XXXX", "a cat"]}
    folder = save_dataset(tmp_path / "set", columns)
    (arrow,) = folder.glob("*.arrow")
    content = arrow.read_bytes()
    assert content.count(b"XXXX") == 1
    arrow.write_bytes(content.replace(b"XXXX", b"a \xff\xfe"))
    found = read(tmp_path, folder)
    assert found.captions == {"1.png": ["a cat"]}
    assert found.reasons == {("caption", "0.png", "caption is not UTF-8"), ("image", "0.png", "no caption")}


def test_tasks_are_ranges_of_rows(tmp_path):
    images = [{"bytes": image_bytes(i), "path": None} for i in range(5)]
    folder = save_dataset(tmp_path / "set", {"image": images, "caption": [f"dog {i}" for i in range(5)]})
    whole, cut = read(tmp_path, folder), read(tmp_path, folder, samples_per_shard=2)
    assert cut.items == whole.items
    assert (len(whole.source), len(cut.source)) == (1, 3)
    assert [task.name for task in cut.tasks] == [f"{folder}, rows {span}" for span in ("0 to 1", "2 to 3", "4 to 4")]
    assert list(cut.source.tasks()) == cut.tasks
    assert len({task.stamp for task in cut.tasks}) == 3
    assert json.loads(json.dumps([task.payload for task in cut.tasks])) == [task.payload for task in cut.tasks]


def test_splits(tmp_path):
    parts = {}
    for name in ("train", "test"):
        images = [{"bytes": image_bytes(), "path": f"{name}.png"}]
        parts[name] = datasets.load_from_disk(
            save_dataset(tmp_path / name, {"image": images, "caption": [f"a {name}"]})
        )
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    for name in parts:
        assert read(tmp_path, tmp_path / "set", dataset_split=name).captions == {f"{name}.png": [f"a {name}"]}
    refused(tmp_path, tmp_path / "set", "has splits: give dataset_split=NAME; known: train, test")
    refused(tmp_path, tmp_path / "set", "has no split 'trian'; did you mean train?", dataset_split="trian")
    refused(tmp_path, tmp_path / "train", "has no splits: leave out dataset_split=x", dataset_split="x")


def test_changed_folder_is_opened_anew_and_has_another_stamp(tmp_path):
    def stored(caption: str) -> Reading:
        columns = {"image": [{"bytes": image_bytes(), "path": "a.png"}], "caption": [caption]}
        return read(tmp_path, save_dataset(tmp_path / "set", columns))

    before = stored("a dog")
    again = read(tmp_path, tmp_path / "set")
    assert again.tasks == before.tasks
    (arrow,) = (tmp_path / "set").glob("*.arrow")
    os.utime(arrow, ns=(0, 5))
    assert read(tmp_path, tmp_path / "set").tasks[0].stamp != before.tasks[0].stamp
    after = stored("a cat")
    assert after.captions == {"a.png": ["a cat"]}
    assert after.tasks[0].stamp != before.tasks[0].stamp


def test_format_of_the_saved_dataset_is_not_used(tmp_path):
    columns = {"image": [{"bytes": image_bytes(), "path": "a.png"}], "caption": ["a dog"], "n": [1]}
    save_dataset(tmp_path / "one", columns, n=datasets.Value("int64"))
    datasets.load_from_disk(tmp_path / "one").with_format("numpy", columns=["n"]).save_to_disk(tmp_path / "set")
    assert read(tmp_path, tmp_path / "set").captions == {"a.png": ["a dog"]}


def test_huge_image_is_not_looked_into(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (14_000, 14_000)).save(buffer, "png")
    folder = save_dataset(tmp_path / "set", {"image": [{"bytes": buffer.getvalue(), "path": None}], "caption": ["a"]})
    (sample,) = read(tmp_path, folder).items
    assert sample == RawSample("000000000.png", 0, ("a",), buffer.getvalue())


def test_columns(tmp_path):
    columns = {"image": [{"bytes": image_bytes(), "path": "a.png"}], "caption": ["a dog"], "n": [1], "path": ["a.png"]}
    kinds = {"n": datasets.Value("int64"), "path": datasets.Value("string")}
    folder = save_dataset(tmp_path / "set", columns, **kinds)
    refused(tmp_path, folder, f"dataset={folder} has no column 'imag'", "did you mean image", image_column="imag")
    refused(tmp_path, folder, "has no column 'text': give caption_column=NAME", caption_column="text")
    refused(tmp_path, folder, "caption_column=n holds int64, not text", caption_column="n")
    refused(tmp_path, folder, "image_column=n holds int64, not images", image_column="n")
    refused(tmp_path, folder, "image_column=path holds string", "table=FILE", image_column="path")


def test_folders_that_are_refused(tmp_path):
    refused(tmp_path, tmp_path / "gone", f"dataset={tmp_path / 'gone'} is no folder")
    refused(tmp_path, Path("hf://datasets/somebody/photos"), "is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, tmp_path / "empty", f"dataset={tmp_path / 'empty'}", "save_to_disk")
    none = save_dataset(tmp_path / "none", {"image": [], "caption": []})
    refused(tmp_path, none, f"dataset={none}")  # the library writes no file for it
    columns = {"image": [{"bytes": image_bytes(), "path": "a.png"}], "caption": ["a dog"]}
    for number, (name, content) in enumerate(
        [("state.json", b"{}"), ("state.json", b"{"), ("dataset_info.json", b"[]"), ("*.arrow", b"no arrow")]
    ):
        folder = save_dataset(tmp_path / str(number), columns)
        (file,) = folder.glob(name)
        file.write_bytes(content)
        refused(tmp_path, folder, f"dataset={folder} is no dataset that save_to_disk wrote")


def test_folder_that_goes_away(tmp_path):
    columns = {"image": [{"bytes": image_bytes(), "path": "a.png"}], "caption": ["a dog"]}
    folder = save_dataset(tmp_path / "set", columns)
    settings = SourceSettings(dataset=str(folder))
    (task,) = open_source(settings, tmp_path).tasks()
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is no folder"):
        list(read_task(task, settings))
