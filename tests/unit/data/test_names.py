"""Names that data give, before they become paths."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.coco_object import read_instances
from data_prep.context import read_annotations
from simzss.data.benchmark import Benchmark
from simzss.data.names import checked_name, name_fault
from simzss.data.settings import BenchmarkSettings
from simzss.errors import DataError
from simzss.evaluation.retrieval import _parse_coco
from simzss.settings.compose import load_choice
from tests.support import official_layouts

pytestmark = pytest.mark.hostile

BAD = {
    "/etc/passwd": "leads out", "\\\\host\\share": "leads out", "C:\\x": "leads out", "c:x": "leads out",
    "..": "leads out", "../x": "leads out", "a/../../x": "leads out", "a\\..\\x": "leads out", "": "is empty",
    "a\0b": "control characters", "a\x1b[2Jb": "control characters", "a\nb": "control characters",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name):
    with pytest.raises(DataError) as caught:
        checked_name(name, "list.txt")
    assert str(caught.value).startswith("list.txt: the name ") and BAD[name] in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a", "city/name", "a..b", "...", "a b/c é", "..a/b..", "xy:z", "caf\udce9"])
def test_honest_names(name):
    assert name_fault(name) is None


def split(path: Path, name: str) -> None:
    official_layouts.voc2012(path)
    settings = BenchmarkSettings.of({**load_choice("benchmark", "voc20"), "root": str(path)})
    (Benchmark(settings).root / str(settings.split)).write_text(f"{name}\n", encoding="utf-8")
    Benchmark(settings)


def listed(read: Callable[[Path], Any], key: str) -> Callable[[Path, str], Any]:
    """A reader of a JSON with an image of this name."""

    def call(path: Path, name: str) -> Any:
        entry = {key: 1, "file_name": name, "phase": "val", "height": 1, "width": 1}
        content = {"images": [entry], "annotations": [], "categories": [], "annos_segmentation": []}
        (path / "x.json").write_text(json.dumps(content), encoding="utf-8")
        return read(path / "x.json")

    return call


READERS = {
    "split": split,
    "retrieval": listed(_parse_coco, "id"),
    "coco_object": listed(read_instances, "id"),
    "context": listed(read_annotations, "image_id"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["../x.jpg", "/x.jpg", "a\x1b[2J.jpg"])
def test_lists_of_strangers(tmp_path, reader, name):
    with pytest.raises(DataError, match=r"\.(txt|json): the name '.*' (leads out of|holds control)"):
        READERS[reader](tmp_path, name)
