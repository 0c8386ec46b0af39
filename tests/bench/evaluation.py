"""Row `evaluation`: a segmentation set of 171 classes from files to mIoU, against the straightforward loop.

The loop decodes, resizes and encodes one image at a time, brings all logits to full resolution in float32 and takes
their arg-max. Backbone, weights, precision, class vectors and metric are the same objects on both sides; only how the
images travel differs.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from simzss import config as conf
from simzss.data.benchmark import IGNORE, Benchmark, BenchmarkConfig
from simzss.evaluation.evaluate import evaluate
from simzss.evaluation.metrics import ConfusionMatrix, scores
from simzss.segmentation.protocol import WHOLE_336
from simzss.segmentation.segmenter import Segmenter
from simzss.training.run import build_model
from tests.bench.rows import Row, throughput

IMAGES = 32
SIZE = (480, 640)
CLASSES = 171


def run() -> list[Row]:
    """The row, on generated photos and random weights: neither changes how long anything takes."""
    with tempfile.TemporaryDirectory() as folder:
        benchmark = _benchmark(Path(folder))
        backbone = conf.to_plain(conf.load_choice("backbone", "dinov2_vits14")) | {"weights": "random"}
        text = conf.to_plain(conf.load_choice("text", "clip_small"))
        segmenter = Segmenter(build_model(backbone, text, seed=0), replace(WHOLE_336, templates="photo"))
        found: dict[str, float] = {}

        def ours() -> None:
            found["ours"] = evaluate(segmenter, benchmark, num_workers=1).result["mIoU"]

        def baseline() -> None:
            found["baseline"] = straightforward(segmenter, benchmark)

        row = throughput("evaluation", "images/s", IMAGES, ours, baseline, runs=5)
    if abs(found["ours"] - found["baseline"]) > 0.1:  # per cent
        raise SystemExit(f"evaluation: mIoU {found['ours']} is not the loop's {found['baseline']}")
    print(f"mIoU {found['ours']:.6f} and {found['baseline']:.6f} per cent")
    return [row]


@torch.no_grad()
def straightforward(segmenter: Segmenter, benchmark: Benchmark) -> float:
    """mIoU in per cent by one image after another at full resolution."""
    classifier = segmenter.classifier_of(benchmark.class_groups)
    metric = ConfusionMatrix(benchmark.num_labels, IGNORE)
    for index in range(len(benchmark)):
        example = benchmark[index]
        pixels = segmenter.resize(example.image)[None].to(segmenter.device)
        features = segmenter.model.encode_image(pixels)
        coarse = classifier.similarity(features.patches).unflatten(-1, features.grid)
        size = (example.image.height, example.image.width)
        logits = F.interpolate(coarse.float(), size=size, mode="bilinear", align_corners=False)[0]
        metric.update((logits / classifier.temperature).argmax(dim=0).cpu(), example.mask)
    return float(scores(metric.compute()[0], classifier.names)["mIoU"])


def _benchmark(root: Path) -> Benchmark:
    """COCO-Stuff's layout with photos of smooth noise and masks of large regions."""
    random = np.random.default_rng(0)
    (root / "images/val2017").mkdir(parents=True)
    (root / "annotations/val2017").mkdir(parents=True)
    for number in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)).astype(int)
        photo = (photo + random.integers(-12, 13, photo.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(photo).save(root / f"images/val2017/{number:012d}.jpg", quality=90)
        labels = Image.fromarray(random.integers(0, CLASSES, (6, 8), dtype=np.uint8))
        mask = root / f"annotations/val2017/{number:012d}_labelTrainIds.png"
        labels.resize(SIZE[::-1], Image.Resampling.NEAREST).save(mask)
    options = conf.to_plain(conf.load_choice("benchmark", "coco_stuff")) | {"root": str(root)}
    return Benchmark(BenchmarkConfig(**options))
