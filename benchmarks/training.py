"""Rows `text_tower`, `cached_training`, `uncached_training`, and the cost of a training step part by part.

All on the shapes of the paper's run (DINOv2 ViT-B/14 with registers, its text tower) with random weights, which take as
long as trained ones. Photos are made up, of COCO's size; captions are those of Flickr8k and COCO Captions below
`SIMZSS_DATA`, or made up with COCO's lengths without it. The tables go to outputs/bench_training.md and .json.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import floors
from benchmarks.original import padded_text
from benchmarks.parts import Part, Peaks, measure_parts, measure_peaks, timed
from benchmarks.photos import CAPTIONS, SIZE, coco_like_captions, write_photos
from benchmarks.report import parts_table, peaks_text, table, write_report
from benchmarks.roofline import PICTURE, draw
from benchmarks.rows import Row, machine, throughput
from benchmarks.runs import step_times
from benchmarks.steps import KINDS, Setting, compare_steps, cores
from simzss.commands import cache
from simzss.commands.train import TrainSettings, build_bank
from simzss.commands.verbs import settings_of
from simzss.device import resolve_precision
from simzss.models.build import build_model
from simzss.settings.files import save
from simzss.training.data.batch import TextBlock, collate
from simzss.training.data.encoding import CaptionEncoder, EncodedCaption
from simzss.training.data.images import Pixels

OUTPUT = Path("outputs/bench_training")
COMMAND = "make bench BENCH=training"
IMAGES = 256
BATCH = 128
BACKBONE = ("backbone=dinov2_vitb14_reg4", "backbone.weights=random")
STEPS = {"cached": 4, "uncached": 2, "original": 1}
BATCHES = (64, 128, 256)  # in a run at BATCH
LENGTHS = (8, 16, 32, 77)


def run() -> list[Row]:
    """Measure all rows, write the tables and draw the picture."""
    with tempfile.TemporaryDirectory() as name:
        rows = Training(Path(name)).run()
    draw(json.loads(OUTPUT.with_suffix(".json").read_text(encoding="utf-8")), PICTURE)
    return rows


class Training:
    """The benchmark in a folder of its own.

    Args:
        folder: for photos, caches and logs.
        backbone: overrides that choose it.
        images: of the largest cache.
        batch: captions of a step.
        more: other overrides.
    """

    def __init__(
        self,
        folder: Path,
        backbone: Sequence[str] = BACKBONE,
        images: int = IMAGES,
        batch: int = BATCH,
        more: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.backbone = tuple(backbone)
        self.batch = batch
        # A shard has a quarter of the images: two processes share four files of features.
        captions = coco_like_captions(images * CAPTIONS)
        write_photos(folder / "shards", images, per_shard=-(-images // 4), captions=captions)
        common = ("experiment=coco_vitb14", *self.backbone, "trainer.accelerator=cpu", "trainer.devices=1", *more)
        shards = str(folder / "shards" / "*.tar")
        self.setting = Setting(common, shards, folder / "features", folder / "logs", workers=cores())
        settings = self.setting.cached(batch)
        self.model = build_model(settings.backbone, settings.proxy, settings.text, settings.seed)
        self.encoder = CaptionEncoder(self.model.text_encoder, build_bank(settings.concepts))
        self.captions = self.encoder.encode(captions)
        self.device = torch.device("cpu")
        self.precision = resolve_precision(settings.trainer.precision, self.device)

    def run(self, output: Path = OUTPUT, scaling: bool = True) -> list[Row]:
        """Measure all rows; the tables go to `output`.md and .json."""
        peaks = measure_peaks(self.device, self.precision)
        self.make_cache(self.setting.features, self.setting.shards)
        rows, speeds = self.rows()
        parts = self.parts(peaks)
        sections = {
            "Samples a second": speed_table(speeds, self.batch),
            "Parts of a step": f"Batch {self.batch}. {peaks_text(peaks)}\n\n{parts_table(parts)}",
        }
        scales: dict[str, Any] = {}
        if scaling:
            scales = {"processes": self.processes(), "batch": self.batches(), "tokens": self.tokens(peaks)}
            scales["images"] = self.numbers()
            sections |= scaling_tables(scales)
        content = {
            "peaks": peaks.__dict__,
            "speeds": speeds,
            "parts": [part.to_json() for part in parts],
            "scaling": scales,
        }
        write_report(output, "Training", machine(), sections, content)
        return rows

    def make_cache(self, output: Path, shards: str | list[str]) -> float:
        """Build a cache as `simzss cache` does; return the seconds that it took."""
        pattern = shards if isinstance(shards, str) else f"[{','.join(shards)}]"
        wanted = [*self.backbone, f"data.shards={pattern}", f"data.num_workers={cores()}", f"output={output}"]
        return cache.run(settings_of("cache", [*wanted, "accelerator=cpu"])).seconds

    def rows(self) -> tuple[list[Row], dict[str, list[float]]]:
        """Return the rows, and samples a second of each kind of step run by run."""
        speeds = compare_steps(self.setting, self.batch, 3, STEPS, self.model)
        rows = [self.text_tower()]
        for kind in ("cached", "uncached"):
            ratio = statistics.median(a / b for a, b in zip(speeds[kind], speeds["original"], strict=True))
            ours, theirs = statistics.median(speeds[kind]), statistics.median(speeds["original"])
            rows.append(Row(f"{kind}_training", "samples/s", ours, theirs, ratio, COMMAND))
        return rows, speeds

    def text_tower(self) -> Row:
        """Time real captions forward and backward: in our blocks, and all padded to the context length."""
        some = self.captions[:: max(1, len(self.captions) // (2 * self.batch))][: 2 * self.batch]
        blocks = collate(some, self.encoder.pad_id, Pixels(torch.empty(0))).text
        padded = TextBlock(*padded_text(some, self.encoder.context_length, self.encoder.pad_id))
        return throughput(
            "training",
            "text_tower",
            "captions/s",
            len(some),
            lambda: self.text_step(blocks),
            lambda: self.text_step([padded]),
            runs=3,
        )

    def text_step(self, blocks: Sequence[TextBlock]) -> None:
        """Go both ways through the text tower, every token projected."""
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            made = [self.model.encode_text(block.input_ids, block.attention_mask) for block in blocks]
        total: Tensor = torch.stack([block.pooled.sum() + block.tokens.sum() for block in made]).sum()
        total.backward()
        self.model.zero_grad()

    def parts(self, peaks: Peaks) -> list[Part]:
        """Measure the parts of the cached and of the uncached step."""
        pixels = SIZE[0] * SIZE[1]
        output = self.setting.output
        cached = measure_parts("cached", self.setting.cached(self.batch), output, peaks, 4, pixels, self.model)
        return cached + measure_parts(
            "uncached", self.setting.uncached(self.batch), output, peaks, 2, pixels, self.model
        )

    def processes(self) -> list[dict[str, Any]]:
        """Measure one process against two, each with one thread; the batch is the same, and shared."""
        found = []
        for devices in (1, 2):
            result, config = self.folder / f"processes-{devices}.json", self.folder / f"processes-{devices}.yaml"
            save(self.setting.cached(self.batch, f"trainer.devices={devices}"), config)
            command = [sys.executable, "-m", "benchmarks.processes", str(result), "3", str(config)]
            # Each waits for the other: a thread that spins meanwhile would take the other's core.
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            ended = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ended.returncode:
                raise SystemExit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
            seconds = json.loads(result.read_text(encoding="utf-8"))
            found.append({"processes": devices, "seconds": seconds, "samples/s": self.batch / seconds})
        return found

    def batches(self) -> list[dict[str, Any]]:
        """Measure cached steps as the batch grows."""
        found = []
        for batch in [size * self.batch // BATCH for size in BATCHES]:
            seconds = self.seconds_per_step(self.setting.cached(batch))
            found.append({"batch": batch, "seconds": seconds, "samples/s": batch / seconds})
        return found

    def tokens(self, peaks: Peaks) -> list[dict[str, Any]]:
        """Measure the text tower both ways as captions of one length grow."""
        found = []
        shape = floors.text_of(self.model.text_encoder)
        for length in [length for length in LENGTHS if length <= self.encoder.context_length]:
            captions = [EncodedCaption((0,) * length, ())] * self.batch
            block = TextBlock(*padded_text(captions, length, self.encoder.pad_id))
            self.text_step([block])
            action = partial(self.text_step, [block])
            seconds = statistics.median(timed(self.device, action)[1] for _ in range(3))
            lengths = [(self.batch, length)]
            work = floors.text_forward(shape, lengths) + floors.text_backward(shape, lengths)
            floor = max(work.flops / peaks.towers, work.bytes / peaks.bandwidth)
            found.append({"tokens": length, "seconds": seconds, "captions/s": self.batch / seconds, "floor": floor})
        return found

    def numbers(self) -> list[dict[str, Any]]:
        """Measure caches of more and more images: the time to make one, its size, and a step from it."""
        found = []
        shards = sorted((self.folder / "shards").glob("*.tar"))
        for count in (1, 2, 4):
            folder = self.folder / f"features-{count}"
            seconds = self.make_cache(folder, [str(path) for path in shards[:count]])
            images = json.loads((folder / "index.json").read_text(encoding="utf-8"))["images"]
            step = self.seconds_per_step(replace(self.setting, features=folder).cached(self.batch))
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            found.append({"images": images, "making": seconds, "MB": size / 1e6, "step": step})
        return found

    def seconds_per_step(self, settings: TrainSettings) -> float:
        """Measure a step."""
        return step_times(settings, self.setting.output, 3, self.model).seconds_per_step


def speed_table(speeds: dict[str, list[float]], batch: int) -> str:
    """Return the medians of the runs, and their ratio to the original."""
    base = statistics.median(speeds["original"])
    rows = [[kind, statistics.median(speeds[kind]), statistics.median(speeds[kind]) / base] for kind in KINDS]
    return f"Batch {batch}.\n\n" + table(["step", "samples/s", "times the original"], rows)


def scaling_tables(scales: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return the sections of the report."""
    titles = {
        "processes": "One process and two: cached steps of the same batch, one thread a process (gloo)",
        "batch": "Cached steps as the batch grows",
        "tokens": "Text tower, both ways, as captions grow",
        "images": "Caches as images grow (seconds of making; seconds of a step)",
    }
    return {titles[name]: table(list(rows[0]), [list(row.values()) for row in rows]) for name, rows in scales.items()}
