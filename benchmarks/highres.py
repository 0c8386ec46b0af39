"""High resolution without training, step by step: `python -m benchmarks.highres model=… data=… weights=… sam=…`.

Every row is a configuration of `simzss eval` in a process of its own: mIoU, seconds and peak memory of an image. A
second table measures the whole chain on ever larger images.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.peaks import Peak, apart
from benchmarks.report import table
from benchmarks.rows import machine
from simzss import config as conf
from simzss.data.benchmark import Benchmark, BenchmarkConfig
from simzss.errors import InputError, nearest, run_program
from simzss.evaluation.segmentation import evaluate
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import build_segmenter, load_configured, load_configured_sam

ROOTS = {"voc20": "VOCdevkit", "voc21": "VOCdevkit", "ade20k": "ADEChallengeData2016", "coco_object": "coco_object"}


@dataclass
class HighResConfig:
    """Measure the steps of high-resolution inference.

    model: model folder
    data: folder that holds the sets' own folders
    weights: folder of the weights of backbone and proxy
    sam: weights of a Segment Anything model
    proxy: a name in conf/proxy
    sets: names of benchmarks
    limit: first so many images of each
    points: of the grid that the vote asks about, along the longer side
    rows: names of rows; empty for all
    common: settings of simzss eval for every row
    short_sides: of ever larger images in pixels; empty leaves this part out
    threads: of a process
    output: gets .md and .json
    """

    model: str = "???"
    data: str = "???"
    weights: str = "???"
    sam: str = "???"
    proxy: str = "dinov2_vits14"
    sets: list[str] = field(default_factory=lambda: list(ROOTS))
    limit: int = 40
    points: int = 8
    rows: list[str] = field(default_factory=list)
    common: list[str] = field(default_factory=lambda: ["protocol=tcl"])
    short_sides: list[int] = field(default_factory=lambda: [512, 1024, 2048])
    threads: int = 1
    output: str = "outputs/highres"

    def __post_init__(self) -> None:
        for name in self.sets:
            if name not in ROOTS:
                raise InputError(f"sets={name} is unknown; {nearest(name, ROOTS)}")
        for row in self.rows:
            if row not in self.methods():
                raise InputError(f"rows={row} is unknown; {nearest(row, self.methods())}")
        if self.limit < 1 or self.threads < 1:
            raise InputError(f"limit={self.limit} and threads={self.threads} must be at least 1")

    def methods(self) -> dict[str, list[str]]:
        """Settings of `simzss eval` by row."""
        guided = [f"proxy={self.proxy}", f"proxy.weights={self.weights}"]
        found: dict[str, list[str]] = {}
        for inference in ("whole", "slide", "splice"):
            found[inference] = [f"inference={inference}"]
            found[f"{inference}, proxy {self.proxy}"] = [f"inference={inference}", *guided]
            found[f"{inference}, proxy sam"] = [f"inference={inference}", "proxy=sam"]
        correlated = ["inference=splice", "correlate=sam"]
        found["splice, correlate"] = correlated
        found["splice, correlate, refine"] = [*correlated, "refine=sam"]
        found["splice, correlate, vote"] = [*correlated, "refine=vote", f"refine.points={self.points}"]
        found[f"splice, proxy {self.proxy}, correlate, refine"] = [*correlated, "refine=sam", *guided]
        return found


def compare(config: HighResConfig) -> Path:
    """Measure, and write what is known after each row."""
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"machine": machine(), "threads": config.threads, "limit": config.limit, "sets": {}}
    methods = {name: more for name, more in config.methods().items() if not config.rows or name in config.rows}
    for row, more in methods.items():
        for name in config.sets:
            content["sets"].setdefault(name, {})[row] = apart(_measure, config, name, more)
            _write(output, content, list(methods))
            print(name, row, content["sets"][name][row], flush=True)
    for side in config.short_sides:
        for row in ("splice", "splice, correlate, refine"):
            found = apart(_grow, config, config.methods()[row], side)
            content.setdefault("sizes", {}).setdefault(str(side), {})[row] = found
            _write(output, content, list(methods))
            print(side, row, found, flush=True)
    return output.with_suffix(".md")


def _measure(config: HighResConfig, name: str, more: Sequence[str]) -> dict[str, Any]:
    """mIoU in per cent, seconds of an image, and megabytes above what the loaded models take."""
    torch.set_num_threads(config.threads)
    segmenter, benchmark = _open(config, name, more)
    first = Benchmark(_options(config, name, 1))
    evaluate(segmenter, first)  # loads what it needs
    peak = Peak()
    began = time.perf_counter()
    result = evaluate(segmenter, benchmark).result
    seconds = (time.perf_counter() - began) / len(benchmark)
    found = {"mIoU": result["mIoU"], "seconds": seconds, "MB": peak.megabytes(), "images": len(benchmark)}
    return found | ({"regions": result["regions"]} if "regions" in result else {})


def _grow(config: HighResConfig, more: Sequence[str], short_side: int) -> dict[str, Any]:
    """Seconds and megabytes of one image, the photo itself being as large."""
    torch.set_num_threads(config.threads)
    larger = [*more, f"protocol.short_side={short_side}"]
    segmenter, benchmark = _open(config, "voc20", larger)
    segmenter.set_classes(benchmark.class_groups)
    photo = benchmark[0].image
    scale = short_side / min(photo.size)
    width, height = (round(side * scale) for side in photo.size)
    photo = photo.resize((width, height), Image.Resampling.BICUBIC)
    small = photo.resize((width * 256 // short_side, height * 256 // short_side))
    _ = segmenter.predict(small).mask  # loads what it needs
    peak, times = Peak(), []
    for _ in range(2):
        began = time.perf_counter()
        _ = segmenter.predict(photo).mask
        times.append(time.perf_counter() - began)
    return {"seconds": statistics.mean(times), "MB": peak.megabytes(), "pixels": width * height}


def _open(config: HighResConfig, name: str, more: Sequence[str]) -> tuple[Segmenter, Benchmark]:
    plain = _compose(config, name, more, config.limit)
    model, settings = load_configured(plain)
    benchmark = Benchmark(_options(config, name, config.limit))
    return build_segmenter(plain, model, settings["readout"], load_configured_sam(plain), benchmark.config), benchmark


def _options(config: HighResConfig, name: str, limit: int) -> BenchmarkConfig:
    return BenchmarkConfig(**_compose(config, name, [], limit)["benchmark"])


def _compose(config: HighResConfig, name: str, more: Sequence[str], limit: int) -> Any:
    given = [
        f"model={config.model}",
        f"backbone.weights={config.weights}",
        f"sam.weights={config.sam}",
        f"benchmark={name}",
        f"benchmark.root={Path(config.data) / ROOTS[name]}",
        f"benchmark.limit={limit}",
    ]
    return conf.to_plain(conf.compose("eval", [*given, *config.common, *more]))


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
    print(compare(conf.parse_program(HighResConfig)))


if __name__ == "__main__":
    run_program(main)
