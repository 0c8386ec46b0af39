"""The whole COCO run on one machine: `make bench-gpu`, `python -m benchmarks.recipe [key=value …]`.

Photos and captions are made up (as many, as large and as long as COCO's), weights are random: neither changes the time.
"""

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import model_validator

from benchmarks.floors import Blocks, Text
from benchmarks.memory_model import VOCABULARY, choose_micro_batch, device_memory
from benchmarks.parts import Part, PartTimes, Peaks, measure_parts, measure_peaks
from benchmarks.photos import write_photos
from benchmarks.report import parts_table, peaks_text, table, write_report
from benchmarks.rows import machine
from benchmarks.runs import StepTimes, make_run
from benchmarks.steps import KINDS, Setting, compare_steps, cores
from simzss.commands import cache
from simzss.commands.train import TrainSettings
from simzss.commands.verbs import settings_of
from simzss.device import device_of, resolve_precision
from simzss.features.placement import DEVICE_SHARE, size_text
from simzss.features.quantise import bytes_per_image
from simzss.features.settings import Placement, Storage, Workers
from simzss.models.settings import ScratchText
from simzss.program import run_program
from simzss.settings.base import Settings
from simzss.settings.program import parse
from simzss.settings.types import Positive, Strings
from simzss.training.data.cached import CachedDataModule


class RecipeSettings(Settings):
    """Time the whole COCO run: photos, cache, training, and whole steps against the original release's."""

    images: Positive = 118_287
    """photos to make up, five captions each"""
    batch: Positive = 16_384
    """captions of a step"""
    samples: Positive = 4_000_000
    """captions of the run, at least two batches"""
    width: Positive = 640
    """of a photo in pixels"""
    height: Positive = 480
    """of a photo in pixels"""
    storage: Storage = "bfloat16"
    """number format of the features"""
    placement: Placement = "auto"
    """where the features are while training"""
    micro_batch: Positive | Literal["auto"] | None = "auto"
    """captions through the text encoder at a time; auto: as many as fit; null: all"""
    backbone: str = "dinov2_vitb14_reg4"
    """its name in conf/backbone; weights are random"""
    cache_more: Strings = []
    """further settings of simzss cache, such as backbone.timm_name=…"""
    train_more: Strings = []
    """further settings of simzss train"""
    compare_batch: Workers = 512
    """of the steps against the original release's; 0 leaves them out"""
    compare_steps: Positive = 4
    """how many of them"""
    accelerator: Literal["auto", "cpu"] = "auto"
    """auto: the machine's accelerator when it has one"""
    processes: Workers = 0
    """that make and decode photos; 0: one for every core"""
    folder: Path | None = None
    """for photos and features, emptied at the end; null: the system's for temporary files"""
    output: Path = Path("outputs/recipe")
    """gets .md and .json"""

    @model_validator(mode="after")
    def _two_batches(self) -> "RecipeSettings":
        if self.samples < 2 * self.batch:
            raise ValueError(f"samples={self.samples} must be at least two batches of {self.batch}")
        return self

    @property
    def steps(self) -> int:
        """Return the number of steps of the run."""
        return round(self.samples / self.batch)


@dataclass
class Recipe:
    """One run of the script, in a folder of its own; what is measured is written after each part of it."""

    settings: RecipeSettings
    folder: Path
    content: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.settings
        self.device = device_of(settings.accelerator)
        self.workers = settings.processes or cores()
        self.backbone = [f"backbone={settings.backbone}", "backbone.weights=random", *settings.cache_more]
        common = ["experiment=coco_vitb14", *self.backbone, f"trainer.accelerator={settings.accelerator}"]
        common += ["trainer.devices=1", *settings.train_more]
        self.common = tuple(common)
        self.shards = str(self.folder / "shards" / "*.tar")
        self.setting = self._setting(self.folder / "features")

    def run(self) -> None:
        """Measure everything in turn."""
        settings = self.settings
        training = self.setting.cached(settings.batch, f"trainer.max_steps={settings.steps}")
        self.precision = resolve_precision(training.trainer.precision, self.device)
        peaks = measure_peaks(self.device, self.precision)
        self._write("Machine", {"peaks": peaks.__dict__}, peaks_text(peaks))
        seconds = self._photos()
        made = self._cache(self.setting.features, self.shards)
        self._write(
            "Photos and cache",
            {"photos": {"images": settings.images, "seconds": seconds}, "cache": made},
            table(
                ["", "images", "seconds", "images/s", "MB"],
                [
                    ["photos made up (no part of the run)", settings.images, seconds, settings.images / seconds, None],
                    ["cache built", made["images"], made["seconds"], made["images/s"], made["bytes"] / 1e6],
                ],
            ),
        )
        self._train(peaks, made, training)
        if settings.compare_batch:
            self._compare(peaks)

    def _setting(self, features: Path) -> Setting:
        return Setting(self.common, self.shards, features, self.folder / "logs", self.workers, self.settings.placement)

    def _write(self, title: str, content: dict[str, Any], text: str) -> None:
        """Add to the results; a run that is ended keeps what it has."""
        self.content |= content
        self.sections[title] = text
        write_report(self.settings.output, "The COCO run on one machine", machine(), self.sections, self.content)
        print(f"## {title}\n\n{text}\n", flush=True)

    def _photos(self) -> float:
        start = time.perf_counter()
        images, size = self.settings.images, (self.settings.width, self.settings.height)
        per_shard = min(1000, -(-images // 4))
        write_photos(self.folder / "shards", images, size=size, per_shard=per_shard, processes=self.workers)
        return time.perf_counter() - start

    def _cache(self, output: Path, shards: str | Sequence[str]) -> dict[str, Any]:
        """Build a cache as `simzss cache` does."""
        pattern = shards if isinstance(shards, str) else f"[{','.join(shards)}]"
        wanted = [*self.backbone, f"data.shards={pattern}", f"output={output}", f"storage={self.settings.storage}"]
        wanted += [f"data.num_workers={self.workers}", f"accelerator={self.settings.accelerator}"]
        start = time.perf_counter()
        summary = cache.run(settings_of("cache", wanted))
        seconds = time.perf_counter() - start
        self._release()
        rate = summary.images / seconds
        return {"images": summary.images, "bytes": summary.bytes, "seconds": seconds, "images/s": rate}

    def _train(self, peaks: Peaks, made: dict[str, Any], training: TrainSettings) -> None:
        """Measure all steps of the run, and then some of them part by part."""
        settings = self.settings
        watch, times = StepTimes(), PartTimes(3, settings.width * settings.height)
        micro_batch = self._micro_batch(training, made)
        training = training.replace(trainer=training.trainer.replace(micro_batch=micro_batch))
        run = make_run(training, self.setting.output, [watch, times])
        run.fit()
        assert isinstance(run.data, CachedDataModule)
        rest = watch.seconds_per_step * (watch.steps - 1)
        seconds = watch.seconds_before + watch.seconds_first + rest
        found = {
            "steps": watch.steps,
            "batch": settings.batch,
            "micro_batch": micro_batch,
            "placement": run.data.store.placement,
            "seconds_before": watch.seconds_before,
            "seconds_first": watch.seconds_first,
            "seconds_per_step": watch.seconds_per_step,
            "seconds": seconds,
            "samples/s": settings.batch / watch.seconds_per_step,
            "peak_memory": watch.peak_memory,
            "wall_clock": made["seconds"] + seconds,
        }
        parts = times.parts("cached", peaks)
        floor = sum(part.floor for part in parts) * watch.steps
        rows = [
            ["model made, features loaded, captions encoded", watch.seconds_before],
            ["first step", watch.seconds_first],
            [f"the other {watch.steps - 1} steps", rest],
            ["**training**", seconds],
            ["**with the cache**", found["wall_clock"]],
            ["floor of all steps", floor],
        ]
        text = (
            f"{watch.steps * settings.batch:,} samples at batch {settings.batch:,}: {found['samples/s']:,.0f} "
            f"samples/s, features in the placement `{found['placement']}`, micro-batch {micro_batch}, at most "
            f"{size_text(watch.peak_memory)} of memory.\n\n" + table(["", "seconds"], rows)
        )
        self._write("Training", {"training": found}, text)
        self._add_parts(parts, f"Batch {settings.batch:,}.")
        del run
        self._release()

    def _micro_batch(self, training: TrainSettings, made: dict[str, Any]) -> int | None:
        """Return the micro-batch as configured, or what fits."""
        if self.settings.micro_batch != "auto":
            return self.settings.micro_batch
        facts = json.loads((self.setting.features / "index.json").read_text(encoding="utf-8"))["facts"]
        tower = training.text
        assert isinstance(tower, ScratchText)
        text = Text(
            Blocks(tower.layers, tower.width, 4 * tower.width), VOCABULARY, tower.context_length, facts["width"]
        )
        memory = device_memory(self.device)
        placed = made["bytes"] if self.settings.placement in ("auto", "device") else 0
        if self.settings.placement == "auto" and placed > DEVICE_SHARE * memory:
            placed = 0  # they stay with the host
        image = bytes_per_image("bfloat16", 1, facts["grid"][0] * facts["grid"][1], facts["width"])
        return choose_micro_batch(memory, placed, self.settings.batch, image, text)

    def _compare(self, peaks: Peaks) -> None:
        """Measure steps of all three kinds in turn, from a cache of a part of the photos."""
        batch, few_steps = self.settings.compare_batch, self.settings.compare_steps
        paths = sorted(map(str, (self.folder / "shards").glob("*.tar")))
        per_shard = -(-self.settings.images // len(paths))
        few = paths[: max(1, -(-4 * batch // per_shard))]
        features = self.folder / "features-few"
        self._cache(features, few)
        setting = self._setting(features)
        steps = {"cached": 4 * few_steps, "uncached": few_steps, "original": few_steps}
        speeds = compare_steps(setting, batch, 2, steps)
        base = statistics.median(speeds["original"])
        rows = [[kind, statistics.median(speeds[kind]), statistics.median(speeds[kind]) / base] for kind in KINDS]
        text = f"Batch {batch}, {self.workers} decoding processes.\n\n"
        self._write("Whole steps", {"speeds": speeds}, text + table(["step", "samples/s", "times the original"], rows))
        pixels = self.settings.width * self.settings.height
        self._add_parts(
            measure_parts("uncached", setting.uncached(batch), setting.output, peaks, 2, pixels),
            f"Uncached: batch {batch}.",
        )

    def _add_parts(self, parts: list[Part], note: str) -> None:
        known = [Part(**{k: v for k, v in part.items() if k != "ratio"}) for part in self.content.get("parts", [])]
        notes = [*self.content.get("notes", []), note]
        content = {"parts": [part.to_json() for part in known + parts], "notes": notes}
        self._write("Parts of a step", content, f"{' '.join(notes)}\n\n{parts_table(known + parts)}")

    def _release(self) -> None:
        """Free the device's cached memory."""
        gc.collect()  # trainer and module know each other
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()


def main() -> None:
    """Run it; the picture of its parts is drawn by benchmarks.roofline."""
    settings = parse(RecipeSettings)
    print(machine(), flush=True)
    if settings.folder is not None:
        settings.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        Recipe(settings, Path(name)).run()
    print(f"{settings.output}.md")


if __name__ == "__main__":
    run_program(main)
