import subprocess
import sys

import pytest

from data_prep.captions.sources import SourceSettings, open_source
from data_prep.captions.sources import settings as module
from simzss.errors import InputError
from tests.support.files import make_image_folder, write_coco_json
from tests.support.program import ROOT


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"images": "a"},
        {"captions": "a"},
        {"images": "a", "captions": "b", "shards": "c"},
        {"images": "a", "captions": "b", "table": "c"},
        {"images": "a", "shards": "c"},
        {"images": "a", "dataset": "c"},
        {"shards": "a", "table": "b"},
        {"table": "a", "dataset": "b"},
    ],
)
def test_layouts_are_either_or(given):
    with pytest.raises(InputError, match="give either images=DIR captions=FILE, or shards=PATTERN"):
        SourceSettings(**given)


@pytest.mark.parametrize(
    ("given", "layout"),
    [
        ({"images": "a", "captions": "b"}, "coco"),
        ({"shards": "a"}, "img2dataset"),
        ({"table": "a"}, "table"),
        ({"images": "a", "table": "b"}, "table"),
        ({"dataset": "a"}, "dataset"),
        ({"dataset": "a", "dataset_split": "b"}, "dataset"),
    ],
)
def test_layout(given, layout):
    assert SourceSettings(**given).layout == layout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"samples_per_task": 0}, "samples_per_task=0 must be at least 1"),
        ({"broken_tars": "skip"}, "broken_tars=skip is neither fail nor keep"),
        ({"dataset_split": "train"}, "dataset_split=train needs dataset=DIR"),
    ],
)
def test_values(given, message):
    with pytest.raises(InputError, match=message):
        SourceSettings(table="a", **given)


def test_missing_library_says_how_to_get_it():
    with pytest.raises(InputError, match=r"no_such_library.*pip install 'simzss\[prep\]'"):
        module.need("no_such_library")


def test_coco_needs_neither_arrow_nor_datasets(tmp_path):
    images = make_image_folder(tmp_path / "images", ["a.png"])
    captions = write_coco_json(tmp_path / "captions.json", {"a.png": ["a dog"]})
    code = f"""
import sys
from pathlib import Path
sys.modules["pyarrow"] = sys.modules["datasets"] = None  # importing them fails
from data_prep.captions.sources import SourceSettings, open_source, read_task
from simzss.errors import InputError
settings = SourceSettings(images={str(images)!r}, captions={str(captions)!r})
source = open_source(settings, Path({str(tmp_path)!r}))
print([item.captions for task in source.tasks() for item in read_task(task, settings)])
for other in ({{"table": {str(tmp_path / "t.parquet")!r}}}, {{"dataset": {str(images)!r}}}):
    try:
        open_source(SourceSettings(**other), Path({str(tmp_path)!r}))
    except InputError as error:
        print(error)
"""
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[('a dog',)]"
    assert len(lines) == 3 and all("pip install 'simzss[prep]'" in line for line in lines[1:])


def test_scratch_that_cannot_be_written(tmp_path):
    images = make_image_folder(tmp_path / "images", ["a.png"])
    captions = write_coco_json(tmp_path / "captions.json", {"a.png": ["a dog"]})
    with pytest.raises(InputError, match="gone"):
        open_source(SourceSettings(images=str(images), captions=str(captions)), tmp_path / "gone")
