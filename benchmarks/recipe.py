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
from typing import Any

import torch

from benchmarks.floors import FULL, TOWER, Blocks, Text
from benchmarks.parts import Part, PartsModule, PartTimes, Peaks, measure_parts, measure_peaks
from benchmarks.photos import write_photos
from benchmarks.report import parts_table, peaks_text, table, write_report
from benchmarks.rows import machine
from benchmarks.runs import StepTimes, make_run
from benchmarks.steps import KINDS, Setting, compare_steps, cores
from simzss import config as conf
from simzss.device import best_device, resolve_precision
from simzss.errors import InputError, run_program
from simzss.features.build import run_cache
from simzss.features.placement import DEVICE_SHARE, free_host_memory, size_text
from simzss.features.quantise import bytes_per_image

TOKENS = 14
"""Of a caption with its block's padding: COCO's captions have 13.6 on average, CLIP's start and end among them."""
BLOCK_WIDTHS = 18
"""Values that each block of the text tower keeps of a token for its gradient, in widths: the input of both norms in
float32 (4), of three products (3), queries, keys and values (3), the hidden layer twice (8)."""
VOCABULARY = 49_408  # of CLIP's tokenizer
POOLED = 1024
"""Images that similarity pooling takes at a time (`simzss.models.pooling`)."""
SPARE = 0.9
"""Share of the memory that is counted on."""


@dataclass
class RecipeConfig:
    """Time the whole COCO run: photos, cache, training, and whole steps against the original release's.

    images: photos to make up, five captions each
    batch: captions of a step
    samples: captions of the run
    width: of a photo in pixels
    height: of a photo in pixels
    storage: bfloat16, int8 or float32
    placement: auto, device, host or mapped
    micro_batch: auto, null, or captions through the text tower at a time
    backbone: its name in conf/backbone; weights are random
    cache_more: further settings of simzss cache, such as backbone.timm_name=…
    train_more: further settings of simzss train
    compare_batch: of the steps against the original release's; 0 leaves them out
    compare_steps: how many of them
    accelerator: auto, or cpu
    processes: that make and decode photos; 0 takes every core
    folder: for photos and features, emptied at the end; null takes the system's place for temporary files
    output: gets .md and .json
    """

    images: int = 118_287
    batch: int = 16_384
    samples: int = 4_000_000
    width: int = 640
    height: int = 480
    storage: str = "bfloat16"
    placement: str = "auto"
    micro_batch: str = "auto"
    backbone: str = "dinov2_vitb14_reg4"
    cache_more: list[str] = field(default_factory=list)
    train_more: list[str] = field(default_factory=list)
    compare_batch: int = 512
    compare_steps: int = 4
    accelerator: str = "auto"
    processes: int = 0
    folder: str | None = None
    output: str = "outputs/recipe"

    def __post_init__(self) -> None:
        for name in ("images", "batch", "samples", "width", "height", "compare_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1")
        if self.samples < 2 * self.batch:
            raise InputError(f"samples={self.samples} must be at least two batches of {self.batch}")
        if self.micro_batch not in ("auto", "null") and not (self.micro_batch.isdigit() and int(self.micro_batch)):
            raise InputError(f"micro_batch={self.micro_batch} must be auto, null or at least 1")
        if self.accelerator not in ("auto", "cpu"):
            raise InputError(f"accelerator={self.accelerator} must be auto or cpu")

    @property
    def steps(self) -> int:
        """Of the run."""
        return round(self.samples / self.batch)


def choose_micro_batch(memory: int, features: int, batch: int, image_bytes: int, text: Text) -> int | None:
    """Captions that may go through the text tower at a time; None where all of the batch fit.

    With a micro-batch the tower's activations are computed twice, of one micro-batch at a time. Beside them there are
    the features of the batch, patches in float32 while some images are pooled, token vectors in float32 with their unit
    vectors and gradients, and the parameters with gradients and averages.

    Args:
        memory: bytes of the device.
        features: bytes of them that features of the whole set take.
        batch: captions of a step.
        image_bytes: features of one image.
        text: shape of the tower.
    """
    tokens = TOKENS * batch
    pooled = 3 * 2 * min(batch, POOLED) * image_bytes
    whole = batch * image_bytes + pooled + 3 * FULL * tokens * text.out + 4 * FULL * text.parameters
    room = SPARE * memory - features - whole
    caption = TOKENS * TOWER * BLOCK_WIDTHS * text.blocks.depth * text.blocks.width
    if batch * caption <= room:
        return None
    # A power of two of which two fit: the gradient of one comes while the next is computed again.
    fitting = max(1, int(room / (2 * caption)))
    return max(64, 1 << (fitting.bit_length() - 1))


@dataclass
class Recipe:
    """One run of the script, in a folder of its own; what is measured is written after each part of it."""

    config: RecipeConfig
    folder: Path
    content: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        self.device = torch.device("cpu") if config.accelerator == "cpu" else best_device()
        self.workers = config.processes or cores()
        self.backbone = [f"backbone={config.backbone}", "backbone.weights=random", *config.cache_more]
        common = ["experiment=coco_vitb14", *self.backbone, f"trainer.accelerator={config.accelerator}"]
        common += ["trainer.devices=1", *config.train_more]
        self.common = tuple(common)
        self.shards = str(self.folder / "shards" / "*.tar")
        self.setting = self._setting(self.folder / "features")

    def run(self) -> None:
        """Everything in turn."""
        config = self.config
        plain = conf.to_plain(conf.compose("train", self.setting.cached(config.batch)))
        self.precision = resolve_precision(plain["trainer"]["precision"], self.device)
        peaks = measure_peaks(self.device, self.precision)
        self._write("Machine", {"peaks": peaks.__dict__}, peaks_text(peaks))
        seconds = self._photos()
        made = self._cache(self.setting.features, self.shards)
        self._write(
            "Photos and cache",
            {"photos": {"images": config.images, "seconds": seconds}, "cache": made},
            table(
                ["", "images", "seconds", "images/s", "MB"],
                [
                    ["photos made up (no part of the run)", config.images, seconds, config.images / seconds, None],
                    ["cache built", made["images"], made["seconds"], made["images/s"], made["bytes"] / 1e6],
                ],
            ),
        )
        self._train(peaks, made)
        if config.compare_batch:
            self._compare(peaks)

    def _setting(self, features: Path) -> Setting:
        return Setting(self.common, self.shards, features, self.folder / "logs", self.workers, self.config.placement)

    def _write(self, title: str, content: dict[str, Any], text: str) -> None:
        """Add to the results; a run that is ended keeps what it has."""
        self.content |= content
        self.sections[title] = text
        write_report(Path(self.config.output), "The COCO run on one machine", machine(), self.sections, self.content)
        print(f"## {title}\n\n{text}\n", flush=True)

    def _photos(self) -> float:
        start = time.perf_counter()
        size, shard = (self.config.width, self.config.height), min(1000, -(-self.config.images // 4))
        write_photos(self.folder / "shards", self.config.images, size=size, per_shard=shard, processes=self.workers)
        return time.perf_counter() - start

    def _cache(self, output: Path, shards: str | Sequence[str]) -> dict[str, Any]:
        """Build a cache by the function behind `simzss cache`."""
        pattern = shards if isinstance(shards, str) else f"[{','.join(shards)}]"
        wanted = [*self.backbone, f"data.shards={pattern}", f"output={output}", f"storage={self.config.storage}"]
        wanted += [f"data.num_workers={self.workers}", f"accelerator={self.config.accelerator}"]
        start = time.perf_counter()
        summary = run_cache(conf.compose("cache", wanted))
        seconds = time.perf_counter() - start
        self._release()
        rate = summary.images / seconds
        return {"images": summary.images, "bytes": summary.bytes, "seconds": seconds, "images/s": rate}

    def _train(self, peaks: Peaks, made: dict[str, Any]) -> None:
        """All steps of the run, and then some of them part by part."""
        config = self.config
        watch, times = StepTimes(), PartTimes(3, config.width * config.height)
        overrides = self.setting.cached(config.batch, f"trainer.max_steps={config.steps}")
        micro_batch = self._micro_batch(overrides, made)
        overrides.append(f"trainer.micro_batch={'null' if micro_batch is None else micro_batch}")
        run = make_run(overrides, self.setting.output, [watch, times], kind=PartsModule)
        run.fit()
        rest = watch.seconds_per_step * (watch.steps - 1)
        training = watch.seconds_before + watch.seconds_first + rest
        found = {
            "steps": watch.steps,
            "batch": config.batch,
            "micro_batch": micro_batch,
            "placement": getattr(run.data, "store").placement,  # noqa: B009 - of the cached kind only
            "seconds_before": watch.seconds_before,
            "seconds_first": watch.seconds_first,
            "seconds_per_step": watch.seconds_per_step,
            "seconds": training,
            "samples/s": config.batch / watch.seconds_per_step,
            "peak_memory": watch.peak_memory,
            "wall_clock": made["seconds"] + training,
        }
        parts = times.parts("cached", peaks)
        floor = sum(part.floor for part in parts) * watch.steps
        rows = [
            ["model made, features loaded, captions encoded", watch.seconds_before],
            ["first step", watch.seconds_first],
            [f"the other {watch.steps - 1} steps", rest],
            ["**training**", training],
            ["**with the cache**", found["wall_clock"]],
            ["floor of all steps", floor],
        ]
        text = (
            f"{watch.steps * config.batch:,} samples at batch {config.batch:,}: {found['samples/s']:,.0f} samples/s, "
            f"features in the placement `{found['placement']}`, micro-batch {micro_batch}, at most "
            f"{size_text(watch.peak_memory)} of memory.\n\n" + table(["", "seconds"], rows)
        )
        self._write("Training", {"training": found}, text)
        self._add_parts(parts, f"Batch {config.batch:,}.")
        del run
        self._release()

    def _micro_batch(self, overrides: list[str], made: dict[str, Any]) -> int | None:
        """As configured, or what fits."""
        wanted = self.config.micro_batch
        if wanted != "auto":
            return None if wanted == "null" else int(wanted)
        facts = json.loads((self.setting.features / "index.json").read_text(encoding="utf-8"))["facts"]
        options = conf.to_plain(conf.compose("train", overrides))["text"]
        blocks = Blocks(options["layers"], options["width"], 4 * options["width"])
        text = Text(blocks, VOCABULARY, options["context_length"], facts["width"])
        memory = device_memory(self.device)
        placed = made["bytes"] if self.config.placement in ("auto", "device") else 0
        if self.config.placement == "auto" and placed > DEVICE_SHARE * memory:
            placed = 0  # they stay with the host
        image = bytes_per_image("bfloat16", 1, facts["grid"][0] * facts["grid"][1], facts["width"])
        return choose_micro_batch(memory, placed, self.config.batch, image, text)

    def _compare(self, peaks: Peaks) -> None:
        """Steps of all three kinds in turn, from a cache of a part of the photos."""
        config, batch = self.config, self.config.compare_batch
        paths = sorted(map(str, (self.folder / "shards").glob("*.tar")))
        per_shard = -(-config.images // len(paths))
        few = paths[: max(1, -(-4 * batch // per_shard))]
        features = self.folder / "features-few"
        self._cache(features, few)
        setting = self._setting(features)
        steps = {"cached": 4 * config.compare_steps, "uncached": config.compare_steps, "original": config.compare_steps}
        speeds = compare_steps(setting, batch, 2, steps)
        base = statistics.median(speeds["original"])
        rows = [[kind, statistics.median(speeds[kind]), statistics.median(speeds[kind]) / base] for kind in KINDS]
        text = f"Batch {batch}, {self.workers} decoding processes.\n\n"
        self._write("Whole steps", {"speeds": speeds}, text + table(["step", "samples/s", "times the original"], rows))
        pixels = config.width * config.height
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
        """Give the device back what nobody holds any more."""
        gc.collect()  # trainer and module know each other
        if self.device.type != "cpu":
            torch.get_device_module(self.device).empty_cache()


def device_memory(device: torch.device) -> int:
    """Bytes of a device's memory; what the host has free without one, or where it does not say."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    if module is not None and hasattr(module, "mem_get_info"):
        return int(module.mem_get_info(device)[1])
    return free_host_memory()


def main() -> None:
    """Run it; the picture of its parts is drawn by benchmarks.roofline."""
    config = conf.parse_program(RecipeConfig)
    print(machine(), flush=True)
    if config.folder is not None:
        Path(config.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.folder) as name:
        Recipe(config, Path(name)).run()
    print(f"{config.output}.md")


if __name__ == "__main__":
    run_program(main)
