"""The examples and the Python of the pages, run on a few rendered scenes."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.pages import blocks, write_presets
from tests.support.program import ROOT
from tests.support.threads import one_thread  # noqa: F401
from tests.unit.models.sam.tiny import mobile_weights

pytestmark = pytest.mark.slow

QUICKSTART = Path("outputs/quickstart")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The main function of the quickstart after a run of one epoch on eight scenes, in the folder where it ran."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        main = runpy.run_path(str(ROOT / "examples" / "quickstart.py"))["main"]
        main(QUICKSTART, scenes=8, epochs=1)
        yield main


@pytest.fixture(scope="module")
def as_in_the_pages(quickstart):
    """What the pages speak of: the demo's model, photos, a MobileSAM, ten photos of a farm with masks."""
    Path("outputs/demo").symlink_to(QUICKSTART.resolve())
    scenes = QUICKSTART / "scenes"
    for number, name in enumerate(("photo.jpg", "other.jpg")):
        shutil.copy(scenes / "images" / "val" / f"scene_{number:06d}.jpg", name)
    Path("weights").mkdir()
    torch.save(mobile_weights(), "weights/mobile_sam.pt")
    for kind, source, suffix in (("images", "images", "jpg"), ("masks", "annotations", "png")):
        Path("farm", kind).mkdir(parents=True)
        for number in range(10):
            target = f"farm/{kind}/{number + 1:04d}.{suffix}"
            shutil.copy(scenes / source / "val" / f"scene_{number:06d}.{suffix}", target)
    shutil.copy(scenes / "classes.txt", "farm/classes.txt")
    write_presets(Path())


def test_quickstart(quickstart):
    model = QUICKSTART / "run" / "model" / "model.safetensors"
    written = model.stat().st_mtime_ns
    picture = Image.open(quickstart(QUICKSTART, scenes=8, epochs=1))
    assert picture.width >= 256 < picture.height
    assert model.stat().st_mtime_ns == written  # a second call uses the model of the first


def test_notebook(quickstart):
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    namespace: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), namespace)
    assert (QUICKSTART / "eval" / "report.html").is_file()


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_of_the_pages(page, as_in_the_pages):
    namespace: dict[str, object] = {}
    for block in blocks(ROOT / page, "python"):
        exec(block.text, namespace)
    assert Path("photo_overlay.png").is_file()
