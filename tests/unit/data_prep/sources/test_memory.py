import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.caption_sources import write_csv, write_parquet
from tests.support.files import make_image_folder
from tests.support.program import ROOT

SMALL, LARGE = 20_000, 200_000

# Peaks only rise within a process: after the imports, the small inputs, each large one, and the large ones in lists.
MEASURE = """
import csv, json, resource, sys
from collections import defaultdict
from pathlib import Path
from data_prep.captions.sources import SourceSettings, open_source
folder = Path(sys.argv[1])

def peak():
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage begins with the peak of the process that started this one
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6

def read(size):
    for given in ({"captions": "coco.json"}, {"table": "t.csv"}, {"table": "t.parquet"}):
        given = {key: str(folder / f"{size}-{name}") for key, name in given.items()}
        source = open_source(SourceSettings(images=str(folder / "images"), **given), folder)
        found = sum(len(texts) for task in source.tasks() for _, _, texts in task.payload["records"])
        assert found == size and list(source.dropped()) == []

peaks = [peak()]
for size in map(int, sys.argv[2:]):
    read(size)
    peaks.append(peak())
groups = defaultdict(list)
for name, text in csv.reader((folder / f"{size}-t.csv").open()):
    groups[name].append(text)
peaks.append(peak())
print(json.dumps(peaks))
"""


def write(folder: Path, size: int) -> None:
    """Captions of five to an image in no order, in every layout that joins them."""
    rng = random.Random(0)
    rows = [(f"{i % (size // 5)}.png", f"a dog and a cat on the grass beside house number {i}") for i in range(size)]
    rng.shuffle(rows)
    images = [{"id": i, "file_name": f"{i}.png"} for i in range(size // 5)]
    annotations = [{"id": i, "image_id": int(name[:-4]), "caption": text} for i, (name, text) in enumerate(rows)]
    content = {"annotations": annotations, "images": images}
    (folder / f"{size}-coco.json").write_text(json.dumps(content), encoding="utf-8")
    write_csv(folder / f"{size}-t.csv", rows)
    columns = dict(zip(("path", "caption"), zip(*rows, strict=True), strict=True))
    write_parquet(folder / f"{size}-t.parquet", columns, row_group=10_000)


@pytest.mark.slow
def test_memory_is_the_same_for_ten_times_the_captions(tmp_path):
    make_image_folder(tmp_path / "images", ["0.png"])
    for size in (SMALL, LARGE):
        write(tmp_path, size)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), str(SMALL), str(LARGE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, small, large, lists = json.loads(done.stdout)
    assert large < 1.1 * small
    # Against lists as well, for most of a peak is what the imports take.
    assert lists - small > 15, "lists do not show: the test would see nothing"
    assert large - small < (lists - small) / 2, (small, large, lists)
