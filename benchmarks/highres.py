"""High resolution without training, step by step: `python -m benchmarks.highres model=… data=… weights=… sam=…`.

Every row is a configuration of `simzss eval` in a process of its own: mIoU, seconds and peak memory of an image. A
second table measures the whole chain on ever larger images.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from pydantic import model_validator

from benchmarks.peaks import Peak, apart
from benchmarks.report import table
from benchmarks.rows import machine
from simzss.commands.evaluate import EvalSettings
from simzss.commands.verbs import settings_of
from simzss.data.benchmark import Benchmark
from simzss.data.settings import BenchmarkSettings
from simzss.errors import nearest
from simzss.evaluation.segmentation import evaluate
from simzss.program import run_program
from simzss.segmentation.build import build_segmenter, load_configured, load_configured_sam
from simzss.segmentation.segmenter import Segmenter
from simzss.settings.base import Settings
from simzss.settings.program import parse
from simzss.settings.types import Positive, Strings

ROOTS = {"voc20": "VOCdevkit", "voc21": "VOCdevkit", "ade20k": "ADEChallengeData2016", "coco_object": "coco_object"}


class HighResSettings(Settings):
    """Measure the steps of high-resolution inference."""

    model: str
    """model folder"""
    data: Path
    """folder that holds the sets' own folders"""
    weights: str
    """folder of the weights of backbone and proxy"""
    sam: str
    """weights of a Segment Anything model"""
    proxy: str = "dinov2_vits14"
    """a name in conf/proxy"""
    sets: Strings = list(ROOTS)
    """names of benchmarks"""
    limit: Positive = 40
    """first images of each"""
    points: Positive = 8
    """grid of the vote, along the longer side"""
    rows: Strings = []
    """names of rows; empty for all"""
    common: Strings = ["protocol=tcl"]
    """settings of simzss eval for every row"""
    short_sides: list[Positive] = [512, 1024, 2048]
    """of ever larger images in pixels; empty leaves this part out"""
    threads: Positive = 1
    """of a process"""
    output: Path = Path("outputs/highres")
    """gets .md and .json"""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for key, names, known in (("sets", self.sets, ROOTS), ("rows", self.rows, self.methods())):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"{key}={unknown[0]} is unknown; {nearest(unknown[0], known)}")
        return self

    def methods(self) -> dict[str, list[str]]:
        """Return the settings of `simzss eval` by row."""
        guided = [f"proxy={self.proxy}", f"proxy.weights={self.weights}"]
        found: dict[str, list[str]] = {}
        for inference in ("whole", "slide", "stitch"):
            found[inference] = [f"inference={inference}"]
            found[f"{inference}, proxy {self.proxy}"] = [f"inference={inference}", *guided]
            found[f"{inference}, proxy sam"] = [f"inference={inference}", "proxy=sam"]
        aggregated = ["inference=stitch", "aggregate=sam"]
        found["stitch, aggregate"] = aggregated
        found["stitch, aggregate, refine"] = [*aggregated, "refine=sam"]
        found["stitch, aggregate, vote"] = [*aggregated, "refine=vote", f"refine.points={self.points}"]
        found[f"stitch, proxy {self.proxy}, aggregate, refine"] = [*aggregated, "refine=sam", *guided]
        return found


def compare(settings: HighResSettings) -> Path:
    """Measure, and write what is known after each row."""
    output = settings.output
    output.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"machine": machine(), "threads": settings.threads, "limit": settings.limit, "sets": {}}
    methods = {name: more for name, more in settings.methods().items() if not settings.rows or name in settings.rows}
    for row, more in methods.items():
        for name in settings.sets:
            content["sets"].setdefault(name, {})[row] = apart(_measure, settings, name, more)
            _write(output, content, list(methods))
            print(name, row, content["sets"][name][row], flush=True)
    for side in settings.short_sides:
        for row in ("stitch", "stitch, aggregate, refine"):
            found = apart(_grow, settings, settings.methods()[row], side)
            content.setdefault("sizes", {}).setdefault(str(side), {})[row] = found
            _write(output, content, list(methods))
            print(side, row, found, flush=True)
    return output.with_suffix(".md")


def _measure(settings: HighResSettings, name: str, more: Sequence[str]) -> dict[str, Any]:
    """mIoU in per cent, seconds of an image, and megabytes above what the loaded models take."""
    torch.set_num_threads(settings.threads)
    segmenter, benchmark = _open(settings, name, more)
    evaluate(segmenter, Benchmark(benchmark.settings.replace(limit=1)))  # loads what it needs
    peak = Peak()
    began = time.perf_counter()
    result = evaluate(segmenter, benchmark).plain()
    seconds = (time.perf_counter() - began) / len(benchmark)
    found = {"mIoU": result["mIoU"], "seconds": seconds, "MB": peak.megabytes(), "images": len(benchmark)}
    return found | ({"regions": result["regions"]} if "regions" in result else {})


def _grow(settings: HighResSettings, more: Sequence[str], short_side: int) -> dict[str, Any]:
    """Seconds and megabytes of one image, the photo itself being as large."""
    torch.set_num_threads(settings.threads)
    segmenter, benchmark = _open(settings, "voc20", [*more, f"protocol.short_side={short_side}"])
    classifier = segmenter.classifier(benchmark.class_groups)
    photo = benchmark[0].image
    scale = short_side / min(photo.size)
    width, height = (round(side * scale) for side in photo.size)
    photo = photo.resize((width, height), Image.Resampling.BICUBIC)
    small = photo.resize((width * 256 // short_side, height * 256 // short_side))
    _ = segmenter.predict(small, classifier).mask  # loads what it needs
    peak, times = Peak(), []
    for _ in range(2):
        began = time.perf_counter()
        _ = segmenter.predict(photo, classifier).mask
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.mean(times), "MB": peak.megabytes(), "pixels": width * height}


def _open(settings: HighResSettings, name: str, more: Sequence[str]) -> tuple[Segmenter, Benchmark]:
    given = [
        f"model={settings.model}",
        f"backbone.weights={settings.weights}",
        f"sam.weights={settings.sam}",
        f"benchmark={name}",
        f"benchmark.root={settings.data / ROOTS[name]}",
        f"benchmark.limit={settings.limit}",
    ]
    chosen: EvalSettings = settings_of("eval", [*given, *settings.common, *more])
    assert isinstance(chosen.benchmark, BenchmarkSettings)
    segmenter = build_segmenter(chosen, load_configured(chosen), load_configured_sam(chosen), chosen.benchmark)
    return segmenter, Benchmark(chosen.benchmark)


def _write(output: Path, content: dict[str, Any], rows: Sequence[str]) -> None:
    output.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    sets = list(content["sets"])
    header = ["", *(f"{name}: {what}" for name in sets for what in ("mIoU", "s", "MB"))]
    lines = []
    for row in rows:
        cells: list[Any] = [row]
        for name in sets:
            found = content["sets"][name].get(row)
            cells += ["", "", ""] if found is None else [f"{found['mIoU']:.1f}", found["seconds"], round(found["MB"])]
        lines.append(cells)
    parts = [f"{content['machine']}, {content['threads']} thread(s), {content['limit']} images", table(header, lines)]
    if "sizes" in content:
        larger = [
            [side, row, found["pixels"], found["seconds"], round(found["MB"])]
            for side, methods in content["sizes"].items()
            for row, found in methods.items()
        ]
        parts.append(table(["short side", "", "pixels", "s", "MB"], larger))
    output.with_suffix(".md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def main() -> None:
    """Entry point."""
    print(compare(parse(HighResSettings)))


if __name__ == "__main__":
    run_program(main)
