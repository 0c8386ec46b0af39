"""Row `evaluation`: a segmentation set of 171 classes from files to mIoU, against the straightforward loop.

The loop decodes, resizes and encodes one image at a time, brings all logits to full resolution in float32 and takes
their arg-max. Backbone, weights, precision, class vectors and metric are the same objects on both sides; only how the
images travel differs.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.rows import Row, throughput
from data_prep.efficientnet_weights import convert
from data_prep.scenes.program import make_scene
from simzss.data.benchmark import IGNORE, Benchmark, open_benchmark
from simzss.evaluation.metrics import ConfusionMatrix, count_pixels, scores
from simzss.evaluation.segmentation import decoding_processes, evaluate
from simzss.models.build import build_model
from simzss.models.settings import BackboneSettings, ScratchText
from simzss.segmentation.segmenter import Segmenter
from simzss.segmentation.settings import Protocol
from simzss.settings.compose import load_choice

IMAGES = 32
SIZE = (480, 640)


def run() -> list[Row]:
    """A small CNN with the ImageNet weights of the demo, and the shapes of DINOv2 ViT-S/14 with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        benchmark = _benchmark(Path(folder) / "set")
        convert(Path(folder) / "weights")
        return [
            _row("evaluation", benchmark, "efficientnet_lite0", f"{folder}/weights"),
            _row("evaluation_vit", benchmark, "dinov2_vits14", "random"),
        ]


def _row(name: str, benchmark: Benchmark, backbone: str, weights: str) -> Row:
    settings = BackboneSettings.of(load_choice("backbone", backbone) | {"weights": weights})
    model = build_model(settings, None, ScratchText.of(load_choice("text", "clip_small")), seed=0)
    segmenter = Segmenter(model, Protocol(templates="photo"))
    found: dict[str, float] = {}

    def ours() -> None:
        found["ours"] = evaluate(segmenter, benchmark, num_workers=decoding_processes(None)).miou or 0.0

    def baseline() -> None:
        found["baseline"] = straightforward(segmenter, benchmark)

    row = throughput("evaluation", name, "images/s", IMAGES, ours, baseline, runs=5)
    if abs(found["ours"] - found["baseline"]) > 0.001:  # per cent
        raise SystemExit(f"{name}: mIoU {found['ours']} is not the loop's {found['baseline']}")
    return row


@torch.no_grad()
def straightforward(segmenter: Segmenter, benchmark: Benchmark) -> float:
    """mIoU in per cent by one image after another at full resolution."""
    classifier = segmenter.classifier(benchmark.class_groups)
    metric = ConfusionMatrix(benchmark.num_labels)
    for index in range(len(benchmark)):
        example = benchmark[index]
        pixels = segmenter.prepare(example.image).pixels[None].to(segmenter.device)
        features = segmenter.model.encode_image(pixels)
        coarse = classifier.similarity(features.patches).unflatten(-1, features.grid)
        size = (example.image.height, example.image.width)
        logits = F.interpolate(coarse.float(), size=size, mode="bilinear", align_corners=False)[0]
        labels = (logits / classifier.temperature).argmax(dim=0).cpu()
        metric.update(count_pixels(labels, example.mask, benchmark.num_labels, IGNORE))
    return scores(metric.compute()[0], classifier.names).miou or 0.0


def _benchmark(root: Path) -> Benchmark:
    """COCO-Stuff's layout with rendered scenes, whose few classes stand for its first ones."""
    for folder in ("images/val2017", "annotations/val2017"):
        (root / folder).mkdir(parents=True)
    for number in range(IMAGES):
        scene, _ = make_scene(0, "val", number, max(SIZE))
        name = f"{number:012d}"
        Image.fromarray(scene.image[: SIZE[0], : SIZE[1]]).save(root / f"images/val2017/{name}.jpg", quality=92)
        Image.fromarray(scene.mask[: SIZE[0], : SIZE[1]]).save(root / f"annotations/val2017/{name}_labelTrainIds.png")
    return open_benchmark("benchmark", "coco_stuff", {"root": str(root)})
