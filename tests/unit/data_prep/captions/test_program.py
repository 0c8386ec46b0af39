import errno
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import data_prep.captions.program as program
import data_prep.captions.write as write
from simzss.data.shards import Sample, read_shards
from simzss.errors import InputError
from tests.support.files import contents, image_bytes, make_image_folder, write_coco_json, write_tar
from tests.support.language import pipeline, tiny_pipeline_without_parser
from tests.support.program import ROOT, exit_code

CAPTIONS = {
    "c.jpg": ["A dog on a table.", "two tennis rackets"],
    "a.png": ["Café tables"],
    "b.JPEG": ["a cat", " a cat and a dog \n", "running"],
}


@pytest.fixture
def images(tmp_path) -> Path:
    return make_image_folder(tmp_path / "images", CAPTIONS)


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "work" / "shards"


def run(monkeypatch, **arguments) -> None:
    arguments = {"executor": "serial"} | arguments
    argv = [f"{key}={value}" for key, value in arguments.items()]
    monkeypatch.setattr(sys, "argv", ["captions", *argv])
    program.main()


def refused(monkeypatch, *parts, **arguments) -> None:
    """The program ends on one line that holds every part, and leaves nothing behind."""
    with pytest.raises(InputError) as caught:
        run(monkeypatch, **arguments)
    message = str(caught.value)
    assert all(str(part) in message for part in parts), message
    assert "\n" not in message
    parent = Path(arguments["output"]).parent
    assert not parent.exists() or list(parent.iterdir()) == []


def samples(output: Path) -> list[Sample]:
    found = list(read_shards(sorted(str(path) for path in output.glob("*.tar"))))
    assert all(isinstance(record, Sample) for record in found)
    return found


def index(output: Path) -> dict:
    return json.loads((output / "index.json").read_text(encoding="utf-8"))


def skipped(output: Path) -> dict[str, str]:
    records = [json.loads(line) for line in (output / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    found: dict[str, str] = {}
    for record in records:
        found[record["name"]] = found.get(record["name"], "") + f"{record['reason']} {record['detail']}; "
    return found


def test_coco_captions(tmp_path, images, output, monkeypatch):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    run(monkeypatch, images=images, captions=captions, output=output)
    found = samples(output)
    assert [sample.file_name for sample in found] == list(CAPTIONS)
    assert [sample.image_id for sample in found] == [100, 101, 102]
    assert [sample.suffix for sample in found] == ["jpg", "png", "jpeg"]
    assert [sample.image for sample in found] == [(images / name).read_bytes() for name in CAPTIONS]
    texts = [[caption.text for caption in sample.captions] for sample in found]
    assert texts == [[text.strip() for text in group] for group in CAPTIONS.values()]
    lemmas = [[[concept.lemma for concept in caption.concepts] for caption in sample.captions] for sample in found]
    assert lemmas == [[["dog", "table"], ["tennis racket"]], [["café table"]], [["cat"], ["cat", "dog"], []]]
    assert not (output / "skipped.jsonl").exists()
    assert sorted(path.name for path in output.parent.iterdir()) == ["shards"]


def test_index_totals(tmp_path, images, output, monkeypatch, capsys):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    run(monkeypatch, images=images, captions=captions, output=output, samples_per_shard=2)
    found = index(output)
    shards = found.pop("shards")
    assert found == {
        "format_version": 2,
        "complete": True,
        "pipeline": pipeline().info,
        "evaluation": None,
        "samples": 3,
        "captions": 6,
        "concepts": 7,
        "left_out": {"images": {}, "captions": {}},
        "failed": {},
    }
    paths = sorted(output.glob("*.tar"))
    assert [(shard["name"], shard["samples"], shard["captions"], shard["concepts"]) for shard in shards] == [
        ("shard-000000-000.tar", 2, 3, 4),
        ("shard-000001-000.tar", 1, 3, 3),
    ]
    assert [path.name for path in paths] == [shard["name"] for shard in shards]
    assert [path.stat().st_size for path in paths] == [shard["bytes"] for shard in shards]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths] == [shard["sha256"] for shard in shards]
    assert len({sample.key for sample in samples(output)}) == 3
    assert "3 images, 6 captions, 7 concepts in 2 shards" in capsys.readouterr().out


def test_missing_and_unreadable_images_are_counted_and_the_run_goes_on(tmp_path, images, output, monkeypatch, capsys):
    (images / "broken.jpg").write_bytes(image_bytes(form="jpeg", size=(200, 200))[:900])
    (images / "text.png").write_text("no image", encoding="utf-8")
    (images / "folder.png").mkdir()
    everything = {"gone.jpg": ["a cow"], "broken.jpg": ["a cow"], **CAPTIONS}
    everything |= {"text.png": ["a cow"], "folder.png": ["a cow"], "silent.png": [], "blank.png": [" \n"]}
    make_image_folder(images, ["silent.png", "blank.png"])
    captions = write_coco_json(tmp_path / "captions.json", everything)
    run(monkeypatch, images=images, captions=captions, output=output, samples_per_shard=2)
    assert [sample.file_name for sample in samples(output)] == list(CAPTIONS)
    # Task and place in it: "broken.jpg" and "text.png" have places as well, files that are not there have none.
    assert [sample.key for sample in samples(output)] == ["000001000000", "000001000001", "000002000000"]
    reasons = skipped(output)
    assert reasons.keys() == {"gone.jpg", "broken.jpg", "text.png", "folder.png", "silent.png", "blank.png"}
    assert "missing" in reasons["gone.jpg"]
    assert "unreadable image" in reasons["broken.jpg"] and "unreadable image" in reasons["text.png"]
    assert "no caption" in reasons["silent.png"] and "no caption" in reasons["blank.png"]
    assert sum(shard["samples"] for shard in index(output)["shards"]) == 3
    printed = capsys.readouterr().out
    assert "left out: 2 images: unreadable image\n" in printed and "left out: 2 images: no caption\n" in printed
    left_out = {"unreadable image": 2, "no caption": 2, "image file missing": 1, "image file cannot be read": 1}
    assert index(output)["left_out"] == {"images": left_out, "captions": {"empty caption": 1}}


def test_task_without_a_readable_image_has_no_shard(tmp_path, images, output, monkeypatch):
    (images / "x.png").write_bytes(b"no image")
    everything = {"x.png": ["a cow"]} | CAPTIONS
    captions = write_coco_json(tmp_path / "captions.json", everything)
    run(monkeypatch, images=images, captions=captions, output=output, samples_per_shard=1)
    names = [shard["name"] for shard in index(output)["shards"]]
    assert names == ["shard-000001-000.tar", "shard-000002-000.tar", "shard-000003-000.tar"]
    assert [sample.file_name for sample in samples(output)] == list(CAPTIONS)


def test_shard_ends_where_its_images_pass_the_size(tmp_path, images, output, monkeypatch):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    sizes = [(images / name).stat().st_size for name in CAPTIONS]
    megabytes = (sizes[0] + 1) / 1e6
    run(monkeypatch, images=images, captions=captions, output=output, shard_megabytes=megabytes)
    names = [(shard["name"], shard["samples"]) for shard in index(output)["shards"]]
    assert names == [("shard-000000-000.tar", 2), ("shard-000000-001.tar", 1)]


def test_same_input_gives_the_same_bytes(tmp_path, images, output, monkeypatch):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS | {"gone.jpg": ["a cow"]})
    for name in ("one", "two"):
        run(monkeypatch, images=images, captions=captions, output=output / name, samples_per_shard=2)
    assert contents(output / "one") == contents(output / "two")
    assert len(contents(output / "one")) == 2 + 2 + 3 + 2  # shards, lists, records, settings and lock


def test_reasons_are_the_same_in_every_run(tmp_path, images, output, monkeypatch):
    (images / "x.png").write_bytes(b"no image")
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS | {"x.png": ["a cow"]})
    run(monkeypatch, images=images, captions=captions, output=output)
    assert "0x" not in skipped(output)["x.png"]


def test_img2dataset(tmp_path, output, monkeypatch):
    members = [
        ("1.jpg", image_bytes(1, form="jpeg")),
        ("1.txt", b" a dog \n"),
        ("2.png", b"no image"),
        ("2.txt", b"cat"),
    ]
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "in" / "00000.tar", members)
    (tmp_path / "in" / "00001.tar").write_bytes(b"no tar " * 500)
    arguments = {"shards": tmp_path / "in" / "{00000..00001}.tar", "output": output}
    with pytest.raises(InputError, match=r"00001\.tar"):
        run(monkeypatch, **arguments)
    assert index(output)["failed"].keys() == {str(tmp_path / "in" / "00001.tar")}
    with pytest.raises(InputError, match="broken_tars was fail and is keep"):
        run(monkeypatch, **arguments, broken_tars="keep")
    kept = output.with_name("kept")
    run(monkeypatch, **arguments | {"output": kept, "broken_tars": "keep"})
    (sample,) = samples(kept)
    assert (sample.file_name, sample.captions[0].text, sample.image) == ("1.jpg", "a dog", members[0][1])
    assert sample.captions[0].concepts[0].lemma == "dog"
    assert skipped(kept).keys() == {"2.png", "00001.tar"}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"images": "{tmp}/gone", "captions": "{tmp}/captions.json"}, "{tmp}/gone"),
        ({"images": "{tmp}/images", "captions": "{tmp}/gone.json"}, "{tmp}/gone.json"),
        ({"shards": "{tmp}/*.tar"}, "shards={tmp}/*.tar"),
        ({}, "either"),
        ({"shards": "x.tar", "samples_per_shard": "0"}, "samples_per_shard=0"),
    ],
)
def test_input_that_cannot_be(tmp_path, images, output, monkeypatch, arguments, part):
    write_coco_json(tmp_path / "captions.json", CAPTIONS)
    given = {key: value.format(tmp=tmp_path) for key, value in arguments.items()}
    refused(monkeypatch, part.format(tmp=tmp_path), **given, output=output)


def test_no_readable_image(tmp_path, images, output, monkeypatch):
    for name in CAPTIONS:
        (images / name).write_bytes(b"no image")
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    refused(monkeypatch, "no readable image", images=images, captions=captions, output=output)


def test_output_that_is_not_empty_is_left_alone(tmp_path, images, output, monkeypatch):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    output.mkdir(parents=True)
    (output / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        run(monkeypatch, images=images, captions=captions, output=output)
    assert str(output) in str(caught.value)
    assert contents(output.parent) == {"shards/mine.txt": b"keep"}


@pytest.mark.parametrize("place", ["link", "."])
def test_output_that_is_empty_and_cannot_be_replaced(tmp_path, images, output, monkeypatch, place):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    output.mkdir(parents=True)
    inode = output.stat().st_ino
    (tmp_path / "link").symlink_to(output)
    monkeypatch.chdir(output)
    run(monkeypatch, images=images, captions=captions, output="." if place == "." else tmp_path / "link")
    assert len(samples(output)) == 3 and output.stat().st_ino == inode
    assert sorted(path.name for path in output.iterdir()) == [".tasks", "index.json", "shard-000000-000.tar"]


def test_output_that_is_a_link_to_nothing(tmp_path, images, monkeypatch):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="link is no folder"):
        run(monkeypatch, images=images, captions=captions, output=tmp_path / "link")


def test_full_disk_fails_what_finds_it_and_the_next_run_completes(tmp_path, images, output, monkeypatch):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    arguments = {"images": images, "captions": captions, "samples_per_shard": 1}
    run(monkeypatch, **arguments, output=output / "whole")
    real = write.write_shard

    def full(path, annotated, info):
        if "shard-000001" in path.name:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, annotated, info)

    monkeypatch.setattr(write, "write_shard", full)
    with pytest.raises(InputError) as caught:
        run(monkeypatch, **arguments, output=output / "full")
    assert "images 2 to 2: No space left on device" in str(caught.value) and "\n" not in str(caught.value)
    assert [sample.file_name for sample in samples(output / "full")] == ["c.jpg", "b.JPEG"]
    assert not index(output / "full")["complete"] and len(index(output / "full")["failed"]) == 1
    monkeypatch.setattr(write, "write_shard", real)
    run(monkeypatch, **arguments, output=output / "full")
    assert contents(output / "full") == contents(output / "whole")


def test_full_disk_ends_the_run_before_every_task_was_tried(tmp_path, output, monkeypatch):
    names = {f"{number}.png": ["a dog"] for number in range(20)}
    images = make_image_folder(tmp_path / "many", names)
    captions = write_coco_json(tmp_path / "captions.json", names)
    tried = []

    def full(path, annotated, info):
        tried.append(path)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(write, "write_shard", full)
    with pytest.raises(InputError, match=r"No space left on device.*and 19 more"):
        run(monkeypatch, images=images, captions=captions, output=output, samples_per_shard=1)
    assert len(tried) < 5
    assert len(index(output)["failed"]) == 20 and "not tried: the disk is full" in index(output)["failed"].values()


@pytest.mark.parametrize("name", ["file", "file/shards"])
def test_output_that_is_a_file(tmp_path, images, monkeypatch, name):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    (tmp_path / "file").write_text("keep", encoding="utf-8")
    with pytest.raises(InputError, match="output"):
        run(monkeypatch, images=images, captions=captions, output=tmp_path / name)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "keep"


@pytest.mark.parametrize("error", [RuntimeError("of a bug"), KeyboardInterrupt()])
def test_error_in_the_middle_leaves_whole_shards_and_no_half_one(tmp_path, images, output, monkeypatch, error):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    arguments = {"images": images, "captions": captions, "output": output, "samples_per_shard": 1}
    real = write.write_shard

    def failing(path, annotated, info):
        real(path, annotated, info)
        if "shard-000001" in path.name:
            raise error

    monkeypatch.setattr(write, "write_shard", failing)
    expected = InputError if isinstance(error, RuntimeError) else KeyboardInterrupt
    with pytest.raises(expected, match="RuntimeError: of a bug" if expected is InputError else None):
        run(monkeypatch, **arguments)
    tars = sorted(path.name for path in output.iterdir() if path.name.endswith(".tar") or "partial" in path.name)
    assert tars == ["shard-000000-000.tar"] + ["shard-000002-000.tar"] * (expected is InputError)
    monkeypatch.setattr(write, "write_shard", real)
    run(monkeypatch, **arguments)
    assert [sample.file_name for sample in samples(output)] == list(CAPTIONS)


def test_unknown_key(monkeypatch, capsys):
    assert exit_code(program.main, ["output=x", "image=y"], monkeypatch) == 2
    assert capsys.readouterr().err == "error: unknown key 'image'; did you mean images, image_column, changed?\n"


@pytest.mark.slow
def test_as_a_program(tmp_path, images, output):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    arguments = [f"images={images}", f"captions={captions}", f"output={output}", "executor=serial"]
    command = [sys.executable, "-m", "data_prep.captions", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 images, 6 captions, 7 concepts" in done.stdout
    assert len(samples(output)) == 3


def test_pipeline_without_parser(tmp_path, images, output, monkeypatch, capfd):
    captions = write_coco_json(tmp_path / "captions.json", CAPTIONS)
    tiny = tiny_pipeline_without_parser(tmp_path / "tiny")
    arguments = [f"images={images}", f"captions={captions}", f"output={output}", f"spacy={tiny}"]
    assert exit_code(program.main, arguments, monkeypatch) == 2
    out, error = capfd.readouterr()
    assert out == "" and error.startswith(f"error: spacy={tiny} has no parser") and error.count("\n") == 1
    assert not output.exists()
