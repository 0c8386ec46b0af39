"""What a source needs beyond the standard library, and where it may write."""

import subprocess
import sys

import pytest

from data_prep.captions.settings import SourceSettings
from data_prep.captions.sources import open_source
from simzss.errors import InputError
from tests.support.files import make_image_folder, write_coco_json
from tests.support.program import ROOT

CODE = """
import sys
from pathlib import Path
sys.modules["pyarrow"] = sys.modules["datasets"] = None  # importing them fails
from data_prep.captions.sources import SourceSettings, open_source, read_task
from simzss.errors import InputError
folder = Path(sys.argv[1])
settings = SourceSettings(images=folder / "images", captions=folder / "captions.json")
source = open_source(settings, folder)
print([item.captions for task in source.tasks() for item in read_task(task, settings)])
for other in ({"table": folder / "t.parquet"}, {"dataset": folder / "images"}):
    try:
        open_source(SourceSettings(**other), folder)
    except InputError as error:
        print(error)
"""


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    images = make_image_folder(tmp_path / "images", ["a.png"])
    return SourceSettings(images=images, captions=write_coco_json(tmp_path / "captions.json", {"a.png": ["a dog"]}))


def test_coco_needs_neither_arrow_nor_datasets(tmp_path, coco):
    done = subprocess.run([sys.executable, "-c", CODE, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[('a dog',)]"
    assert len(lines) == 3 and all("pip install 'simzss[prep]'" in line for line in lines[1:])


def test_scratch_that_cannot_be_written(tmp_path, coco):
    with pytest.raises(InputError, match="gone"):
        open_source(coco, tmp_path / "gone")
